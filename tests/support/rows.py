"""Rows as files, as sources, as examples and as samples."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from strop.data.dataset import open_or_build
from strop.data.examples import Example, Fault
from strop.data.sources import Source, open_sources, read_examples
from strop.data.store import SampleStore, StoreSettings
from strop.data.template import Encoded, Template
from strop.errors import DataError
from strop.recipe import DataFile, DataSection

CHATML = r"""
{%- if tools %}
{{- '<|im_start|>system\n' }}
{%- for tool in tools %}{{ tool | tojson }}{{ '\n' }}{% endfor %}
{{- '<|im_end|>\n' }}
{%- endif %}
{%- if documents %}
{{- '<|im_start|>documents\n' }}
{%- for document in documents %}{{ document.title }}: {{ document.text }}{{ '\n' }}{% endfor %}
{{- '<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\n' }}
{%- if message.reasoning_content %}{{ '<think>\n' + message.reasoning_content + '\n</think>\n\n' }}{% endif %}
{{- message.content or '' }}
{%- for call in message.tool_calls or [] %}
{{- '<tool_call>' + call.function | tojson + '</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}
"""
"""A chat template with a place for everything that a row can say: tools, documents, reasoning and calls."""


def write_rows(path: Path, rows: Iterable[Any]) -> Path:
    """A JSONL file of rows; one that is a text is a line as it is."""
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("".join(line + "\n" for line in lines), "utf-8")
    return path


def sources(*paths: Path, **entry: Any) -> list[Source]:
    """The sources of some files, each an entry of data.train_file with the same keys."""
    files = tuple(DataFile(path=str(path), **entry) for path in paths)
    return open_sources(DataSection(train_file=files), files)


def examples(*paths: Path, **entry: Any) -> list[Example | Fault]:
    """What is read of the rows of some files."""
    return [row if isinstance(row, Fault) else row.example for row in read_examples(sources(*paths, **entry))]


def open_store(path: Path, template: Template, max_seq_length: int = 128, **settings: Any) -> SampleStore:
    """The samples of a file."""
    return open_or_build(sources(path), template, StoreSettings(max_seq_length, **settings))


def read_aloud(template: Template, samples: Iterable[Encoded]) -> list[list[str]]:
    """For each sample what is learned of it, as text: a piece for each run of learned tokens."""
    return [[text for text, is_learned in _runs(template, sample) if is_learned] for sample in samples]


class Learned(NamedTuple):
    """What becomes of a row: its shape, what is learned of it but the stop tokens, and its keys that are not used."""

    shape: str
    answers: list[str]
    unused: tuple[str, ...] = ()


def verdict(path: Path, template: Template, **entry: Any) -> Learned | str:
    """What becomes of a file's first row, or why it is refused."""
    try:
        [source] = sources(path, **entry)
        row = next(read_examples([source]))
        if isinstance(row, Fault):
            return row.reason
        [samples] = template.encode([row.example])
    except DataError as error:
        return str(error)
    answers = [text for sample in read_aloud(template, samples) for text in sample]
    stop = template.tokenizer.eos_token
    assert source.shape.format == "tokens" or all(text.endswith(stop) for text in answers)
    return Learned(source.shape.format, [text.removesuffix(stop) for text in answers], row.unused)


def require_verdict(found: Learned | str, expected: Learned | str) -> None:
    """Require what is learned, or a reason (a regular expression)."""
    if isinstance(expected, Learned):
        assert found == expected
    else:
        assert isinstance(found, str), found
        assert re.search(expected, found), found


def _runs(template: Template, sample: Encoded) -> list[tuple[str, bool]]:
    runs: list[tuple[list[int], bool]] = []
    for token, is_learned in zip(sample.input_ids.tolist(), sample.learned.tolist(), strict=True):
        if not runs or runs[-1][1] != is_learned:
            runs.append(([], is_learned))
        runs[-1][0].append(token)
    return [(template.tokenizer.decode(ids), is_learned) for ids, is_learned in runs]
