"""A wrong edit of one source file, and the list of them that people wrote: `edits/*.yaml`."""

from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "strop"
EDITS = Path(__file__).parent / "edits"


@dataclass(frozen=True, slots=True)
class Mutant:
    """Characters `start` to `end` of a file, and what stands there instead.

    Attributes:
        file: Relative to src/strop.
        start: Offset of the first character that is replaced.
        end: Offset behind the last one.
        new: The text that replaces them.
        tests: Those that must fail: paths or node ids, relative to tests.
    """

    file: str
    start: int
    end: int
    new: str
    tests: tuple[str, ...]

    def applied(self, text: str) -> str:
        return text[: self.start] + self.new + text[self.end :]

    def describe(self) -> str:
        """`file:line: the old text -> the new one`, on one line."""
        text = (SOURCE / self.file).read_text("utf-8")
        line = text.count("\n", 0, self.start) + 1
        old, new = (" ".join(part.split()) or "(nothing)" for part in (text[self.start : self.end], self.new))
        return f"{self.file}:{line}: {old} -> {new}"


class StaleError(Exception):
    """Edits of the list whose old text is not in its file exactly once: all of them, a line each."""


def listed(folder: Path) -> list[Mutant]:
    """The mutants of every list in a folder.

    Raises:
        StaleError: The source has changed, so these edits have to be written anew.
    """
    found: list[Mutant] = []
    stale: list[str] = []
    for path in sorted(folder.glob("*.yaml")):
        for file, entry in yaml.safe_load(path.read_text("utf-8")).items():
            text = (SOURCE / file).read_text("utf-8")
            for edit in entry["edits"]:
                old, new, tests = edit["old"], edit["new"], edit.get("tests", entry["tests"])
                if text.count(old) == 1 and old != new:
                    start = text.index(old)
                    found.append(Mutant(file, start, start + len(old), new, tuple(tests)))
                else:
                    stale.append(f"{path.name}: {file}: {text.count(old)} times: {old!r}")
    if stale:
        raise StaleError("\n".join(stale))
    return found
