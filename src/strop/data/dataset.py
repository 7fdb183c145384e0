"""A recipe's data section -> a template and stores of samples, shared by training, `check` and `evaluate`."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from strop.data.build import build
from strop.data.files import hash_file
from strop.data.mixture import mixed
from strop.data.sources import Source, open_sources
from strop.data.store import CODE_VERSION, SampleStore, Split, StoreSettings, read_manifest
from strop.data.template import Template, load_template
from strop.errors import DataError, RecipeError
from strop.recipe import DataSection
from strop.resolve import cache_dir, data_suffix, writing_to_cache


@dataclass(frozen=True, slots=True)
class Dataset:
    """Tokenised rows and the template that rendered them.

    Attributes:
        template: Renders rows, and prompts for generation.
        distinct: Training samples, each once.
        train: Training samples as an epoch has them: of a mixture, some several times.
        validation: Held-out samples, or None if the recipe names none.
        sources: What the training rows were read from.
    """

    template: Template
    distinct: SampleStore
    train: SampleStore
    validation: SampleStore | None
    sources: tuple[Source, ...]

    @property
    def format(self) -> str:
        """The shapes of the training rows, for people."""
        return ", ".join(dict.fromkeys(source.shape.format for source in self.sources))

    @property
    def has_questions(self) -> bool:
        """Whether held-out rows ask something; documents and rows that are tokens already do not."""
        rows = self.validation.sources if self.validation else self.sources
        return all(source.shape.format not in ("text", "tokens") for source in rows)


def open_dataset(
    data: DataSection,
    tokenizer_folder: Path,
    max_seq_length: int,
    seed: int,
    seen: Callable[[str], None] = lambda text: None,
) -> Dataset:
    """Find, read, tokenise and cache a recipe's rows.

    Args:
        data: The recipe's section.
        tokenizer_folder: A vetted folder with tokenizer.json.
        max_seq_length: Tokens; longer samples are treated as data.long_samples says.
        seed: Decides which rows `validation_split_percentage` takes.
        seen: Told now and then how many rows have been read, such as `2,048 rows`.

    Raises:
        DataError, ModelError, RecipeError: What stops the run, with file:line if a row is at fault.
    """
    sources = open_sources(data, data.train_file)
    held_out = open_sources(data, data.validation_file, "data.validation_file") if data.validation_file else []
    template = template_of(data, tokenizer_folder, [*sources, *held_out])
    percentage = 0 if held_out else data.validation_split_percentage

    def store(sources: list[Source], max_samples: int | None, split: Split | None) -> SampleStore:
        settings = StoreSettings(
            max_seq_length,
            data.on_bad_row,
            max_samples,
            split,
            data.system,
            data.long_samples,
            data.long_overlap,
        )
        return open_or_build(sources, template, settings, seen)

    distinct = store(sources, data.max_train_samples, Split("train", percentage, seed) if percentage else None)
    validation = None
    if held_out:
        validation = store(held_out, data.max_eval_samples, None)
    elif percentage:
        validation = store(sources, data.max_eval_samples, Split("validation", percentage, seed))
    return Dataset(template, distinct, mixed(distinct), validation, tuple(sources))


def template_of(data: DataSection, tokenizer_folder: Path, sources: Sequence[Source]) -> Template:
    """The template that renders the rows of these sources.

    Raises:
        ModelError, RecipeError: It cannot be used, or a key of the recipe needs another one.
    """
    formats = [source.shape.format for source in sources]
    template = load_template(tokenizer_folder, data.template, formats, data.train_on, data.chat_template, data.system)
    if not template.chat:
        for key in ("system", "chat_template"):
            if getattr(data, key):
                raise RecipeError(f"data.{key} needs a chat template, but these rows are rendered by {template.name}")
    if data.long_samples == "split" and "text" not in formats:
        raise RecipeError(
            f"data.long_samples=split splits documents (text rows), but these are {', '.join(sorted(set(formats)))}; "
            "use cut or drop"
        )
    return template


def open_or_build(
    sources: Sequence[Source],
    template: Template,
    settings: StoreSettings,
    seen: Callable[[str], None] = lambda text: None,
) -> SampleStore:
    """The samples of these sources: from the cache if it holds them intact, otherwise built now.

    Args:
        sources: From `open_sources`.
        template: Renders and tokenises; its fingerprint is part of the cache's key.
        settings: Everything else that determines the samples.
        seen: Told now and then how many rows have been read.

    Raises:
        BadRowsError: With on_bad_row=error: `faults` lists every faulty row of the files.
        DataError: No row is left, or a file cannot be read.
        StorageError: The cache cannot be written.
    """
    folder = cache_dir() / "tokens" / _key(sources, template, settings)
    manifest = read_manifest(folder)
    if manifest is None:
        with writing_to_cache():
            build(folder, sources, template, settings, seen)
        manifest = read_manifest(folder)
        if manifest is None:
            raise DataError(f"the token cache {folder} was damaged while it was written; check the disk")
    return SampleStore(folder, manifest, sources)


def _key(sources: Sequence[Source], template: Template, settings: StoreSettings) -> str:
    contents = [
        [(hash_file(file), file.suffix.lower(), data_suffix(file)) for file in source.files] for source in sources
    ]
    readings = [source.reading() for source in sources]
    parts = [CODE_VERSION, contents, readings, template.fingerprint, asdict(settings)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
