"""A command of strop with a fault at its n-th file call, for any n: one trial, and all of them."""

import errno
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from fault_shim import CHANGES, NEEDS_PERMISSION, NEEDS_SPACE, Fault, Kind
from fault_trials import Answer, FaultServer, fresh
from fault_verdicts import wrong_at_end, wrong_when_struck
from small_runs import write_small_recipe

Begin = Literal["nothing", "interrupted", "finished", "other"]

FAULTS: dict[str, Fault] = {
    "killed": Fault("kill", CHANGES),
    "no space once": Fault("fail once", NEEDS_SPACE, errno.ENOSPC),
    "no space for good": Fault("fail from", NEEDS_SPACE, errno.ENOSPC),
    "input/output error once": Fault("fail once", CHANGES, errno.EIO),
    "input/output error for good": Fault("fail from", CHANGES, errno.EIO),
    "unreadable once": Fault("fail once", Kind.READ, errno.EIO),
    "permission denied for good": Fault("fail from", NEEDS_PERMISSION, errno.EACCES),
    "read-only for good": Fault("fail from", NEEDS_PERMISSION, errno.EROFS),
    "a short write": Fault("short", Kind.WRITE),
    "delayed": Fault("delay", CHANGES),
}


@dataclass(frozen=True)
class Command:
    """A command, and what is there when it begins.

    Attributes:
        arguments: Of strop, in the folder.
        begin: What is in the folder beside the recipe and what it needs.
        figures: What it prints even where no file in the run folder can be written.
    """

    arguments: tuple[str, ...]
    begin: Begin = "finished"
    figures: str | None = None


COMMANDS: dict[str, Command] = {
    "train": Command(("train", "small.yaml"), "nothing"),
    "train, resumed": Command(("train", "small.yaml"), "interrupted"),
    "train, finished": Command(("train", "small.yaml")),
    "evaluate": Command(("evaluate", "run", "--rows", "2", "--max-new-tokens", "4"), figures="held-out rows"),
    "evaluate to a file": Command(("evaluate", "run", "--rows", "2", "--answers", "answers.jsonl")),
    "export": Command(("export", "run")),
    "export merged": Command(("export", "run", "--to", "merged")),
    "export gguf": Command(("export", "run", "--to", "gguf")),
    "report": Command(("report", "run")),
    "chat": Command(("chat", "run", "--example", "--max-new-tokens", "4")),
    "runs": Command(("runs", ".")),
    "init": Command(("init", "train.jsonl", "--output", "new.yaml"), "nothing"),
    "check": Command(("check", "small.yaml"), "nothing"),
    "check, cached": Command(("check", "small.yaml")),
    "plan": Command(("plan", "small.yaml"), "nothing"),
}


class Sweep:
    """Folders to begin from, and what each command leaves when nothing disturbs it."""

    def __init__(self, server: FaultServer, scratch: Path) -> None:
        self.server, self._scratch = server, scratch
        self._begins: dict[str, Path] = {"nothing": scratch / "nothing"}
        self._wants: dict[str, Path] = {}
        self._calls: dict[str, list[int]] = {}
        self._seconds: dict[str, float] = {}
        self._begins["nothing"].mkdir()
        write_small_recipe(self._begins["nothing"])

    def begin(self, name: Begin) -> Path:
        """The folder that a trial begins with: of `other`, the run has other rows, settings and weights."""
        if name not in self._begins:
            folder = self._begins[name] = fresh(self._scratch / name, self._begins["nothing"])
            getattr(self, f"_make_{name}")(folder)
        return self._begins[name]

    def _make_finished(self, folder: Path) -> None:
        for arguments in (
            ("plan", "small.yaml", "--probe"),
            COMMANDS["train"].arguments,
            COMMANDS["evaluate"].arguments,
        ):
            ended = self.server.run(folder, arguments)
            assert ended.status == 0, ended

    def _make_interrupted(self, folder: Path) -> None:
        last = Fault("kill", Kind.RENAME, root=str(folder / "run/checkpoints/step-00000004"))
        assert self.server.run(folder, COMMANDS["train"].arguments, last).status == -9

    def _make_other(self, folder: Path) -> None:
        shutil.rmtree(folder)
        folder.mkdir()
        write_small_recipe(folder, seed=7, rows=9, learning_rate=2e-2)
        self._make_finished(folder)

    def want(self, name: str) -> Path:
        """The folder that a command leaves when nothing disturbs it."""
        if name not in self._wants:
            command = COMMANDS[name]
            self.server.run(fresh(self._scratch / "warm", self.begin(command.begin)), command.arguments, here=True)
            folder = fresh(self._scratch / f"want {name}", self.begin(command.begin))
            answer = self.server.run(folder, command.arguments, Fault("count", CHANGES))
            assert answer.status == 0, answer.output
            self._wants[name], self._calls[name], self._seconds[name] = folder, answer.calls, answer.seconds
        return self._wants[name]

    def seconds(self, name: str) -> float:
        """How long a command takes when nothing disturbs it."""
        self.want(name)
        return self._seconds[name]

    def calls(self, name: str, fault: str) -> int:
        """The file calls of a command at which a fault can strike."""
        self.want(name)
        return sum(self._calls[name][i] for i, kind in enumerate(Kind) if kind & FAULTS[fault].kinds)

    def made_folders(self, name: str) -> int:
        """How many folders a command makes."""
        self.want(name)
        return self._calls[name][list(Kind).index(Kind.MKDIR)]

    def trial(self, name: str, fault: str, at: int) -> tuple[Answer, list[str]]:
        """Strike a command at its n-th call, then run it again, and say what is wrong."""
        command, want, struck = COMMANDS[name], self.want(name), replace(FAULTS[fault], at=at)
        folder = fresh(self._scratch / "trial", self.begin(command.begin))
        answer = self.server.run(folder, command.arguments, struck)
        if not answer.hits:
            return answer, []
        wrong = wrong_when_struck(answer, struck, folder, want)
        if (
            command.figures
            and struck.kinds != Kind.READ
            and "/run/" in answer.hit
            and answer.status != -9
            and command.figures not in answer.output
        ):
            wrong.append(f"no figures where {answer.hit} failed")
        again = self.server.run(folder, command.arguments)
        if again.status != 0 and not any(said in again.output for said in ("exists already", "already exists")):
            last = (again.output.strip().splitlines() or [""])[-1]
            return answer, [*wrong, f"again: exit {again.status}: {last[:200]}"]
        return answer, [*wrong, *(f"again: {each}" for each in wrong_at_end(folder, want))]

    def everywhere(
        self, name: str, fault: str, first: int = 1, stride: int = 1
    ) -> Iterator[tuple[int, Answer, list[str]]]:
        """Trials at each n, or each `stride`-th, until the command makes fewer calls."""
        at = first
        while True:
            answer, wrong = self.trial(name, fault, at)
            if not answer.hits:
                return
            yield at, answer, wrong
            at += stride
