"""Whatever happens to a checkpoint's files, it is noticed, and the one before it is used."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors
import safetensors.torch

from known_checkpoints import assert_is, flip_bit, save, state, tensors
from strop.errors import CheckpointError
from strop.run.checkpoint import MANIFEST_FILE, STATE_FILE, TENSORS_FILE, checkpoint_path, load_newest

FILES = (TENSORS_FILE, STATE_FILE, MANIFEST_FILE)
OLD, NEW = 10, 20
FLIPS_PER_FILE = 400


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(tmp_path, OLD)
    save(tmp_path, NEW)
    return tmp_path


def assert_falls_back(folder: Path, reason: str) -> None:
    found, rejected = load_newest(folder)
    assert_is(found, OLD)
    assert [each.path for each in rejected] == [checkpoint_path(folder, NEW)]
    assert reason in rejected[0].reason


def test_undamaged_the_newest_is_used(folder: Path) -> None:
    found, rejected = load_newest(folder)
    assert_is(found, NEW)
    assert rejected == []


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_bit_is_noticed(folder: Path, name: str) -> None:
    path = checkpoint_path(folder, NEW) / name
    size, draw = path.stat().st_size * 8, random.Random(name)
    bits = draw.sample(range(size), min(size, FLIPS_PER_FILE))
    for bit in bits:
        flip_bit(path, bit)
        found, rejected = load_newest(folder)
        assert found is not None
        assert found.step == OLD, f"bit {bit} of {name}"
        assert len(rejected) == 1
        flip_bit(path, bit)
    assert_is(load_newest(folder)[0], NEW)


def test_safetensors_alone_loads_most_flipped_files(folder: Path) -> None:
    """The control: it is the hash that notices."""
    path = checkpoint_path(folder, NEW) / TENSORS_FILE
    draw = random.Random(0)
    silent = 0
    for bit in draw.sample(range(path.stat().st_size * 8), 300):
        flip_bit(path, bit)
        try:
            safetensors.torch.load(path.read_bytes())
            silent += 1
        except (safetensors.SafetensorError, KeyError, ValueError):
            pass
        flip_bit(path, bit)
    assert silent > 200


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("keep", [lambda n: 0, lambda n: 1, lambda n: n // 2, lambda n: n - 1, lambda n: n + 1])
def test_a_file_of_another_length(folder: Path, name: str, keep: Callable[[int], int]) -> None:
    path = checkpoint_path(folder, NEW) / name
    os.truncate(path, keep(path.stat().st_size))  # one more byte is a NUL at the end
    assert_falls_back(folder, name)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file(folder: Path, name: str) -> None:
    (checkpoint_path(folder, NEW) / name).unlink()
    assert_falls_back(folder, f"{name} is missing")


@pytest.mark.parametrize("name", FILES)
def test_a_folder_where_a_file_should_be(folder: Path, name: str) -> None:
    path = checkpoint_path(folder, NEW) / name
    path.unlink()
    path.mkdir()
    assert_falls_back(folder, f"{name} cannot be read")


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_checkpoint(folder: Path, name: str) -> None:
    shutil.copyfile(checkpoint_path(folder, OLD) / name, checkpoint_path(folder, NEW) / name)
    assert_falls_back(folder, "manifest.json")


def test_a_whole_checkpoint_under_another_steps_name(folder: Path) -> None:
    shutil.rmtree(checkpoint_path(folder, NEW))
    shutil.copytree(checkpoint_path(folder, OLD), checkpoint_path(folder, NEW))
    assert_falls_back(folder, "not what was written for this step")


@pytest.mark.parametrize(
    "name", ["step-xyz", "step-", "step-20", "step-000000030", "step-00000040.bak", "step--0000001"]
)
def test_a_name_that_no_save_gives_is_told_and_passed_over(folder: Path, name: str) -> None:
    shutil.copytree(checkpoint_path(folder, NEW), folder / name)
    found, rejected = load_newest(folder)
    assert_is(found, NEW)
    assert [each.path.name for each in rejected] == [name]


def rewrite_manifest(folder: Path, change: Callable[[dict[str, object]], object]) -> None:
    path = checkpoint_path(folder, NEW) / MANIFEST_FILE
    manifest = json.loads(path.read_bytes())
    change(manifest)
    path.write_text(json.dumps(manifest, indent=1))


@pytest.mark.parametrize("stranger", ["../step-00000010/state.json", "/etc/passwd", "more.bin"])
def test_a_manifest_that_names_other_files_opens_none_of_them(folder: Path, stranger: str) -> None:
    def add(manifest: dict[str, object]) -> None:
        files = manifest["files"]
        assert isinstance(files, dict)
        files[stranger] = files[STATE_FILE]

    rewrite_manifest(folder, add)
    assert_falls_back(folder, "names other files")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda manifest: manifest.update(format_version=2), "format 2"),
        (lambda manifest: manifest.update(step=21), "not what was written"),
        (lambda manifest: manifest.update(note="hello"), "not what was written"),
        (lambda manifest: manifest.pop("files"), "damaged"),
        (lambda manifest: manifest.update(files=3), "damaged"),
        (lambda manifest: manifest.update(files={STATE_FILE: 1, TENSORS_FILE: 2}), "damaged"),
    ],
)
def test_a_manifest_with_another_content(
    folder: Path, change: Callable[[dict[str, object]], object], reason: str
) -> None:
    rewrite_manifest(folder, change)
    assert_falls_back(folder, reason)


@pytest.mark.parametrize("content", [b"[" * 100_000, b"null", b"\xff" * 8, b'{"a": 1}'])
def test_a_manifest_that_is_none(folder: Path, content: bytes) -> None:
    (checkpoint_path(folder, NEW) / MANIFEST_FILE).write_bytes(content)
    assert_falls_back(folder, "damaged")


def test_the_step_decides_and_not_the_time(folder: Path) -> None:
    for day, step in ((9, OLD), (1, NEW)):
        for path in (checkpoint_path(folder, step), *checkpoint_path(folder, step).iterdir()):
            os.utime(path, (day * 86_400, day * 86_400))
    assert_is(load_newest(folder)[0], NEW)


def test_a_saved_step_that_is_damaged_is_written_again(folder: Path) -> None:
    flip_bit(checkpoint_path(folder, NEW) / TENSORS_FILE, 4096)
    assert_falls_back(folder, TENSORS_FILE)
    save(folder, NEW)
    found, rejected = load_newest(folder)
    assert_is(found, NEW)
    assert rejected == []


def test_all_damaged_is_refused_with_each_reason_and_a_way_on(folder: Path) -> None:
    flip_bit(checkpoint_path(folder, OLD) / STATE_FILE, 10)
    (checkpoint_path(folder, NEW) / TENSORS_FILE).unlink()
    before = sorted(folder.rglob("*"))
    with pytest.raises(CheckpointError) as caught:
        load_newest(folder)
    message = str(caught.value)
    for words in (
        "step-00000010: state.json",
        "step-00000020: state.safetensors is missing",
        "train.output_dir",
    ):
        assert words in message
    assert caught.value.exit_code == 4
    assert sorted(folder.rglob("*")) == before


def test_a_pickle_is_never_loaded(folder: Path) -> None:
    """Even with right hashes: only safetensors and JSON are read."""
    new = checkpoint_path(folder, NEW)
    import hashlib
    import pickle

    bomb = pickle.dumps({"lora": tensors(NEW)["lora"].tolist(), "state": state(NEW)})
    (new / TENSORS_FILE).write_bytes(bomb)
    entry = {"sha256": hashlib.sha256(bomb).hexdigest(), "size": len(bomb)}
    rewrite_manifest(folder, lambda manifest: manifest["files"].update({TENSORS_FILE: entry}))  # type: ignore[attr-defined]
    assert_falls_back(folder, "cannot be read")
