"""Several ranks that are killed, stopped or told to end: all end within seconds, and the run is what it would be.

On CPUs, with gloo. `make test-ranks` starts them with torchrun, and kills a hundred times.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch

from on_ranks import strop_on_ranks
from small_runs import write_small_recipe
from strop.run.checkpoint import is_intact
from strop.run.folder import RunFolder
from tiny_runs import environment, metrics
from waiting import PATIENCE, until

KILLS = int(os.environ.get("STROP_RANK_KILLS", "0"))
STEPS, LOST_AFTER = 40, 4.0
pytestmark = [pytest.mark.xdist_group("ranks"), pytest.mark.slow]


class Ranks:
    """Ranks that train in a folder.

    Attributes:
        processes: Of each rank its process id, and None for one that has not started.
    """

    def __init__(self, folder: Path, count: int, name: str, by_torchrun: bool) -> None:
        self.run, self.log = RunFolder(folder / name), folder / f"{name}.log"
        arguments = ["train", "small.yaml", f"train.output_dir={name}"]
        self._torchrun: subprocess.Popen[bytes] | None = None
        if not by_torchrun:
            self._forked = strop_on_ranks(count, arguments, folder, self.log, LOST_AFTER)
            self.processes = [process.pid for process in self._forked]
            return
        torchrun = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", "-m", "strop")
        with self.log.open("ab") as file:
            self._torchrun = subprocess.Popen(
                [sys.executable, *torchrun, *arguments],
                cwd=folder,
                env=environment(folder / "cache"),
                stdout=file,
                stderr=file,
            )
        self.launcher = self._torchrun.pid
        self.processes = [self._pid_of(rank) for rank in range(count)]

    def _pid_of(self, rank: int) -> int:
        return until(lambda: next(self._ranks_below(rank), 0))

    def _ranks_below(self, rank: int) -> Iterator[int]:
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                variables = (status.parent / "environ").read_bytes().split(b"\0")
                if f"PPid:\t{self.launcher}\n" in status.read_text() and f"RANK={rank}".encode() in variables:
                    yield int(status.parent.name)
            except OSError:  # it has ended
                continue

    def reaches(self, step: int) -> None:
        """Wait for that many lines of metrics, or for the end."""
        file = self.run.metrics_path
        until(lambda: self.has_ended() or (file.exists() and file.read_bytes().count(b"\n") >= step))

    def has_ended(self) -> bool:
        if self._torchrun is not None:
            return self._torchrun.poll() is not None
        return not any(process.is_alive() for process in self._forked)

    def end(self) -> list[int | None]:
        """Wait for the end; returns torchrun's exit code, or that of each rank."""
        if self._torchrun is not None:
            return [self._torchrun.wait(PATIENCE)]
        for process in self._forked:
            process.join(PATIENCE)
        return [process.exitcode for process in self._forked]

    def are_gone(self) -> bool:
        """Whether no process is left."""
        return self.has_ended() and not any(pid and Path(f"/proc/{pid}/exe").exists() for pid in self.processes)


Start = Callable[..., Ranks]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Start:
    """Starts ranks, by torchrun where that is asked for."""
    folder = tmp_path_factory.mktemp("ranks")
    batches = {"max_steps": STEPS, "per_device_train_batch_size": 3}
    write_small_recipe(folder, save_steps=4, eval_steps=20, save_total_limit=3, **batches)

    def started(count: int, name: str, by_torchrun: bool = KILLS > 0) -> Ranks:
        return Ranks(folder, count, name, by_torchrun)

    return started


@pytest.fixture(scope="module")
def whole(start: Start) -> RunFolder:
    """A run of three ranks that nothing disturbs."""
    return finished(start(3, "whole"))


def finished(ranks: Ranks) -> RunFolder:
    assert set(ranks.end()) == {0}, ranks.log.read_text()
    return ranks.run


def adapter(run: RunFolder) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(run.adapter / "adapter_model.safetensors")


def assert_same(run: RunFolder, want: RunFolder) -> None:
    found, wanted = adapter(run), adapter(want)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert metrics(run.path) == metrics(want.path)


@pytest.mark.parametrize("kill", range(KILLS or 1))
def test_any_process_that_is_killed_ends_all_and_the_run_resumes(start: Start, whole: RunFolder, kill: int) -> None:
    draw, name = random.Random(kill), f"killed-{kill}"
    ranks = start(3, name)
    ranks.reaches(draw.randrange(STEPS))
    time.sleep(draw.random() * 0.05)
    doomed = draw.choice([*ranks.processes, *([ranks.launcher] if KILLS else [])])
    if not ranks.has_ended():
        os.kill(doomed, signal.SIGKILL)
    struck = time.monotonic()
    until(ranks.are_gone)
    assert time.monotonic() - struck < 30
    assert "Traceback" not in ranks.log.read_text() or KILLS  # torchrun prints one
    assert all(is_intact(path) for path in ranks.run.checkpoints.glob("step-*"))
    assert_same(finished(start(3, name)), whole)


@pytest.mark.parametrize("told", [0, 2] if KILLS else [2])
def test_a_rank_that_is_told_to_end_saves_for_all(start: Start, whole: RunFolder, told: int) -> None:
    ranks = start(3, f"told-{told}")
    ranks.reaches(10)
    os.kill(ranks.processes[told], signal.SIGTERM)
    assert set(ranks.end()) == ({1} if KILLS else {75})  # torchrun has one code for all that goes wrong
    _is_saved_once(ranks)
    assert_same(finished(start(3, f"told-{told}")), whole)


def test_torchrun_that_is_told_to_end_saves(start: Start, whole: RunFolder) -> None:
    ranks = start(3, "torchrun", by_torchrun=True)
    ranks.reaches(10)
    os.kill(ranks.launcher, signal.SIGTERM)
    assert ranks.end() != [0]
    _is_saved_once(ranks)
    assert_same(finished(start(3, "torchrun")), whole)


def _is_saved_once(ranks: Ranks) -> None:
    steps = [record["step"] for record in metrics(ranks.run.path) if record["kind"] == "train"]
    assert ranks.run.status == "interrupted"
    assert (ranks.run.checkpoints / f"step-{steps[-1]:08d}").exists(), "of the last step made"
    log = ranks.log.read_text()
    assert log.count("stopped by SIGTERM") == 1
    assert log.count("Resume with: strop train") == 1


def test_a_rank_that_stands_still_is_found(start: Start, whole: RunFolder) -> None:
    ranks = start(3, "still")
    ranks.reaches(8)
    os.kill(ranks.processes[1], signal.SIGSTOP)
    others = [ranks.processes[0], ranks.processes[2]]
    until(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in others))
    os.kill(ranks.processes[1], signal.SIGKILL)
    assert ranks.end()[0] in (75, 1)
    assert "no sign of life of rank 1" in ranks.log.read_text()
    assert_same(finished(start(3, "still")), whole)


def test_a_run_goes_on_with_another_number_of_ranks(start: Start, whole: RunFolder) -> None:
    """4, then 2, then 3: the same training up to rounding."""
    for count, stop_at in ((4, 8), (2, 20)):
        ranks = start(count, "changing")
        ranks.reaches(stop_at)
        os.kill(ranks.processes[0], signal.SIGTERM)
        assert 0 not in ranks.end()
    run = finished(start(3, "changing"))
    found, wanted = adapter(run), adapter(whole)
    assert max(float((found[name] - wanted[name]).abs().max()) for name in wanted) < 1e-4
    assert [record["num_tokens"] for record in metrics(run.path) if record["kind"] == "train"] == [
        record["num_tokens"] for record in metrics(whole.path) if record["kind"] == "train"
    ]
