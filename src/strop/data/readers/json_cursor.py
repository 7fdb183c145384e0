"""A place in a JSON text that is read as it is needed: a window moves over the file, and values are decoded in it."""

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from strop.data.json_values import BadRowError, Decode
from strop.data.readers.text import MAX_ROW_BYTES, too_long
from strop.errors import DataError

_SPACE = re.compile(r"[ \t\n\r]*")
_LONGEST_TOKEN = 16  # a literal or an escape that the window cuts is reported this close to its end


class Cursor:
    """Reads values and punctuation in turn.

    Every method raises DataError where the text is not JSON: nothing marks where the next row would start, so unlike
    JSON Lines it cannot be read past that point.

    Args:
        path: For messages.
        chunks: The file as UTF-8.
        decode: What decodes a value.
    """

    def __init__(self, path: Path, chunks: Iterator[bytes], decode: Decode) -> None:
        self._path = path
        self._decode = decode
        self._chunks = _decoded(chunks, path)
        self._text = ""
        self._at = 0
        self._line = 1
        self._counted = 0
        self._start = 0

    @property
    def line(self) -> int:
        """The line of the next character, from 1."""
        self._line += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        return self._line

    @property
    def has_escaped(self) -> bool:
        r"""Whether the value that was read last has a `\u` in it."""
        return self._text.find("\\u", self._start, self._at) >= 0

    def peek(self) -> str:
        """The next character that is no space, or "" at the end; what comes before it is passed over."""
        while True:
            self._at = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._read_on(1):
                return ""

    def take(self, character: str) -> bool:
        """Pass over this character, if it is next."""
        if self.peek() != character:
            return False
        self._at += 1
        return True

    def expect(self, character: str, begun: int) -> None:
        """Pass over this character, or refuse the file.

        Args:
            character: What must come next.
            begun: The line where the value began that it would end or continue.
        """
        found = self.peek()
        if not self.take(character):
            what = f"there is {found!r} in line {self.line}" if found else "there is nothing; the file may be cut short"
            raise DataError(f"{self._path}:{begun}: bad JSON: '{character}' expected after this, but {what}")

    def value(self) -> Any:
        """The next value, whole; at most as long as a row may be."""
        self.peek()
        while True:
            try:
                value, end = self._decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if self._is_certain(error) or not self._grow():
                    self._refuse(error)
            except BadRowError as error:
                raise DataError(f"{self._path}:{self.line}: {error}; this JSON cannot be read past it") from error
            except RecursionError as error:
                raise DataError(f"{self._path}:{self.line}: bad JSON: nested too deeply") from error
            else:
                if end < len(self._text) or not self._grow():  # a number could continue
                    self._start, self._at = self._at, end
                    return value

    def _is_certain(self, error: json.JSONDecodeError) -> bool:
        """Whether more text would not help."""
        return error.pos < len(self._text) - _LONGEST_TOKEN and not error.msg.startswith("Unterminated string")

    def _refuse(self, error: json.JSONDecodeError) -> NoReturn:
        line = self.line + self._text.count("\n", self._at, error.pos)
        where = f" in line {line}" if line > self.line else ""
        why = "" if self._is_certain(error) else "; the file may be cut short"
        raise DataError(f"{self._path}:{self.line}: bad JSON: {error.msg}{where}{why}") from error

    def _grow(self) -> bool:
        if len(self._text) - self._at > MAX_ROW_BYTES:
            raise DataError(f"{self._path}:{self.line}: {too_long()}")
        return self._read_on(len(self._text) - self._at)

    def _read_on(self, least: int) -> bool:
        """Move the window: drop what was passed over, and add this many characters, or as many as there are."""
        new = []
        while least > 0 and (text := next(self._chunks, "")):
            new.append(text)
            least -= len(text)
        if new:
            _ = self.line  # count what is dropped
            self._text = self._text[self._at :] + "".join(new)
            self._at = self._counted = 0
        return bool(new)


def _decoded(chunks: Iterator[bytes], path: Path) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    line = 1
    try:
        for chunk in chunks:
            if text := decoder.decode(chunk):
                yield text
            line += chunk.count(b"\n")
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        line += error.object.count(b"\n", 0, error.start)
        raise DataError(f"{path}:{line}: not UTF-8: byte 0x{error.object[error.start]:02x}") from error


def elements(cursor: Cursor, begun: int) -> Iterator[int]:
    """Stand at each element of an array in turn, for the caller to read.

    Args:
        cursor: Stands at the array.
        begun: The line that an array which does not end is said to begin in.

    Yields:
        The line of the element.
    """
    cursor.expect("[", begun)
    while cursor.peek() != "]":
        line = cursor.line
        yield line
        if not cursor.take(","):
            begun = line
            break
    cursor.expect("]", begun)


def members(cursor: Cursor) -> Iterator[str]:
    """Stand at each value of an object in turn, for the caller to read; yields its key."""
    begun = cursor.line
    cursor.expect("{", begun)
    while cursor.peek() != "}":
        if cursor.peek() != '"':
            cursor.expect('"', begun)
        key = cursor.value()
        cursor.expect(":", begun)
        yield key
        if not cursor.take(","):
            break
    cursor.expect("}", begun)
