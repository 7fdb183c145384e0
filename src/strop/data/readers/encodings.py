"""Which encoding a text file has, decided for the file as a whole, and its bytes as UTF-8.

A row that is not UTF-8 is a fault of that row. Only if no place in the file is UTF-8 beyond ASCII, and all of it makes
sense in cp1252, is it read as cp1252: a damaged UTF-8 file must not turn into wrong letters. A single byte beyond ASCII
may be either, so it stays a fault.
"""

import codecs
import re
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

from strop.data.readers.kinds import refuse_other_content
from strop.errors import DataError

BOM = codecs.BOM_UTF8
_HEAD_BYTES = 4096

_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",  # begins with UTF-16's, so it comes first
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
# Which of the first four bytes are zero: the first two characters of rows are ASCII, but for rare headers.
_ZEROS = {
    (False, True, False, True): "UTF-16-LE",
    (True, False, True, False): "UTF-16-BE",
    (False, True, True, True): "UTF-32-LE",
    (True, True, True, False): "UTF-32-BE",
}
# UTF-8 by its shape (valid or not: surrogates and overlong forms too), and how its quotes, dashes and euro begin.
_UTF8 = re.compile(rb"[\xc0-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf7][\x80-\xbf]{3}|\xe2[\x80\x82]")
_UNDEFINED = re.compile(rb"[\x81\x8d\x8f\x90\x9d]")
_ABOVE_ASCII = re.compile(rb"[\x80-\xff]")
# Words of another alphabet (Cyrillic, Greek, Hebrew), and signs that no Western word has inside or begins with: letters
# of cp1250, cp850 or Mac Roman.
_FOREIGN = re.compile(
    rb"[\xc0-\xff]{3,}|(?<=[a-z])[\x80\x82-\x84\x86-\x8c\x8e\x98\x9b\x9f\xa1-\xa9\xac\xaf\xb1-\xb3\xb5\xb6\xb8\xb9\xbc-\xbf]"
    rb"(?=[a-z])|[\x9f\xa3\xaf\xb3\xb9](?=[a-z\xc0-\xff])"
)


def as_utf8(open_bytes: Callable[[], Iterator[bytes]], path: Path, note: Callable[[str], None]) -> Iterator[bytes]:
    """A text file as UTF-8 without a byte order mark, in chunks; what cannot be decoded stays as it is, for its row.

    Args:
        open_bytes: The file's bytes from the start, each time that it is called: cp1252 takes a look at all of them.
        path: For messages.
        note: Told the encoding, if it is not UTF-8.

    Raises:
        DataError: It is no text (a workbook, a web page), or it begins as UTF-16 or UTF-32 and is not.
    """
    chunks = open_bytes()
    head = b""
    while len(head) < _HEAD_BYTES and (chunk := next(chunks, b"")):
        head += chunk
    refuse_other_content(path, head.removeprefix(BOM))
    if encoding := _marked(head):
        note(f"read as {encoding}")
        yield from _recode(chain([head], chunks), encoding, path)
        return
    for chunk in chain([head.removeprefix(BOM)], chunks):
        if not encoding and not chunk.isascii():
            # Up to here all was ASCII, the same in both.
            encoding = "cp1252" if _is_cp1252(open_bytes()) else "UTF-8"
            if encoding == "cp1252":
                note("read as cp1252")
        yield chunk.decode("cp1252").encode() if encoding == "cp1252" else chunk


def _marked(head: bytes) -> str | None:
    marked = next((name for mark, name in _MARKS.items() if head.startswith(mark)), None)
    return marked or _ZEROS.get(tuple(byte == 0 for byte in head[:4]))  # type: ignore[arg-type]


def _recode(chunks: Iterator[bytes], encoding: str, path: Path) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(encoding)()
    line = 1
    try:
        for chunk in chunks:
            text = decoder.decode(chunk)
            line += text.count("\n")
            if text:
                yield text.encode()
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        line += error.object.count(b"\n", 0, error.start)
        raise DataError(
            f"{path} begins as {encoding}, but from about line {line} on it is not: {error.reason}; "
            "it may be cut short. Save it again, as UTF-8"
        ) from error


def _is_cp1252(chunks: Iterator[bytes]) -> bool:
    """Whether every byte is defined in cp1252, none is part of UTF-8, and the text looks Western."""
    above_ascii = foreign = 0
    tail = b""
    for chunk in chunks:
        if tail.isascii() and chunk.isascii():
            continue
        joined = tail + chunk
        if _UTF8.search(joined) or _UNDEFINED.search(joined):
            return False
        above_ascii += len(_ABOVE_ASCII.findall(chunk))
        foreign += sum(len(found) for found in _FOREIGN.findall(chunk))
        tail = joined[-3:]
    return above_ascii > 1 and foreign * 10 <= above_ascii
