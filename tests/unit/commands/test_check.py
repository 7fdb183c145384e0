"""What `strop check` prints about rows, and how keys of the data section change them."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from strop.app import app
from tiny_runs import write_model

TURNS = [{"role": "user", "content": "Say N."}, {"role": "assistant", "content": "It is N."}]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def _rows(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STROP_CACHE", str(model.parent / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    write("chat.jsonl", 6, messages=TURNS, id="rN")
    write("pairs.jsonl", 12, Question="What is N?", answer="It is N.", topic="numbers")
    write("docs.jsonl", 3, text="Once there was a number, and then another one, and it was N. " * 6)
    write("prompts.jsonl", 4, prompt="Say N:", completion=" N")


def write(name: str, count: int, **row: Any) -> None:
    rows = [json.dumps(row).replace("N", str(i)) for i in range(count)]
    Path(name).write_text("".join(f"{line}\n" for line in rows), encoding="utf-8")


def check(model: Path, train_file: Any, *overrides: str, **data: Any) -> tuple[int, str]:
    contents = {
        "model": {"model_name_or_path": str(model), "max_seq_length": 256},
        "data": {"train_file": train_file, **data},
    }
    Path("mine.yaml").write_text(json.dumps(contents))
    result = CliRunner().invoke(app, ["check", "mine.yaml", *overrides])
    # What stops the command is raised: only the program's entry point turns it into a message.
    return result.exit_code, " ".join((result.output + str(result.exception or "")).split())


def test_the_shares_of_a_mixture(model: Path) -> None:
    files = [{"path": "chat.jsonl", "repeat": 2}, "pairs.jsonl", {"path": "docs.jsonl", "repeat": 0.5}]
    code, shown = check(model, files)
    assert code == 0, shown
    for line in (
        "source format samples in an epoch share share of tokens",
        "chat.jsonl messages 6 12 46.2%",
        "pairs.jsonl alpaca 12 12 46.2%",
        "docs.jsonl text 3 2 7.7%",
        "format messages, alpaca, text, template chat",
    ):
        assert line in shown, shown


def test_columns_and_keys_that_are_not_used_are_named_once(model: Path) -> None:
    code, shown = check(model, "pairs.jsonl", validation_file="chat.jsonl")
    assert code == 0, shown
    assert "pairs.jsonl: columns instruction: Question, output: answer" in shown
    assert shown.count("not used: topic (12 rows)") == 1
    assert "not used in held-out rows: id (6 rows)" in shown


@pytest.mark.parametrize(
    ("file", "data", "said"),
    [
        ("prompts.jsonl", {}, "data.template: plain joins them as they are"),
        ("prompts.jsonl", {"template": "plain"}, "data.template: chat makes them a question and its answer"),
        ("docs.jsonl", {"long_samples": "split"}, "3 rows give 6 samples: long documents are split"),
        ("docs.jsonl", {"long_samples": "drop"}, "rows are skipped: longer than max_seq_length"),
        ("docs.jsonl", {}, "3 samples are cut at model.max_seq_length and do not learn to stop"),
        ("chat.jsonl", {"system": "Be very brief."}, "Be very brief."),
        ("chat.jsonl", {"chat_template": "mine.jinja"}, "assistant:: It is 0."),
        ("chat.jsonl", {"columns": {"messages": "messages"}}, "not used: id (6 rows)"),
    ],
)
def test_keys_of_the_data_section(model: Path, file: str, data: dict[str, Any], said: str) -> None:
    Path("mine.jinja").write_text(
        "{% for m in messages %}{{ m.role }}:: {{ m.content }}<|im_end|> {% endfor %}"
        "{% if add_generation_prompt %}assistant:: {% endif %}"
    )
    limit = "64" if file == "docs.jsonl" else "256"
    write("short.jsonl", 2, text="A number.")
    files = [file, "short.jsonl"] if data.get("long_samples") == "drop" else file
    _, shown = check(model, files, f"max_seq_length={limit}", "--preview", "1", **data)
    assert said in shown.replace("[", "").replace("]", ""), shown


@pytest.mark.parametrize(
    ("file", "data", "said"),
    [
        ("docs.jsonl", {"system": "Be brief."}, "data.system needs a chat template"),
        ("docs.jsonl", {"chat_template": "{{ messages }}"}, "data.chat_template needs a chat template"),
        ("chat.jsonl", {"long_samples": "split"}, "data.long_samples=split splits documents (text rows)"),
        ("chat.jsonl", {"columns": {"messages": "talk"}}, "chat.jsonl:1: data.columns.messages=talk, but the keys are"),
        ("chat.jsonl", {"chat_template": "{% for %}{{ x }}"}, "chat template"),
        ("pairs.jsonl", {"format": "messages"}, "data.format=messages, but the keys are 'Question', 'answer', 'topic'"),
    ],
)
def test_keys_that_do_not_fit_the_rows_are_refused(model: Path, file: str, data: dict[str, Any], said: str) -> None:
    code, shown = check(model, file, **data)
    assert code != 0
    assert said in shown, shown


def test_the_overlap_of_a_split_document_is_not_learned_again(model: Path) -> None:
    def learned(*overrides: str) -> tuple[int, int]:
        _, shown = check(model, "docs.jsonl", "max_seq_length=64", *overrides, long_samples="split")
        samples, tokens = shown.split(" samples ")[1].split()[0], shown.split("learned tokens ")[1].split()[0]
        return int(samples.replace(",", "")), int(tokens.replace(",", ""))

    (few, all_learned), (many, with_overlap) = learned(), learned("data.long_overlap=32")
    assert many > few
    assert abs(all_learned - with_overlap) <= many  # the first token of a part has nothing that predicts it
