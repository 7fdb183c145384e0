"""Rows as they are in well-known data sets and in the files of other tools and services: read, or refused by name.

tests/fixtures/real_rows.jsonl has a row a line, with its shape, what is learned of it and its keys that are not used,
or the reason why it is refused. Change a line only where the new verdict is right.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from rows import CHATML, Learned, examples, require_verdict, verdict, write_rows
from strop.data.examples import Conversation
from strop.data.template import Template, load_template

FIXTURES = Path(__file__).parents[2] / "fixtures"
CASES = {case["name"]: case for case in map(json.loads, (FIXTURES / "real_rows.jsonl").read_text("utf-8").splitlines())}
USER, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Template:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STROP_CACHE", str(tmp_path_factory.mktemp("cache")))
        return load_template(FIXTURES / "smollm2-tokenizer", "chat", ["messages"], chat_template=CHATML)


@pytest.mark.parametrize("name", CASES)
def test_a_real_row(tmp_path: Path, template: Template, name: str) -> None:
    case = CASES[name]
    expected: Learned | str = re.escape(case["refused"]) if "refused" in case else learned(case)
    require_verdict(verdict(write_rows(tmp_path / "rows.jsonl", [case["row"]]), template), expected)


def learned(case: dict[str, Any]) -> Learned:
    return Learned(case["shape"], case["learned"], tuple(case.get("unused", ())))


PAIR = {"prompt": "a", "completion": "b"}
MARKED: dict[str, tuple[dict[str, Any], Learned | str]] = {
    "a word as label": (PAIR | {"label": "good"}, Learned("prompt_completion", ["b"], ("label",))),
    "a class as label": (PAIR | {"label": 3}, Learned("prompt_completion", ["b"], ("label",))),
    "a desirable answer": (PAIR | {"label": True}, Learned("prompt_completion", ["b"])),
    "a column of losses": (PAIR | {"loss": 0.25}, Learned("prompt_completion", ["b"], ("loss",))),
    "the name of a split": (PAIR | {"train": "fold 3"}, Learned("prompt_completion", ["b"], ("train",))),
    "weight in a cell": (PAIR | {"weight": "0"}, "not to be learned: 'weight' is '0'"),
    "half a weight in a cell": (PAIR | {"weight": "0.5"}, "weight 0.5"),
    "other letters": (PAIR | {" Label": False}, "undesirable answer: 'label' is false"),
    "a list of a row's turns": (
        {"messages": [USER, ANSWER, USER, ANSWER], "masked": [True, True, True, False]},
        Learned("messages", ["b"]),
    ),
    "a list for other turns": (
        {"messages": [USER, ANSWER], "train": [True]},
        "mask does not fit: 'train' has 1 values",
    ),
}


@pytest.mark.parametrize("name", MARKED)
def test_a_row_that_says_whether_it_is_learned(tmp_path: Path, template: Template, name: str) -> None:
    row, expected = MARKED[name]
    require_verdict(verdict(write_rows(tmp_path / "rows.jsonl", [row]), template), expected)


def test_the_class_of_a_document_is_no_verdict_on_it(tmp_path: Path, template: Template) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{"text": "one two", "label": False}])
    found = verdict(path, template, format="text")
    assert isinstance(found, Learned), found
    assert found.unused == ("label",)


def test_a_column_that_the_recipe_names_is_no_mark(tmp_path: Path, template: Template) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{"text": "a", "Label": "false"}])
    columns = {"prompt": "text", "completion": "Label"}
    assert verdict(path, template, columns=columns) == Learned("prompt_completion", ["false"])


def test_a_row_gives_values_to_its_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in TRL: chat_template_kwargs."""
    monkeypatch.setenv("STROP_CACHE", str(tmp_path / "cache"))
    source = CHATML.replace("{%- if tools %}", "{{- 'STYLE ' + style if style else '' }}{%- if tools %}", 1)
    template = load_template(FIXTURES / "smollm2-tokenizer", "chat", ["messages"], chat_template=source)
    rows = [
        {"messages": [USER, ANSWER], "chat_template_kwargs": values} for values in ({"style": "old"}, {"style": ""})
    ]
    whole = []
    for row in rows:
        path = write_rows(tmp_path / "rows.jsonl", [row])
        assert verdict(path, template) == Learned("messages", ["b"])
        [example] = examples(path)
        assert isinstance(example, Conversation)
        whole.append(template.tokenizer.decode(template.encode_prompt(example)))
    assert whole[0] == "STYLE old" + whole[1]
