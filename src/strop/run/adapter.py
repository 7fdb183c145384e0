"""Whether the adapter of a run is what the run wrote. Neither safetensors nor JSON notices a flipped bit."""

from itertools import chain, count
from pathlib import Path

from strop.digest import sha256_of_file
from strop.errors import of_file
from strop.run.durable import writing
from strop.run.folder import RunFolder

CARD_FILE = "README.md"
"""The model card, which people edit."""

_LEAST = ("adapter_config.json", "adapter_model.safetensors")


def hashes(adapter: Path) -> dict[str, str]:
    """The SHA-256 of each file of an adapter by name, but for the card.

    Raises:
        OSError: One cannot be read.
    """
    found = sorted(path for path in adapter.iterdir() if path.name != CARD_FILE)
    return {path.name: sha256_of_file(path) for path in found}


def fault(folder: RunFolder) -> str | None:
    """What is wrong with the adapter of a finished run; None if it is what the run wrote.

    In a run folder of an older strop, whose run.json has no hashes, all that is asked is that its files are there.

    Raises:
        StorageError: It cannot be read. Whether it is damaged is not known then.
    """
    written = folder.begun.adapter or dict.fromkeys(_LEAST, "")
    try:
        found = hashes(folder.adapter)
    except FileNotFoundError:
        return f"{folder.adapter} is missing"
    except NotADirectoryError:
        return f"{folder.adapter} is not a folder"
    except OSError as error:
        raise of_file(error, error.filename or folder.adapter) from error
    for name, mark in written.items():
        if name not in found:
            return f"{folder.adapter / name} is missing"
        if mark and found[name] != mark:
            return f"{folder.adapter / name} is not what the run wrote: its SHA-256 is not the one in run.json"
    return None


def set_aside(folder: RunFolder) -> Path | None:
    """Give the adapter's folder a name that is free, so that nothing of it is lost; None if there is no such folder.

    Raises:
        StorageError: It cannot be renamed.
    """
    if not folder.adapter.exists():
        return None
    names = chain(["adapter-damaged"], (f"adapter-damaged-{number}" for number in count(2)))
    aside = next(path for name in names if not (path := folder.path / name).exists())
    with writing(aside):
        folder.adapter.rename(aside)
    return aside
