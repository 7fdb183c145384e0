"""The prompts that an export is tried with: the run's own rows, rendered by its consumer; a wrong template is found."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

from real_templates import tokenizer_folder
from strop.data.dataset import template_of
from strop.data.sources import open_sources
from strop.data.template import Template
from strop.exporting.parity.gate import Question, Reference, judge
from strop.exporting.parity.huggingface import render
from strop.exporting.parity.reference import questions_for
from strop.exporting.prompting import write_tokenizer
from strop.recipe import DataSection
from template_rows import rows

FIXTURES = Path(__file__).parents[2] / "fixtures"


@pytest.fixture(autouse=True, scope="module")
def strop_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STROP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def turns(*texts: str, system: str = "") -> list[dict[str, str]]:
    said = [{"role": role, "content": text} for role, text in zip(["user", "assistant"] * 9, texts, strict=False)]
    return ([{"role": "system", "content": system}] if system else []) + said


SHAPES: dict[str, list[dict[str, Any]]] = {
    "alpaca": [
        {"instruction": f"Add {i}.\n\nTwice.", "input": "" if i % 2 else f"{i}\n\nand 2", "output": "4"}
        for i in range(40)
    ],
    "history": [
        {"instruction": f"And {i}?", "output": "4", "system": "S" * (i % 2), "history": [["Hi", "Yes?"]] * (i % 3)}
        for i in range(40)
    ],
    "messages": [{"messages": turns("Hi", "Yes?", f"{i}?", "4", system="Be brief." * (i % 2))} for i in range(40)],
    "sharegpt": [
        {"conversations": [{"from": "human", "value": f"{i}"}, {"from": "gpt", "value": "4"}], "system": "S" * (i % 2)}
        for i in range(40)
    ],
    "prompt_completion": [{"prompt": f"Q: {i}\n\nA:", "completion": " 4"} for i in range(40)],
    "conversational": [{"prompt": turns("Hi", "Yes?", f"{i}?"), "completion": turns("", "4")[1:]} for i in range(40)],
    "text": [{"text": f"Document {i}.\n\nIt says little."} for i in range(40)],
    "tokens": [{"input_ids": [5 + i, 6, 7, 8], "labels": [-100, -100, 7, 8]} for i in range(40)],
}


def case(folder: Path, tokenizer: Path, given: list[dict[str, Any]], **data: Any) -> tuple[DataSection, Template, Path]:
    """A run's rows and template, and the folder that its consumer reads."""
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in given))
    section = DataSection(train_file=(str(file),), **data)
    template = template_of(section, tokenizer, open_sources(section, section.train_file))
    (folder / "served").mkdir()
    write_tokenizer(template, tokenizer, folder / "served")
    return section, template, folder / "served"


def told(folder: Path, questions: list[Question]) -> list[Any]:
    """What the consumer makes of the questions, as they reach it: by JSON."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return [render(tokenizer, question) for question in json.loads(json.dumps([asdict(q) for q in questions]))]


def faults(questions: list[Question], prompts: list[Any]) -> list[str]:
    logits = [np.eye(4, dtype=np.float32)]
    reference = Reference(questions, [[0, 1, 2, 3]], logits, [], 4, "float32")
    answers = {"prompts": prompts, "answers": [[0, 1, 2, 3]], "stop_ids": [], "next": logits}
    return judge("adapter", "x 1", reference, answers)[1]


TEMPLATES = {
    "chat": ("alpaca", "history", "messages", "sharegpt", "prompt_completion", "conversational"),
    "alpaca": ("alpaca",),
    "plain": ("prompt_completion", "text", "tokens"),
}


@pytest.mark.parametrize("tokenizer", ["phi3", "smollm2"])
@pytest.mark.parametrize(("name", "shape"), [(name, shape) for name, shapes in TEMPLATES.items() for shape in shapes])
def test_each_shape_is_asked_as_it_was_trained(name: str, shape: str, tokenizer: str, tmp_path: Path) -> None:
    given = SHAPES[shape]
    section, template, folder = case(tmp_path, FIXTURES / f"{tokenizer}-tokenizer", given, template=name)
    questions = questions_for(section, template, 400)
    assert len(questions) >= 40
    prompts = told(folder, questions)
    assert prompts == [question.ids for question in questions]
    assert faults(questions, prompts) == []
    assert len({str(question.ids) for question in questions[:6]}) == 6  # those that are answered


def test_every_source_of_a_mixture_is_asked(tmp_path: Path) -> None:
    files = []
    for name in ("messages", "alpaca", "text"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in SHAPES[name] * 9))
        files.append(str(tmp_path / f"{name}.jsonl"))
    section = DataSection(train_file=tuple(files))
    template = template_of(section, FIXTURES / "smollm2-tokenizer", open_sources(section, section.train_file))
    questions = questions_for(section, template, 400)
    assert sum(question.text is not None for question in questions) >= 30
    assert sum("Twice." in str(question.messages) for question in questions) >= 30
    assert sum("Yes?" in str(question.messages) for question in questions) >= 30


@pytest.mark.parametrize("name", ["qwen3", "llama3.1", "gpt-oss", "granite-3.3", "hermes-3", "qwen3-thinking-2507"])
def test_rows_with_tools_documents_and_reasoning_are_asked_as_they_were_trained(name: str, tmp_path: Path) -> None:
    given = rows(name, 5, 120)
    section, template, folder = case(tmp_path, tokenizer_folder(name, tmp_path), given, system='Be "brief" é.')
    questions = questions_for(section, template, 10**6)
    assert len(questions) > 100
    assert any(question.tools for question in questions)
    assert name != "granite-3.3" or any(question.documents for question in questions)
    assert any(question.messages and question.messages[0]["role"] != "system" for question in questions)
    assert told(folder, questions) == [question.ids for question in questions]


def without_tools(source: str) -> str:
    return source.replace("if tools", "if false")


def without_system(source: str) -> str:
    return source.partition("{%- endif %}")[2]


def another_day(source: str) -> str:
    return source.replace("26 Jul 2024", "27 Jul 2024")


def without_results(source: str) -> str:
    return source.replace('message.role == "tool"', 'message.role == "x"')


def that_does_not_run(source: str) -> str:
    return "{{ raise_exception('no') }}" + source


@pytest.mark.parametrize(
    ("name", "spoil", "said"),
    [
        ("qwen3", without_tools, "differ from token"),
        ("qwen3", without_system, "differ from token"),
        ("qwen3", without_results, "differ from token"),
        ("qwen3", that_does_not_run, "it refuses prompt 1: TemplateError: no"),
        ("llama3.1", another_day, "differ from token"),
    ],
)
def test_a_wrong_template_is_a_fault(name: str, spoil: Callable[[str], str], said: str, tmp_path: Path) -> None:
    section, template, folder = case(tmp_path, tokenizer_folder(name, tmp_path), rows(name, 5, 60), system="Be brief.")
    questions = questions_for(section, template, 10**6)
    path = folder / "chat_template.jinja"
    assert faults(questions, told(folder, questions)) == []
    path.write_text(spoil(path.read_text()))
    [fault] = faults(questions, told(folder, questions))
    assert said in fault
    assert f"of {len(questions)} prompts differ" in fault


def test_an_alpaca_template_that_knows_no_input_is_a_fault(tmp_path: Path) -> None:
    section, template, folder = case(tmp_path, FIXTURES / "smollm2-tokenizer", SHAPES["alpaca"], template="alpaca")
    questions = questions_for(section, template, 400)
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("### Input", "### Given"))
    [fault] = faults(questions, told(folder, questions))
    assert f"20 of {len(questions)} prompts differ" in fault
