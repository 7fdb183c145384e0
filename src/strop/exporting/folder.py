"""The folder of an export: it appears under its name complete and on disk, or not at all; what every export includes.

So that other programs prompt and stop as in training, tokenizer, template and stop tokens go with the weights.
"""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from strop.data.template import Template
from strop.errors import RecipeError, StropError
from strop.exporting.templates import as_jinja
from strop.run.durable import TEMPORARY, sync_folder

_TOKENIZER_KEYS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "pad_token",
    "add_bos_token",
    "clean_up_tokenization_spaces",
    "model_max_length",
)
"""The keys kept of tokenizer_config.json. The others are in tokenizer.json too, or mean different things to different
versions of transformers."""


@contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """Yield a hidden folder beside `target` to write to; it is renamed to `target` if the block succeeds.

    A killed process leaves the hidden folder behind. No loader is ever given its name, and the next export to the same
    place removes it.

    Raises:
        RecipeError: The target exists, or its parent cannot be written to.
        StropError: The disk is full or fails.
    """
    refuse_existing(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for left in target.parent.glob(f"{TEMPORARY}{target.name}-*"):
            shutil.rmtree(left, ignore_errors=True)
        work = Path(tempfile.mkdtemp(prefix=f"{TEMPORARY}{target.name}-", dir=target.parent))
    except OSError as error:
        raise RecipeError(f"cannot write {target}: {error.strerror}; choose another folder with --output") from error
    try:
        yield work
        _make_durable(work)
        refuse_existing(target)  # rename would replace an empty folder
        os.rename(work, target)
        sync_folder(target.parent)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG):
            raise
        raise StropError(f"cannot write {target}: {error.strerror}; nothing was left there") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def refuse_existing(target: Path) -> None:
    """Make sure that nothing is overwritten.

    Raises:
        RecipeError: The target exists.
    """
    if target.exists() or target.is_symlink():
        raise RecipeError(f"{target} already exists; choose another folder with --output, or remove it")


def write_tokenizer(template: Template, model_folder: Path, folder: Path) -> None:
    """Write the base's tokenizer, the training template as its chat template, and every stop token.

    The tokenizer class is the one that uses tokenizer.json as it is. For a LlamaTokenizer, transformers 5 would build
    another normaliser, and Phi-3's prompts would get other ids than in training (see `strop.data.tokenizer`). The
    base's sampling settings are dropped, because answers were scored without them.

    Args:
        template: The training template.
        model_folder: The base's folder.
        folder: Where to write the files.
    """
    for name in ("tokenizer.json", "tokenizer.model"):  # other programs' converters need the second
        if (model_folder / name).exists():
            shutil.copyfile(model_folder / name, folder / name)
    found = json.loads((model_folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    config = {key: found[key] for key in _TOKENIZER_KEYS if key in found}
    write_json(folder / "tokenizer_config.json", config | {"tokenizer_class": "PreTrainedTokenizerFast"})
    (folder / "chat_template.jinja").write_text(as_jinja(template), encoding="utf-8")
    tokenizer = template.tokenizer
    ids = {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    known = {key: value for key, value in ids.items() if value is not None}
    write_json(folder / "generation_config.json", known | {"eos_token_id": sorted(template.stop_ids)})


def write_json(path: Path, value: Any) -> None:
    """Write JSON indented, for people to read."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _make_durable(folder: Path) -> None:
    """Wait until every file is on disk, and let others read them: mkdtemp and safetensors create them private."""
    for path in folder.iterdir():
        path.chmod(0o644)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    folder.chmod(0o755)
    sync_folder(folder)
