"""A file's SHA-256: what a file is held against wherever strop wrote down what it was."""

import hashlib
from pathlib import Path


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's content, in 64 hexadecimal digits; read in blocks, so a large file takes no memory.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
