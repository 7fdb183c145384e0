from pathlib import Path

import pytest

from strop.data.files import Stretch, find, hash_file, refuse_doubles
from strop.errors import DataError


def find_files(specs, key="data.train_file"):
    """The files of a list without splits, none of them twice."""
    files = [path for files, _ in find([(spec, None, None) for spec in specs], key) for path in files]
    refuse_doubles([Stretch(path) for path in files], key)
    return files


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ("b.jsonl", "a.jsonl", "sub/c.jsonl", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"text":"a"}\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_globs_are_sorted_and_recursive(folder):
    assert find_files(["*.jsonl"]) == [Path("a.jsonl"), Path("b.jsonl")]
    assert find_files(["**/*.jsonl"]) == [Path("a.jsonl"), Path("b.jsonl"), Path("sub/c.jsonl")]


@pytest.mark.parametrize(
    ("specs", "reason"),
    [
        (["missing.jsonl"], "there is no file missing.jsonl"),
        (["sub/missing"], "there is no file sub/missing"),
        (["*.csv"], "no file matches"),
        (["sub"], r"is a folder; name its files, for example sub/\*.jsonl"),
        (["notes.txt"], "text without rows: write JSON Lines.*known types are .jsonl"),
        (["a.jsonl", "*.jsonl"], "a.jsonl is listed twice"),
        (["a.jsonl", "./a.jsonl"], "is listed twice"),
    ],
)
def test_refused_with_the_recipe_key(folder, specs, reason):
    with pytest.raises(DataError, match=f"data.train_file.*{reason}"):
        find_files(specs)


def test_no_permission(folder, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # chmod does not stop root, which tests may run as
    with pytest.raises(DataError, match=r"data.validation_file: cannot read a.jsonl: Permission denied"):
        find_files(["a.jsonl"], "data.validation_file")


def test_fifo_is_not_waited_for(folder):
    __import__("os").mkfifo("pipe.jsonl")
    with pytest.raises(DataError, match="not a regular file"):
        find_files(["pipe.jsonl"])


def test_symlink_to_the_same_file_counts_as_the_same(folder):
    Path("link.jsonl").symlink_to("a.jsonl")
    with pytest.raises(DataError, match="listed twice"):
        find_files(["a.jsonl", "link.jsonl"])


def test_hash_ignores_a_byte_order_mark_and_nothing_else(folder):
    Path("bom.jsonl").write_bytes(b"\xef\xbb\xbf" + Path("a.jsonl").read_bytes())
    Path("other.jsonl").write_bytes(Path("a.jsonl").read_bytes() + b"\n")
    assert hash_file(Path("bom.jsonl")) == hash_file(Path("a.jsonl"))
    assert hash_file(Path("other.jsonl")) != hash_file(Path("a.jsonl"))
