"""Decides which of two containers may write to a run: the one that started last.

Volumes have no locks between containers; the last write wins. So each attempt writes its number and a random token to
`fence.json` and commits it. An attempt that finds another token there is the older one, and stops.
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
        """Make visible what others have committed; allowed only while no file on the Volume is open.

        Raises:
            OSError: This is not possible now.
        """

    def commit(self) -> None:
        """Make what was written here durable and visible to others.

        Raises:
            OSError: This failed; it may work later.
        """

    def read(self, path: str) -> bytes:
        """Read a file as anyone last committed it, even while files are open here.

        Raises:
            OSError: It does not exist, or cannot be read now.
        """


@dataclass(frozen=True)
class Fence:
    """An attempt's claim on a run.

    Attributes:
        path: Path of fence.json on the Volume.
        attempt: 1 for the run's first attempt.
        token: Unique to this attempt.
    """

    path: str
    attempt: int
    token: str

    def is_overtaken(self, storage: Storage) -> bool:
        """Whether a newer attempt has started; False if that is unknown now, since the caller asks again soon."""
        try:
            found = _parse(storage.read(self.path))
        except OSError:
            return False
        return str(found.get("token", self.token)) != self.token


def raise_fence(runs: Path, run_id: str, storage: Storage) -> Fence:
    """Claim a run for this attempt; an older one that is still running will notice and stop."""
    file = runs / run_id / FENCE_FILE
    before = _parse(file.read_bytes()) if file.exists() else {}
    fence = Fence(f"{run_id}/{FENCE_FILE}", int(before.get("attempt", 0)) + 1, secrets.token_hex(16))
    make_folder(file.parent)
    replace_file(file, json.dumps({"attempt": fence.attempt, "token": fence.token}).encode())
    storage.commit()
    return fence


def _parse(data: bytes) -> dict[str, Any]:
    """The contents of a fence, or nothing if it is damaged: the next one overwrites it."""
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
