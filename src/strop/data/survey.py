"""Rows read once from end to end, without a model: what they are, which cannot be used, and how they would split."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from strop.data.build import falls_into
from strop.data.examples import Conversation, Example, Fault
from strop.data.rows.columns import optional_columns
from strop.data.rows.fields import is_empty
from strop.data.sources import Source, read_examples
from strop.data.store import Split
from strop.readable import counted

PERCENTAGES = (5, 10, 20)
"""Parts of the rows to hold out, the best first; the others are for few rows."""
_ROWS_LOOKED_AT = 1000
_FAULTS_KEPT = 20


@dataclass
class Survey:
    """What was found.

    Attributes:
        rows_used: Rows that can be used.
        num_faults: Rows that cannot.
        faults: The first of these.
        unused: Number of rows with each key that is not used.
        template_needs: What of the rows a chat template must have a place for, beside questions and answers.
        found: What is out of the ordinary in the files, such as another encoding.
        columns: For each source, every part of its rows and the column that has it.
        percentage: The part to hold out, with which both sides have rows; None if there is none.
    """

    rows_used: int = 0
    num_faults: int = 0
    faults: list[Fault] = field(default_factory=list)
    unused: Counter[str] = field(default_factory=Counter)
    template_needs: set[str] = field(default_factory=set)
    found: list[str] = field(default_factory=list)
    columns: list[dict[str, str]] = field(default_factory=list)
    percentage: int | None = None


def survey(sources: Sequence[Source], seed: int, seen: Callable[[str], None] = lambda text: None) -> Survey:
    """Read every row of these sources, in constant memory.

    Args:
        sources: From `open_sources`.
        seed: Of the recipe, which decides the split.
        seen: Told now and then how many rows have been read.

    Raises:
        DataError: A file has no rows or cannot be read to its end.
    """
    found = Survey(columns=[_columns(source) for source in sources])
    held_out: Counter[int] = Counter()
    for number, row in enumerate(read_examples(sources, note=found.found.append), start=1):
        if number % _ROWS_LOOKED_AT == 0:
            seen(counted(number, "row"))
        if isinstance(row, Fault):
            found.num_faults += 1
            found.faults += [row] if len(found.faults) < _FAULTS_KEPT else []
            continue
        found.rows_used += 1
        found.unused.update(row.unused)
        found.template_needs.update(_template_needs(row.example))
        held_out.update(p for p in PERCENTAGES if falls_into(Split("validation", p, seed), row.example))
    found.percentage = next((p for p in PERCENTAGES if 0 < held_out[p] < found.rows_used), None)
    return found


def _template_needs(example: Example) -> Iterator[str]:
    if isinstance(example, Conversation):
        if example.tools or any(message.tool_calls or message.role == "tool" for message in example.messages):
            yield "tools"
        if any(message.reasoning for message in example.messages):
            yield "reasoning"
        if example.documents:
            yield "documents"


def _columns(source: Source) -> dict[str, str]:
    """The columns of a source's first rows; the optional ones may differ from row to row."""
    keys: dict[str, None] = {}
    for row in islice(source.rows(), _ROWS_LOOKED_AT):
        if not isinstance(row, Fault):
            keys |= dict.fromkeys(key for key, value in row[1].items() if not is_empty(value))
    columns = dict(source.shape.columns)
    for part, names in optional_columns(tuple(keys), source.shape.format).items():
        if names[0] not in columns.values():
            columns[part] = names[0]
    return columns
