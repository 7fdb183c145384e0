"""A wrong edit of one source file, and the list of them that people wrote: `edits/*.yaml`."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "strop"
EDITS = Path(__file__).parent / "edits"


@dataclass(frozen=True, slots=True)
class Mutant:
    """A text of a file, and what stands there instead.

    Attributes:
        file: Relative to src/strop.
        start: Offset of the old text.
        line: Its line, from 1.
        old: The text that is replaced.
        new: The text that replaces it.
        tests: Those that must fail: paths or node ids, relative to tests.
    """

    file: str
    start: int
    line: int
    old: str
    new: str
    tests: tuple[str, ...]

    @classmethod
    def of(cls, file: str, text: str, start: int, end: int, new: str, tests: Iterable[str]) -> "Mutant":
        """The edit of characters `start` to `end` of a file's text."""
        return cls(file, start, text.count("\n", 0, start) + 1, text[start:end], new, tuple(tests))

    def applied(self, text: str) -> str:
        """The file's text with the edit; it must still be the text that the edit was made for."""
        end = self.start + len(self.old)
        assert text[self.start : end] == self.old, f"{self.file} changed meanwhile"
        return text[: self.start] + self.new + text[end:]

    def describe(self) -> str:
        """`file:line: the old text -> the new one`, on one line."""
        old, new = (" ".join(part.split()) or "(nothing)" for part in (self.old, self.new))
        return f"{self.file}:{self.line}: {old} -> {new}"


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
                    found.append(Mutant.of(file, text, start, start + len(old), new, tests))
                else:
                    stale.append(f"{path.name}: {file}: {text.count(old)} times: {old!r}")
    if stale:
        raise StaleError("\n".join(stale))
    return found
