"""What cannot be written is one error that names it; nothing half-written and nothing of an old kill stays."""

import errno
import os
import subprocess
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from strop.errors import StorageError
from strop.run.durable import TEMPORARY, replace_file, staged_file, staged_folder, sweep, writing


def full(descriptor: int, data: bytes) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fail_within(staged: AbstractContextManager[Path], error: Exception) -> None:
    with staged as work:
        half = work / "half" if work.is_dir() else work
        half.write_bytes(b"half")
        raise error


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_file(tmp_path / "a", b"old")
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with pytest.raises(StorageError, match=r"/a cannot be written: No space left on device \([\d,]+ bytes"):
            replace_file(tmp_path / "a", b"new")
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_a_staged_folder_replaces_the_old_one_only_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "adapter"
    with staged_folder(target) as work:
        (work / "weights").write_bytes(b"1")
    with pytest.raises(StorageError):
        fail_within(staged_folder(target), OSError(errno.EIO, "Input/output error"))
    assert names(tmp_path) == ["adapter"]
    assert (target / "weights").read_bytes() == b"1"
    with staged_folder(target) as work:
        (work / "other").write_bytes(b"3")
    assert names(target) == ["other"]
    assert names(tmp_path) == ["adapter"]


def test_a_staged_file_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        fail_within(staged_file(tmp_path / "a"), ZeroDivisionError())
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), errno.ENOSPC),
        (RuntimeError("Error closing file </x>: No space left on device (28)"), errno.ENOSPC),
        (RuntimeError("unable to open file </x>: Input/output error (5)"), errno.EIO),
    ],
)
def test_what_other_libraries_make_of_the_systems_errors_is_known(error: Exception, number: int) -> None:
    with pytest.raises(StorageError, match=f"/x cannot be written: {os.strerror(number)}"), writing(Path("/x")):
        raise error


def test_any_other_error_is_left_alone() -> None:
    with pytest.raises(RuntimeError, match=r"size \(28\)"), writing(Path("/x")):
        raise RuntimeError("mat1 has size (28)")


def test_sweeping_leaves_what_a_living_process_works_on(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    left = [f"report.html.{dead.pid}", "report.html", "removed-step-00000010", f"removed-adapter.{dead.pid}"]
    for name in left:
        (tmp_path / f"{TEMPORARY}{name}").mkdir()
        (tmp_path / f"{TEMPORARY}{name}" / "a").write_bytes(b"")
    alive = tmp_path / f"{TEMPORARY}report.html.{os.getppid()}"
    alive.write_bytes(b"")
    (tmp_path / "report.html").write_bytes(b"")
    sweep(tmp_path)
    assert names(tmp_path) == sorted([alive.name, "report.html"])


def test_sweeping_for_one_name_leaves_the_others(tmp_path: Path) -> None:
    for name in ("gguf-q8_0", "gguf-f16", "gguf"):
        (tmp_path / f"{TEMPORARY}{name}").mkdir()
    sweep(tmp_path, "gguf")
    assert names(tmp_path) == [f"{TEMPORARY}gguf-f16", f"{TEMPORARY}gguf-q8_0"]
