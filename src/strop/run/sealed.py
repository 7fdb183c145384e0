"""Files of JSON whose last key is a digest of the others: an edit or a flipped bit is noticed.

JSON notices most flipped bits by itself, but none in a figure.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from strop.run.durable import replace_file
from strop.run.lenient import parse_json
from strop.run.records import read_bytes

_SEAL = "seal"


def write_sealed(path: Path, contents: Mapping[str, Any]) -> None:
    """Put a file in place.

    Raises:
        StorageError: It cannot be written. The old content is as it was.
    """
    plain = parse_json(json.dumps(dict(contents)).encode())  # as it is read
    text = json.dumps(plain | {_SEAL: _seal(plain)}, indent=2, ensure_ascii=False)
    replace_file(path, text.encode() + b"\n")


def read_sealed(path: Path) -> Any:
    """What was written; that of an older strop may have no seal.

    Raises:
        ValueError, RecursionError: It is no JSON, or was changed.
        StorageError: It cannot be read.
    """
    contents = parse_json(read_bytes(path))
    if isinstance(contents, dict) and contents.pop(_SEAL, None) not in (None, _seal(contents)):
        raise ValueError("it was changed after strop wrote it")
    return contents


def _seal(contents: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(contents).encode()).hexdigest()
