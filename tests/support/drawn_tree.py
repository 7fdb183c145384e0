"""The tree of modules as docs/design.md draws it.

    src/strop/
      errors.py    what this file is for      gpus.py  and this one
      data/        what the folder is for; a file named in a text like this one, such as x.py, is not drawn
        store.py · build.py (how)      what both are for

A line ending in a slash, or with a slash before two spaces, opens a folder; what is indented by two more is in it. A
file is drawn where its whole name begins a line, or follows two spaces or a dot between files.
"""

import re
from typing import NamedTuple

_ENTRY = re.compile(r"(?:^|  +| · )(?P<name>\w+\.py)(?= |$)")
_FOLDER = re.compile(r"(?P<name>[\w/]+)/(?= {2}|$)")


class Drawn(NamedTuple):
    """A module in the drawing.

    Attributes:
        path: Under src/strop, such as `data/store.py`.
        start: Where its name is in the page.
        end: Where the name ends.
    """

    path: str
    start: int
    end: int


def drawn_modules(page: str) -> list[Drawn]:
    """All that the block which begins with `src/strop/` has."""
    found: list[Drawn] = []
    position, folders = page.index("\nsrc/strop/\n") + 1, ["src/strop"]
    for line in page[position:].splitlines(keepends=True):
        text = line.strip()
        depth = (len(line) - len(line.lstrip(" "))) // 2
        if text == "```" or (depth == 0 and folders[1:]):
            break
        del folders[depth:]
        if folder := _FOLDER.match(text):
            folders.append(folder["name"])
        else:
            inside = "/".join(folders[1:])
            offset = position + len(line) - len(line.lstrip(" "))
            for entry in _ENTRY.finditer(text):
                path = f"{inside}/{entry['name']}".lstrip("/")
                found.append(Drawn(path, offset + entry.start("name"), offset + entry.end("name")))
        position += len(line)
    return found
