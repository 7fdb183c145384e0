"""Folders that may not be entered, read or written: exit code 10 and one message, and all is well once they may be."""

import errno
from pathlib import Path

import pytest

from fault_shim import Fault, Kind
from fault_sweep import COMMANDS, Sweep
from fault_trials import Answer, fresh
from fault_verdicts import wrong_at_end

CLOSED, UNWRITABLE = 0o000, 0o555
FOLDERS = [
    ("train", ".", UNWRITABLE),
    ("train", "cache", UNWRITABLE),
    ("train", "cache", CLOSED),
    ("train, resumed", "run", UNWRITABLE),
    ("train, resumed", "run", CLOSED),
    ("train, resumed", "run/checkpoints", UNWRITABLE),
    ("train, resumed", "run/checkpoints", CLOSED),
    ("train, finished", "run/adapter", CLOSED),
    ("evaluate", "run", CLOSED),
    ("evaluate", "run/adapter", CLOSED),
    ("evaluate to a file", ".", UNWRITABLE),
    ("export", "run", UNWRITABLE),
    ("export", "run/adapter", CLOSED),
    ("report", "run", UNWRITABLE),
    ("report", "run", CLOSED),
    ("chat", "run", CLOSED),
    ("runs", "run", CLOSED),
    ("init", ".", UNWRITABLE),
    ("check", "cache", CLOSED),
    ("check, cached", "cache/tokens", CLOSED),
    ("plan", "cache", UNWRITABLE),
]
"""A command, a folder that it reads or writes, and what may be done there."""


def said_once(answer: Answer) -> bool:
    """Whether a command ended by one message about the machine, or went on and said what it could not do."""
    if answer.status == 10:
        return answer.output.count("error: ") == 1 and "bug" not in answer.output
    return answer.status == 0 and ("cannot be" in answer.output or "could not" in answer.output)


@pytest.mark.parametrize(("command", "folder", "mode"), FOLDERS)
def test_a_folder_without_permission(sweep: Sweep, tmp_path: Path, command: str, folder: str, mode: int) -> None:
    want, arguments = sweep.want(command), COMMANDS[command].arguments
    place = fresh(tmp_path / "trial", sweep.begin(COMMANDS[command].begin))
    (place / folder).mkdir(exist_ok=True)
    usual = (place / folder).stat().st_mode
    (place / folder).chmod(mode)
    answer = sweep.server.run(place, arguments)
    (place / folder).chmod(usual)
    assert said_once(answer), (answer.status, answer.output)
    again = sweep.server.run(place, arguments)
    assert again.status == 0, again.output
    assert wrong_at_end(place, want) == []


@pytest.mark.parametrize("error", [errno.EACCES, errno.EROFS])
@pytest.mark.parametrize("command", ["train", "check", "plan", "export"])
def test_a_folder_that_may_not_be_made(sweep: Sweep, tmp_path: Path, command: str, error: int) -> None:
    """Every one of them: run folder, cache, export."""
    made = sweep.made_folders(command)
    for at in range(1, made + 1):
        place = fresh(tmp_path / "trial", sweep.begin(COMMANDS[command].begin))
        answer = sweep.server.run(place, COMMANDS[command].arguments, Fault("fail from", Kind.MKDIR, error, at))
        assert answer.hits, at
        assert said_once(answer), (at, answer.hit, answer.status, answer.output)
    assert made


def test_the_control_a_command_that_may_do_all_says_nothing(sweep: Sweep, tmp_path: Path) -> None:
    answer = sweep.server.run(fresh(tmp_path / "trial", sweep.begin("finished")), COMMANDS["report"].arguments)
    assert not said_once(answer)
