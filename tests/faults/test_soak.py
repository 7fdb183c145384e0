"""10,000 steps of a small model, killed on the way: memory and disk stay what they were. `make soak` alone runs it."""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from small_runs import write_small_recipe
from strop.run.records import TrainRecord, read_metrics
from tiny_runs import environment

STEPS = int(os.environ.get("SOAK_STEPS", "10000"))
KILLS = 20
WARM = 0.2
"""Share of a process's steps after which memory and disk must not grow any more."""
GROWTH = 1.01


@pytest.mark.soak
def test_memory_and_disk_stay_what_they_were(tmp_path: Path) -> None:
    recipe = write_small_recipe(
        tmp_path, max_steps=STEPS, save_steps=max(1, STEPS // 200), eval_steps=max(1, STEPS // 100), sample_rows=0
    )
    draw, run = random.Random(0), tmp_path / "run"
    kills = sorted(draw.sample(range(1, STEPS // 2), KILLS))  # what is left then trains in one process
    for step in [*kills, None]:
        process = _start(recipe, tmp_path)
        memory, disk = _watch(process, run, step)
        if step is not None:
            process.send_signal(draw.choice((signal.SIGKILL, signal.SIGTERM)))
            assert process.wait(600) in (-signal.SIGKILL, 75), (tmp_path / "log.txt").read_text()
    assert process.wait(600) == 0, (tmp_path / "log.txt").read_text()
    for what, sizes in (("memory", memory), ("disk", disk)):
        before, after = max(sizes[: int(WARM * len(sizes))]), max(sizes)
        print(f"{what}: {before:,} bytes after warm-up, {after:,} at most, {after / before - 1:+.2%}")
        assert after <= GROWTH * before, what
    made = [record.step for record in read_metrics(run / "metrics.jsonl") if isinstance(record, TrainRecord)]
    assert made == list(range(1, STEPS + 1))
    assert not list(run.rglob(".tmp-*"))


def _start(recipe: Path, folder: Path) -> "subprocess.Popen[bytes]":
    with (folder / "log.txt").open("a") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "strop", "train", str(recipe), "train.logging_steps=1000"],
            cwd=folder,
            stdout=log,
            stderr=log,
            env=environment(folder / "cache"),
        )


def _watch(process: "subprocess.Popen[bytes]", run: Path, step: int | None) -> tuple[list[int], list[int]]:
    """Memory and disk of a run, in bytes, until it has made a step or its last.

    Its records grow and do not count, nor does what its end takes.
    """
    memory, disk = [], []
    while process.poll() is None and (step is None or _steps(run) < step):
        if 0 < _steps(run) < STEPS and (resident := _resident(process.pid)):
            memory.append(resident)
            disk.append(_size(run))
        time.sleep(0.2)
    return memory, disk


def _steps(run: Path) -> int:
    try:
        return (run / "metrics.jsonl").read_bytes().count(b'"train"')
    except FileNotFoundError:
        return 0


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (FileNotFoundError, ProcessLookupError, IndexError):
        return 0


def _size(run: Path) -> int:
    """Of its checkpoints, two at most while one takes the other's place."""
    total = 0
    for folder, _, names in os.walk(run / "checkpoints"):  # passes over a folder that is pruned meanwhile
        for name in names:
            with suppress(FileNotFoundError):
                total += Path(folder, name).stat().st_size
    return total
