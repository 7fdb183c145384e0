"""A recipe's data section -> a template and stores of samples, shared by training, `check` and `evaluate`."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from strop.data.build import build
from strop.data.row_shapes import Format
from strop.data.sources import detect_format, find_files, hash_file
from strop.data.store import CODE_VERSION, SampleStore, Split, StoreSettings, read_manifest
from strop.data.template import Template, load_template
from strop.errors import DataError
from strop.recipe import DataSection
from strop.resolve import cache_dir


@dataclass(frozen=True, slots=True)
class Dataset:
    """Tokenised rows and the template that rendered them.

    Attributes:
        template: Renders rows, and prompts for generation.
        train: Training samples.
        validation: Held-out samples, or None if the recipe names none.
        format: Shape of the rows.
        format_detected: The shape was detected from the rows' keys, not set by the recipe.
    """

    template: Template
    train: SampleStore
    validation: SampleStore | None
    format: Format
    format_detected: bool


def open_dataset(data: DataSection, tokenizer_folder: Path, max_seq_length: int, seed: int) -> Dataset:
    """Find, read, tokenise and cache a recipe's rows.

    Args:
        data: The recipe's section.
        tokenizer_folder: A vetted folder with tokenizer.json.
        max_seq_length: Tokens; longer samples are cut at their end.
        seed: Decides which rows `validation_split_percentage` takes.

    Raises:
        DataError, ModelError, RecipeError: What stops the run, with file:line if a row is at fault.
    """
    train_files = find_files(data.train_file)
    validation_files = find_files(data.validation_file, "data.validation_file") if data.validation_file else []
    detected = data.format == "auto"
    format: Format = detect_format(train_files + validation_files) if data.format == "auto" else data.format
    template = load_template(tokenizer_folder, data.template, format, data.train_on)
    percentage = 0 if validation_files else data.validation_split_percentage

    def store(files: list[Path], max_samples: int | None, split: Split | None) -> SampleStore:
        return open_or_build(
            files, template, StoreSettings(format, max_seq_length, data.on_bad_row, max_samples, split)
        )

    train_split = Split("train", percentage, seed) if percentage else None
    train = store(train_files, data.max_train_samples, train_split)
    validation = None
    if validation_files:
        validation = store(validation_files, data.max_eval_samples, None)
    elif percentage:
        validation = store(train_files, data.max_eval_samples, Split("validation", percentage, seed))
    return Dataset(template, train, validation, format, detected)


def open_or_build(files: Sequence[Path], template: Template, settings: StoreSettings) -> SampleStore:
    """The samples of these files: from the cache if it holds them intact, otherwise built now.

    Args:
        files: From `find_files`.
        template: Renders and tokenises; its fingerprint is part of the cache's key.
        settings: Everything else that determines the samples.

    Raises:
        BadRowsError: With on_bad_row=error: `faults` lists every faulty row of the files.
        DataError: No row is left, a file cannot be read, or the cache cannot be written.
    """
    folder = cache_dir() / "tokens" / _key(files, template, settings)
    manifest = read_manifest(folder)
    if manifest is None:
        try:
            build(folder, files, template, settings)
        except OSError as error:
            raise DataError(
                f"cannot write the token cache {folder}: {error}; set STROP_CACHE to another folder"
            ) from error
        manifest = read_manifest(folder)
        if manifest is None:
            raise DataError(f"the token cache {folder} was damaged while it was written; check the disk")
    return SampleStore(folder, manifest, files)


def _key(files: Sequence[Path], template: Template, settings: StoreSettings) -> str:
    contents = [(hash_file(file), file.suffix.lower()) for file in files]
    parts = [CODE_VERSION, contents, template.fingerprint, asdict(settings)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
