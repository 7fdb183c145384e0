"""A file's bytes, unpacked: gzip, zstd, bzip2 and xz. Its first bytes tell, and one that ends too early is refused.

The classes of the standard library that read compressed files ignore what follows the first damaged member (bzip2, xz),
and zstandard's takes a file that was cut short for a whole one. So the members are read here, one after the other.
"""

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from strop.errors import DataError
from strop.resolve import COMPRESSED_SUFFIXES
from strop.terminal import one_line

_CHUNK = 1 << 20
_COMPRESSED_CHUNK = 16 << 10  # of which gzip makes 16 MiB at most
_ZSTD_WINDOW = 1 << 31  # what `zstd --long=31` asks for; zstandard itself allows 128 MiB


def unpacked_bytes(path: Path, note: Callable[[str], None]) -> Iterator[bytes]:
    """The bytes of a file in chunks, none of them empty.

    Raises:
        DataError: A compressed file is damaged, cut short or followed by something else, or zstandard is missing.
    """
    with path.open("rb") as file:
        kind = _kind(file.read(4))
        file.seek(0)
        if kind:
            note(kind)
            yield from filter(None, _unpack(file, path, kind))
            return
        if path.suffix.lower() in COMPRESSED_SUFFIXES:
            note("not compressed, despite its name")
        while chunk := file.read(_CHUNK):
            yield chunk


def _kind(head: bytes) -> str | None:
    if head[1:] == b"\x2a\x4d\x18":  # a frame without content, which some writers of zstd begin with
        return "zstd"
    marks = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zX": "xz"}
    return next((kind for mark, kind in marks.items() if head.startswith(mark)), None)


def _unpack(file: BinaryIO, path: Path, kind: str) -> Iterator[bytes]:
    new, failures = _decoder(kind, path)
    decoder, rest = new(), b""
    while rest or (rest := file.read(_COMPRESSED_CHUNK)):
        if decoder.eof:
            rest = rest.lstrip(b"\0")  # tapes and some writers pad a file with zeros
            if not rest:
                continue
            decoder = new()
        try:
            yield from _decompressed(decoder, rest)
        except failures as error:
            raise DataError(f"{path} is damaged {kind}: {one_line(error)}; copy or download it again") from error
        rest = decoder.unused_data
    if not decoder.eof:
        raise DataError(f"{path} is cut short: its {kind} data has no end; copy or download it again")


def _decompressed(decoder: Any, packed: bytes) -> Iterator[bytes]:
    """What a decoder makes of some bytes, in chunks: of a few kilobytes, bzip2 and xz can make gigabytes."""
    if not hasattr(decoder, "needs_input"):
        yield decoder.decompress(packed)
        return
    yield decoder.decompress(packed, _CHUNK)
    while not (decoder.eof or decoder.needs_input):
        yield decoder.decompress(b"", _CHUNK)


def _decoder(kind: str, path: Path) -> tuple[Callable[[], Any], type[Exception] | tuple[type[Exception], ...]]:
    """What makes a decoder of one member, and the errors that it raises on damaged data."""
    match kind:
        case "gzip":
            return lambda: zlib.decompressobj(wbits=31), zlib.error
        case "bzip2":
            return bz2.BZ2Decompressor, (OSError, ValueError)
        case "xz":
            return lzma.LZMADecompressor, lzma.LZMAError
        case _:
            return _zstd(path)


def _zstd(path: Path) -> tuple[Callable[[], Any], type[Exception]]:
    try:
        import zstandard
    except ImportError as error:
        raise DataError(f"reading {path} needs zstandard: pip install 'strop[zstd]'") from error
    return zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj, zstandard.ZstdError
