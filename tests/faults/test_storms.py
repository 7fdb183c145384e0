"""Signals at any instant of a run, one or several, again and again: it ends as one that was left alone.

`make soak` goes on for SOAK_MINUTES.
"""

import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from fault_sweep import COMMANDS, Sweep
from fault_trials import fresh
from fault_verdicts import wrong_at_end
from soaking import rounds
from tiny_runs import environment

STORMS, COPIES = 4, 4
SIGNALS = {
    signal.SIGKILL: {-signal.SIGKILL},
    signal.SIGTERM: {75, 128 + signal.SIGTERM, -signal.SIGTERM},
    signal.SIGINT: {75, 128 + signal.SIGINT, -signal.SIGINT},
    signal.SIGHUP: {75, 128 + signal.SIGHUP, -signal.SIGHUP},
}
"""What a process may end with that gets one: resumable, or ended by it while there was nothing to resume yet."""


def test_a_run_that_is_signalled_again_and_again_ends_as_any_other(sweep: Sweep, tmp_path: Path) -> None:
    want, train = sweep.want("train"), COMMANDS["train"]
    usual, draw, ended = sweep.seconds("train"), random.Random(0), Counter[int | str]()
    for storm in rounds(STORMS):
        folder = fresh(tmp_path / "storm", sweep.begin("nothing"))
        for _ in range(draw.randint(1, 5)):
            numbers = draw.choices(list(SIGNALS), k=draw.choice((1, 1, 2)))
            storms = [(draw.uniform(0, usual / len(numbers)), int(number)) for number in numbers]
            answer = sweep.server.run(folder, train.arguments, signals=storms)
            allowed = {0}.union(*(SIGNALS[number] for number in numbers))
            assert answer.status in allowed, f"storm {storm}, {storms}: exit {answer.status}\n{answer.output}"
            assert "Traceback" not in answer.output, answer.output
            ended[answer.status] += 1
        last = sweep.server.run(folder, train.arguments)
        assert last.status == 0, last.output
        assert wrong_at_end(folder, want) == [], f"storm {storm}"
        usual = min(usual, last.seconds)  # the machine may have been busy when it was measured
    assert ended[-signal.SIGKILL] or ended[75], f"no signal struck a run: {ended}"


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8, 0.95])
def test_a_run_that_stands_still_for_a_while_goes_on(sweep: Sweep, tmp_path: Path, share: float) -> None:
    """A hang that ends, as of a network disk. strop has no watchdog: one that does not end is for the launcher."""
    want, train = sweep.want("train"), COMMANDS["train"]
    folder = fresh(tmp_path / "still", sweep.begin("nothing"))
    halted = [(share * sweep.seconds("train"), int(signal.SIGSTOP)), (0.3, int(signal.SIGCONT))]
    answer = sweep.server.run(folder, train.arguments, signals=halted)
    assert answer.status == 0, answer.output
    assert wrong_at_end(folder, want) == []


def test_a_copy_made_while_a_run_writes_is_resumed(sweep: Sweep, tmp_path: Path) -> None:
    """As a Volume is committed in the background, at any moment and file by file."""
    want, begin, train = sweep.want("train"), sweep.begin("nothing"), COMMANDS["train"]
    folder = fresh(tmp_path / "running", begin)
    as_in_trials = (
        "from strop.evaluation import samples; samples.MAX_NEW_TOKENS = 4; from strop.cli import main; main()"
    )
    command = [sys.executable, "-c", as_in_trials, *train.arguments]
    process = subprocess.Popen(command, cwd=folder, env=environment(folder / "cache"), stdout=subprocess.DEVNULL)
    copies: list[Path] = []
    while process.poll() is None:
        if (folder / "run/run.json").exists():
            copies.append(copied(folder, tmp_path / str(len(copies))))
    assert process.returncode == 0
    drawn = random.Random(0).sample(copies, min(COPIES, len(copies)))
    assert drawn
    for copy in drawn:
        answer = sweep.server.run(copy, train.arguments)
        assert answer.status == 0, answer.output
        found = wrong_at_end(copy, want)
        assert [each for each in found if not each.startswith("cache/")] == []


def copied(folder: Path, target: Path) -> Path:
    """A copy of a folder that changes meanwhile: what has gone when its turn comes is not in it."""
    with suppress(shutil.Error, FileNotFoundError):  # of a folder that has gone
        shutil.copytree(folder, target, copy_function=_copy_if_there)
    return target


def _copy_if_there(source: str, target: str) -> None:
    with suppress(FileNotFoundError):
        shutil.copyfile(source, target)
