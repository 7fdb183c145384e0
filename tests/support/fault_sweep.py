"""A command of strop with a fault at its n-th file call, for any n: one trial, and all of them."""

import errno
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from fault_shim import CHANGES, NEEDS_PERMISSION, NEEDS_SPACE, Fault, Kind
from fault_trials import Answer, FaultServer, fresh
from fault_verdicts import wrong_at_end, wrong_when_struck
from small_runs import write_small_recipe

Begin = Literal["nothing", "interrupted", "finished"]

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
        arguments: RECIPE and ROWS stand for the recipe and its training rows.
        begin: What is in the folder.
        figures: What it prints even where no file in the run folder can be written.
    """

    arguments: tuple[str, ...]
    begin: Begin = "finished"
    figures: str | None = None


COMMANDS: dict[str, Command] = {
    "train": Command(("train", "RECIPE"), "nothing"),
    "train, resumed": Command(("train", "RECIPE"), "interrupted"),
    "train, finished": Command(("train", "RECIPE")),
    "evaluate": Command(("evaluate", "run", "--rows", "2", "--max-new-tokens", "4"), figures="held-out rows"),
    "evaluate to a file": Command(("evaluate", "run", "--rows", "2", "--answers", "answers.jsonl")),
    "export": Command(("export", "run")),
    "export merged": Command(("export", "run", "--to", "merged")),
    "export gguf": Command(("export", "run", "--to", "gguf")),
    "report": Command(("report", "run")),
    "init": Command(("init", "ROWS", "--output", "new.yaml"), "nothing"),
    "check": Command(("check", "RECIPE"), "nothing"),
    "plan": Command(("plan", "RECIPE"), "nothing"),
}


class Sweep:
    """Folders to begin from, and what each command leaves when nothing disturbs it."""

    def __init__(self, server: FaultServer, scratch: Path) -> None:
        self.server, self._scratch = server, scratch
        base = scratch / "base"
        base.mkdir()
        self._words = {"RECIPE": str(write_small_recipe(base)), "ROWS": str(base / "train.jsonl")}
        self._begins: dict[str, Path | None] = {"nothing": None}
        self._wants: dict[str, Path] = {}

    def arguments(self, command: Command) -> list[str]:
        """What strop is called with."""
        return [self._words.get(word, word) for word in command.arguments]

    def begin(self, name: Begin) -> Path | None:
        """The folder that a trial begins with."""
        if name not in self._begins:
            train = self.arguments(COMMANDS["train"])
            folder = fresh(self._scratch / name, None)
            last = Fault("kill", Kind.RENAME, root=str(folder / "run/checkpoints/step-00000004"))
            ended = self.server.run(folder, train, last if name == "interrupted" else None)
            assert ended.status == (-9 if name == "interrupted" else 0), ended
            self._begins[name] = folder
        return self._begins[name]

    def want(self, name: str) -> Path:
        """The folder that a command leaves when nothing disturbs it."""
        if name not in self._wants:
            command = COMMANDS[name]
            arguments = self.arguments(command)
            self.server.run(fresh(self._scratch / "warm", self.begin(command.begin)), arguments, here=True)
            folder = fresh(self._scratch / f"want {name}", self.begin(command.begin))
            answer = self.server.run(folder, arguments)
            assert answer.status == 0, answer.output
            self._wants[name] = folder
        return self._wants[name]

    def calls(self, name: str, fault: str) -> int:
        """The file calls of a command at which a fault can strike."""
        want = self.want(name)
        folder = fresh(self._scratch / "counted", self.begin(COMMANDS[name].begin))
        counted = replace(FAULTS[fault], mode="count")
        assert want
        return self.server.run(folder, self.arguments(COMMANDS[name]), counted).calls

    def trial(self, name: str, fault: str, at: int) -> tuple[Answer, list[str]]:
        """Strike a command at its n-th call, then run it again, and say what is wrong."""
        command, want, struck = COMMANDS[name], self.want(name), replace(FAULTS[fault], at=at)
        arguments = self.arguments(command)
        folder = fresh(self._scratch / "trial", self.begin(command.begin))
        answer = self.server.run(folder, arguments, struck)
        if not answer.hits:
            return answer, []
        wrong = wrong_when_struck(answer, struck, folder, want)
        if command.figures and "/run/" in answer.hit and answer.status != -9 and command.figures not in answer.output:
            wrong.append(f"no figures where {answer.hit} failed")
        again = self.server.run(folder, arguments)
        if again.status != 0:
            last = (again.output.strip().splitlines() or [""])[-1]
            return answer, [*wrong, f"again: exit {again.status}: {last[:200]}"]
        return answer, [*wrong, *(f"again: {each}" for each in wrong_at_end(folder, want))]

    def everywhere(self, name: str, fault: str, first: int = 1, stride: int = 1) -> Iterator[tuple[int, Answer, list[str]]]:
        """Trials at each n, or each `stride`-th, until the command makes fewer calls."""
        at = first
        while True:
            answer, wrong = self.trial(name, fault, at)
            if not answer.hits:
                return
            yield at, answer, wrong
            at += stride
