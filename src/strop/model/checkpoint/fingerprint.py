"""Which base model a run was trained on, told in well under a second for any size of checkpoint."""

import hashlib
import os
from pathlib import Path

BLOCK_BYTES = 4096
SAMPLED_BLOCKS = 64
_MAX_HEADER_BYTES = 100 << 20


def fingerprint_folder(folder: Path) -> str:
    """A digest that tells one checkpoint from another.

    The rule: SHA-256 over config.json and, for each *.safetensors file in order of name, its name, size,
    whole header and sampled bytes (see `fingerprint_file`). Another checkpoint, or the same one trained
    further, differs in nearly every weight and so in every sampled block. A single flipped bit is most
    likely not seen, and this is no protection against a forger.

    Args:
        folder: A vetted model folder.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in sorted(folder.glob("*.safetensors")):
        digest.update(f"\n{file.name}\n{fingerprint_file(file)}\n".encode())
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            digest.update(stream.read(min(size, _MAX_HEADER_BYTES)))
    return digest.hexdigest()


def fingerprint_file(file: Path) -> str:
    """SHA-256 over a file's size and 66 blocks of 4 KiB: 64 evenly spaced ones, the first and the last.

    Returns:
        64 hexadecimal digits. A file of up to 264 KiB is hashed whole.
    """
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        digest.update(f"{size}\n".encode())
        if size <= (SAMPLED_BLOCKS + 2) * BLOCK_BYTES:
            digest.update(stream.read())
            return digest.hexdigest()
        last = size - BLOCK_BYTES
        for offset in (*(last * i // (SAMPLED_BLOCKS + 1) for i in range(SAMPLED_BLOCKS + 1)), last):
            stream.seek(offset)
            digest.update(stream.read(BLOCK_BYTES))
    return digest.hexdigest()
