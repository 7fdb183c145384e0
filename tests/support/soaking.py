"""How long tests that can go on for ever do so: a few rounds in CI, and SOAK_MINUTES in `make soak` and `make fuzz`."""

import os
import time
from collections.abc import Iterator

MINUTES = float(os.environ.get("SOAK_MINUTES", "0"))


def rounds(few: int, many: int | None = None) -> Iterator[int]:
    """Count rounds: `few` of them; while soaking, until the time is up, or at most `many`."""
    end, number = time.monotonic() + 60 * MINUTES, 0
    while number < few or (time.monotonic() < end and (many is None or number < many)):
        yield number
        number += 1
