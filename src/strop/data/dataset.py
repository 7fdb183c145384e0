"""A recipe's data section -> template and stores: what training, `check` and `evaluate` share."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from strop.data.build import open_or_build
from strop.data.shapes import Format
from strop.data.sources import detect_format, find_files
from strop.data.store import SampleStore, Settings, Split
from strop.data.template import Template, load_template

if TYPE_CHECKING:
    from strop.recipe import DataSection


@dataclass(frozen=True, slots=True)
class Dataset:
    """Tokenised rows and what made them.

    Attributes:
        template: Renders rows, and prompts for generation.
        train: Training samples.
        validation: Held-out samples, or None if the recipe names none.
        format: Shape of the rows.
        format_detected: The shape was found from the rows' keys, not set by the recipe.
    """

    template: Template
    train: SampleStore
    validation: SampleStore | None
    format: Format
    format_detected: bool


def open_dataset(data: "DataSection", tokenizer_folder: Path, max_seq_length: int, seed: int) -> Dataset:
    """Find, read, tokenise and cache a recipe's rows.

    Args:
        data: The recipe's section.
        tokenizer_folder: A vetted folder with tokenizer.json.
        max_seq_length: Tokens; longer samples are cut at their end.
        seed: Decides which rows `validation_split_percentage` takes.

    Raises:
        DataError, ModelError, RecipeError: What stops the run, with file:line where it is in a row.
    """
    train_files = find_files(data.train_file)
    validation_files = find_files(data.validation_file, "data.validation_file") if data.validation_file else []
    detected = data.format == "auto"
    format: Format = detect_format(train_files + validation_files) if data.format == "auto" else data.format
    template = load_template(tokenizer_folder, data.template, format, data.train_on)
    percentage = 0 if validation_files else data.validation_split_percentage

    def store(files: list[Path], max_samples: int | None, split: Split | None) -> SampleStore:
        return open_or_build(files, template, Settings(format, max_seq_length, data.on_bad_row, max_samples, split))

    train_split = Split("train", percentage, seed) if percentage else None
    train = store(train_files, data.max_train_samples, train_split)
    validation = None
    if validation_files:
        validation = store(validation_files, data.max_eval_samples, None)
    elif percentage:
        validation = store(train_files, data.max_eval_samples, Split("validation", percentage, seed))
    return Dataset(template, train, validation, format, detected)
