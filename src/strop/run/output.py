"""A stream that may go away without ending a run: a closed terminal, `| head`, a full disk behind a redirection."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO


class Output:
    """A stream that may go away. After its first failure it is None, and nobody tries again."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream: IO[str] | None = stream

    @contextmanager
    def guarded(self) -> Iterator[IO[str] | None]:
        """The stream, or None once it has gone; a failure to write inside the block is dealt with here."""
        try:
            yield self._stream
        except (OSError, ValueError) as error:  # ValueError: the file object is closed
            broken, self._stream = self._stream, None
            _discard(broken)
            with suppress(OSError, ValueError):
                print(
                    f"strop: standard output has gone ({error}); training goes on, see metrics.jsonl",
                    file=sys.stderr,
                    flush=True,
                )


def _discard(stream: IO[str] | None) -> None:
    """Point a broken stream at /dev/null: what it buffers would fail again at exit, and turn 0 into 120."""
    with suppress(OSError, ValueError, AttributeError):
        assert stream is not None
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
