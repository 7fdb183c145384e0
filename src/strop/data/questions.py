"""What the held-out rows ask, in their own words: for samples, evaluation, chat and the try-out of an export."""

from collections.abc import Collection, Iterator, Sequence

from strop.data.examples import Example, Fault, Origin
from strop.data.prompts import question_of
from strop.data.row_shapes import Format
from strop.data.sources import find_files, read_examples
from strop.recipe import DataSection


def held_out_specs(data: DataSection) -> Sequence[str]:
    """The files that held-out rows are in: those of their own, or the training files that they are split from."""
    return data.validation_file or data.train_file


def held_out_examples(data: DataSection, format: Format) -> Iterator[tuple[Origin, Example]]:
    """Every row of those files that can be used, in order.

    Raises:
        DataError: A file is missing or cannot be read.
    """
    for row in read_examples(find_files(held_out_specs(data)), format):
        if not isinstance(row, Fault):
            yield row


def questions_at(data: DataSection, format: Format, origins: Collection[Origin]) -> dict[Origin, str]:
    """What the rows at these places ask; reads no further than the last of them."""
    found: dict[Origin, str] = {}
    if origins:
        for origin, example in held_out_examples(data, format):
            if origin in origins:
                found[origin] = question_of(example)
            if len(found) == len(origins):
                break
    return found
