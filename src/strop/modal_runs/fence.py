"""Which of two containers may write to a run: the one that began last.

Volumes have no locks between containers; the last write wins. So each attempt puts its number and a random token into
`fence.json` and commits it. Whoever finds another's token there is the older one, and stops.
"""

import json
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from strop.run.durable import make_folder, replace_file

FENCE_FILE = "fence.json"


class Storage(Protocol):
    """The Volume that holds the runs."""

    def reload(self) -> None:
        """Show here what others have committed; allowed only while no file on it is open.

        Raises:
            OSError: It cannot be done now.
        """

    def commit(self) -> None:
        """Make what was written here durable and visible to others.

        Raises:
            OSError: It is not, now.
        """

    def read(self, path: str) -> bytes:
        """A file as it was last committed by anyone, whatever is open here.

        Raises:
            OSError: It is not there, or cannot be had now.
        """


@dataclass(frozen=True)
class Fence:
    """An attempt's claim on a run.

    Attributes:
        path: Of fence.json, from the root of the Volume.
        attempt: 1 for the run's first.
        token: Unlike any other attempt's.
    """

    path: str
    attempt: int
    token: str

    def is_overtaken(self, storage: Storage) -> bool:
        """Whether a newer attempt has begun. False where that cannot be found out now: asked again soon."""
        try:
            found = _parse(storage.read(self.path))
        except OSError:
            return False
        return str(found.get("token", self.token)) != self.token


def raise_fence(runs: Path, run_id: str, storage: Storage) -> Fence:
    """Claim a run for this attempt; any that is still going on will find itself overtaken."""
    file = runs / run_id / FENCE_FILE
    before = _parse(file.read_bytes()) if file.exists() else {}
    fence = Fence(f"{run_id}/{FENCE_FILE}", int(before.get("attempt", 0)) + 1, secrets.token_hex(16))
    make_folder(file.parent)
    replace_file(file, json.dumps({"attempt": fence.attempt, "token": fence.token}).encode())
    storage.commit()
    return fence


def _parse(data: bytes) -> dict[str, Any]:
    """The contents of a fence, or nothing where it is torn: the next one overwrites it."""
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
