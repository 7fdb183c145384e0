"""A save or prune that is stopped anywhere leaves the old checkpoint or the new one, whole, never a mixture.

`lose` and `lose half` also take back what was not fsynced. The controls are savers that each leave out one
precaution; the same harness must catch each of them.
"""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch

from crashing_os import MODES, Mode, crash_everywhere
from known_checkpoints import assert_is, flip_bit, names, save, state, tensors
from strop.errors import StropError
from strop.run import durable
from strop.run.checkpoint import STATE_FILE, TENSORS_FILE, checkpoint_path, load_newest, prune
from strop.run.durable import write_durably

OLD, NEW = 10, 20
KILL_TRIALS = 40
Save = Callable[[Path, Callable[[], None]], None]
Load = Callable[[Path], int]


def save_and_prune(folder: Path, done: Callable[[], None]) -> None:
    save(folder, NEW)
    done()
    prune(folder, keep=1)


def load(folder: Path) -> int:
    """The step that a fresh start goes on from, its content checked. This process saw no crash."""
    found, _ = load_newest(folder)
    assert found is not None
    assert_is(found, found.step)
    return found.step


def load_and_go_on(folder: Path) -> int:
    """As `load`; then the run goes on, and its next save and prune leave nothing of the crash."""
    step = load(folder)
    save(folder, 25)
    prune(folder, keep=1)
    assert names(folder) == ["step-00000025"]
    assert load(folder) == 25
    return step


def a_usual_folder(folder: Path) -> None:
    save(folder, 5)
    save(folder, OLD)


def a_folder_with_history(folder: Path) -> None:
    """An earlier crash left a temporary folder; a damaged checkpoint of a later step is there too."""
    a_usual_folder(folder)
    shutil.copytree(checkpoint_path(folder, 5), folder / ".tmp-step-00000015")
    flip_bit(save(folder, 30) / TENSORS_FILE, 1000)


def a_folder_with_a_damaged_one_of_the_same_step(folder: Path) -> None:
    a_usual_folder(folder)
    flip_bit(save(folder, NEW) / TENSORS_FILE, 1000)


def failures(task: Save, load: Load, prepared: Path, scratch: Path, mode: Mode) -> tuple[int, list[str]]:
    """How many points were tried, and what was wrong at each where something was."""
    wrong, tried = [], 0
    for number, folder, done in crash_everywhere(task, prepared, scratch, mode, StropError):
        tried += 1
        try:
            step = load(folder)
            assert step == NEW if done else step in (OLD, NEW)
        except Exception as error:  # whatever a broken saver brings about
            wrong.append(f"{mode} at call {number}: {error!r}")
    return tried, wrong


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "prepare", [a_usual_folder, a_folder_with_history, a_folder_with_a_damaged_one_of_the_same_step]
)
def test_every_point_of_a_save_and_a_prune(tmp_path: Path, mode: Mode, prepare: Callable[[Path], None]) -> None:
    prepare(tmp_path / "prepared")
    tried, wrong = failures(save_and_prune, load_and_go_on, tmp_path / "prepared", tmp_path, mode)
    assert not wrong
    assert tried >= 30


def naive(folder: Path, done: Callable[[], None]) -> None:
    """Straight into the final folder, each file synced; the newest folder is believed."""
    final = checkpoint_path(folder, NEW)
    try:
        os.mkdir(final)
        write_durably(final / STATE_FILE, json.dumps(state(NEW)).encode())
        write_durably(final / TENSORS_FILE, safetensors.torch.save(tensors(NEW)))
    except OSError as error:
        raise StropError(str(error)) from error
    done()
    prune(folder, keep=1)


def believe_the_newest(folder: Path) -> int:
    newest = max(folder.glob("step-*"))
    safetensors.torch.load_file(newest / TENSORS_FILE)
    return int(json.loads((newest / STATE_FILE).read_text())["step"])


def without_fsync(folder: Path, done: Callable[[], None]) -> None:
    durable.os = _NoSync()  # type: ignore[attr-defined]  # in the child alone
    save_and_prune(folder, done)


class _NoSync:
    """`os` without fsync."""

    def __getattr__(self, name: str) -> object:
        return (lambda _: None) if name == "fsync" else getattr(os, name)


def prune_first(folder: Path, done: Callable[[], None]) -> None:
    for path in folder.glob("step-*"):
        shutil.rmtree(path)
    save(folder, NEW)
    done()


@pytest.mark.parametrize(
    ("task", "load", "mode"),
    [
        (naive, believe_the_newest, "stop"),
        (naive, believe_the_newest, "tear"),
        (naive, believe_the_newest, "fail"),
        (naive, believe_the_newest, "lose"),
        (without_fsync, load, "lose"),
        (without_fsync, load, "lose half"),
        (prune_first, load, "stop"),
    ],
)
def test_the_harness_catches_savers_that_leave_out_a_precaution(
    tmp_path: Path, task: Save, load: Load, mode: Mode
) -> None:
    a_usual_folder(tmp_path / "prepared")
    _, wrong = failures(task, load, tmp_path / "prepared", tmp_path, mode)
    assert wrong


def test_a_full_disk_is_told_with_the_bytes_needed_and_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, OLD)

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with pytest.raises(
            StropError,
            match=r"step-00000020 cannot be written: .*\([\d,]+ bytes are free\).*\. The checkpoint needs [\d,]+",
        ):
            save(tmp_path, NEW)
    assert names(tmp_path) == ["step-00000010"]
    assert load(tmp_path) == OLD


def test_sigkill_during_saves(tmp_path: Path) -> None:
    """Real kills at random moments, while a child does nothing but save and prune."""
    draw = random.Random(0)
    size, mid_save = 50_000, 0
    for trial in range(KILL_TRIALS):
        folder = tmp_path / str(trial)
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            for step in range(1, 10_000):
                save(folder, step, size)
                os.write(write_end, step.to_bytes(4, "big"))
                prune(folder, keep=2)
            os._exit(1)
        os.close(write_end)
        told = os.read(read_end, 4)  # one checkpoint is in place
        time.sleep(draw.uniform(0, 0.06))
        os.kill(pid, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        while more := os.read(read_end, 4):
            told = more
        os.close(read_end)
        mid_save += any(folder.glob(".tmp-step-*"))
        found, rejected = load_newest(folder)
        assert found is not None
        assert not rejected  # nothing half-written ever has a checkpoint's name
        last = int.from_bytes(told, "big")
        assert found.step in (last, last + 1)
        assert_is(found, found.step, size)
        shutil.rmtree(folder)
    assert mid_save >= KILL_TRIALS // 4, "the kills hardly ever struck a save"
