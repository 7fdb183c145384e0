"""Damage of files at rest, in every file that strop reads, and whether a command that reads it notices."""

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fault_sweep import COMMANDS, Sweep
from fault_trials import Answer, fresh
from fault_verdicts import wrong_at_end

PAGE = 4096
Damage = Callable[[bytes, random.Random], bytes]


def flip_a_bit(data: bytes, draw: random.Random) -> bytes:
    bit = draw.randrange(8 * len(data))
    return data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]


def zero_a_page(data: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(0, len(data), PAGE)
    return data[:start] + bytes(len(data[start : start + PAGE])) + data[start + PAGE :]


DAMAGES: dict[str, Damage] = {
    "a bit": flip_a_bit,
    "a page of zeros": zero_a_page,
    "cut to nothing": lambda data, draw: b"",
    "cut to a byte": lambda data, draw: data[:1],
    "cut by half": lambda data, draw: data[: len(data) // 2],
    "cut by a byte": lambda data, draw: data[:-1],
}
"""Each gives other bytes, or the same where there is nothing to take."""
OTHER, GONE = "of another run", "gone"
ALL = (*DAMAGES, OTHER, GONE)

READERS: dict[str, tuple[str, ...]] = {
    "small.yaml": ("train, finished", "check, cached"),
    "train.jsonl": ("train, finished", "check, cached"),
    "validation.jsonl": ("train, finished", "evaluate"),
    "model/config.json": ("train, finished", "evaluate", "chat"),
    "model/model.safetensors": ("train, finished", "evaluate", "chat"),
    "model/tokenizer.json": ("train, finished", "evaluate", "chat"),
    "model/tokenizer_config.json": ("train, finished", "evaluate", "chat"),
    "run/run.json": ("train, finished", "evaluate", "report", "runs", "chat"),
    "run/recipe.yaml": ("train, finished", "evaluate", "report", "chat"),
    "run/metrics.jsonl": ("train, finished", "report", "runs"),
    "run/samples.jsonl": ("train, finished", "report"),
    "run/evaluation.json": ("report",),
    "run/plan.json": ("report",),
    "run/run.lock": ("train, finished", "report", "runs"),
    "run/adapter/adapter_model.safetensors": ("train, finished", "evaluate", "chat"),
    "run/adapter/adapter_config.json": ("train, finished", "evaluate", "chat"),
    "run/adapter/tokenizer.json": ("train, finished", "evaluate"),
    "run/adapter/tokenizer_config.json": ("train, finished",),
    "cache/tokens/*/input_ids.bin": ("train, finished", "check, cached"),
    "cache/tokens/*/learned.bin": ("train, finished", "check, cached"),
    "cache/tokens/*/offsets.bin": ("train, finished", "check, cached"),
    "cache/tokens/*/rows.bin": ("train, finished", "check, cached"),
    "cache/tokens/*/manifest.json": ("train, finished", "check, cached"),
}
"""What reads each kind of file of a finished run."""

NOT_MISSED = (("run/evaluation.json", GONE), ("run/plan.json", GONE))
"""A run need not have been evaluated or planned."""

READERS_ON_RESUME = (
    "run/run.json",
    "run/recipe.yaml",
    "run/metrics.jsonl",
    "run/samples.jsonl",
    "run/run.lock",
    "run/checkpoints/step-00000002/state.safetensors",
    "run/checkpoints/step-00000002/state.json",
    "run/checkpoints/step-00000002/manifest.json",
    "cache/tokens/*/input_ids.bin",
    "cache/tokens/*/manifest.json",
    "train.jsonl",
    "model/model.safetensors",
)
"""What a run reads that resumes."""


@dataclass(frozen=True)
class Case:
    """A file damaged in some way, and the command that reads it then."""

    file: str
    damage: str
    command: str


def cases() -> Iterator[Case]:
    """Every file with every damage and every command that reads it."""
    for file, commands in READERS.items():
        for damage in ALL:
            if (file, damage) not in NOT_MISSED:
                yield from (Case(file, damage, command) for command in commands)
    yield from (Case(file, damage, "train, resumed") for file in READERS_ON_RESUME for damage in ALL)


class Hospital:
    """Folders with damaged files, and verdicts on what commands make of them."""

    def __init__(self, sweep: Sweep, scratch: Path) -> None:
        self._sweep, self._scratch = sweep, scratch
        self._answers: dict[str, Answer] = {}

    def undisturbed(self, command: str) -> tuple[Answer, Path]:
        """What a command says and leaves where nothing is damaged."""
        if command not in self._answers:
            self._sweep.want(command)
            folder = fresh(self._scratch / f"sound {command}", self._sweep.begin(COMMANDS[command].begin))
            self._answers[command] = self._sweep.server.run(folder, COMMANDS[command].arguments)
        return self._answers[command], self._scratch / f"sound {command}"

    def verdict(self, case: Case, draw: random.Random) -> str:
        """`refused`, `the same`, `said`, or what is wrong."""
        sound, want = self.undisturbed(case.command)
        folder = fresh(self._scratch / "damaged", self._sweep.begin(COMMANDS[case.command].begin))
        path = draw.choice(sorted(folder.glob(case.file)))
        if not self._damage(path, case.damage, folder, draw):
            return "the same"
        answer = self._sweep.server.run(folder, COMMANDS[case.command].arguments)
        if "Traceback" in answer.output:
            return f"traceback: {answer.output.strip().splitlines()[-1]}"
        if answer.status != 0:
            return "refused" if answer.status in (2, 3, 4, 10) else f"exit {answer.status}: {answer.output[-300:]}"
        page = folder / "run/report.html"
        if path.name in answer.output or (case.command == "runs" and _marks_a_run(answer.output)):
            return "said"
        if case.command == "report" and _names(page, path) > _names(want, path):
            return "said"
        differs = [each for each in wrong_at_end(folder, want) if not _is_beside_it(each, folder, path)]
        if case.command == "report" and page.read_bytes() != (want / "run/report.html").read_bytes():
            differs.append("another page")
        if _plain(answer.output) != _plain(sound.output):
            differs.append("other output")
        return f"silent: {differs}" if differs else "the same"

    def _damage(self, path: Path, damage: str, folder: Path, draw: random.Random) -> bool:
        before = path.read_bytes()
        if damage == GONE:
            path.unlink()
            return True
        after = self._other(path, folder) if damage == OTHER else DAMAGES[damage](before, draw) if before else before
        path.write_bytes(after)
        return after != before

    def _other(self, path: Path, folder: Path) -> bytes:
        other = self._sweep.begin("other")
        twins = sorted(other.glob(re.sub(r"[0-9a-f]{64}", "*", str(path.relative_to(folder)))))
        return twins[0].read_bytes() if twins else path.read_bytes()


def _marks_a_run(output: str) -> bool:
    """Whether `strop runs` says that one is not as it was."""
    return "damaged" in output or "changed" in output


def _plain(output: str) -> str:
    """Without what depends on the clock."""
    return re.sub(r"\d+(\.\d+)? ?(s|ms|tok/s|samples/s)\b|[\d,.]+ tok/s.*", "", output)


def _names(page: Path, path: Path) -> int:
    """How often a run's page names a file."""
    page = page / "run/report.html" if page.is_dir() else page
    return page.read_text("utf-8").count(path.name)


def _is_beside_it(wrong: str, folder: Path, path: Path) -> bool:
    """Whether this is the damage itself, or another store in the cache, which changes nothing."""
    damaged = str(path.relative_to(folder))
    return wrong.startswith((damaged, "cache/")) or (damaged == "run/run.json" and wrong.startswith("the run's status"))
