"""Text files as chunks of UTF-8, and their lines.

A line is bytes between b"\\n" and nothing else: `str.splitlines` and text mode also split at U+2028 and U+0085, which
are legal inside a JSON string, and decoding a whole file would lose the position of a bad byte.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from strop.data.readers.compression import unpacked_bytes
from strop.data.readers.encodings import as_utf8

MAX_ROW_BYTES = 16 << 20

Note = Callable[[str], None]
"""Is told in a few words, without the path, what was found in a file that one should know of."""


def read_text(path: Path, note: Note) -> Iterator[bytes]:
    """A file's text as UTF-8 without a byte order mark, in chunks, whatever its encoding and compression.

    Raises:
        DataError: It is no text, or damaged.
    """
    return as_utf8(lambda: unpacked_bytes(path, note), path, note)


def too_long() -> str:
    """The reason of a row that is too long."""
    return f"row too long: over {MAX_ROW_BYTES >> 20} MiB"


def numbered_lines(chunks: Iterator[bytes]) -> Iterator[tuple[int, bytes | None]]:
    """Line numbers from 1, and lines without their b"\\n"; None for a line that is too long."""
    number, rest, is_too_long = 0, b"", False
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            number += 1
            yield number, None if is_too_long or len(line) > MAX_ROW_BYTES else line
            is_too_long = False
        if len(rest) > MAX_ROW_BYTES:
            rest, is_too_long = b"", True
    if rest or is_too_long:
        yield number + 1, None if is_too_long or len(rest) > MAX_ROW_BYTES else rest
