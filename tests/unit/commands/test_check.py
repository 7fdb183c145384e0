"""What `strop check` prints about rows, and how keys of the data section change them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import strop
from strop.app import app
from strop.errors import RecipeError
from strop.run.trackers import tracker
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


def test_the_next_command_has_the_same_keys(model: Path) -> None:
    code, shown = check(model, "chat.jsonl", "train.max_steps=3", "data.system=Be brief")
    assert code == 0, shown
    assert "Next: strop train mine.yaml train.max_steps=3 'data.system=Be brief'" in shown


def test_a_tracker_that_is_not_installed_is_refused_after_the_rows_are_shown(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tracker.MODULES, "wandb", "no_such_module")
    code, shown = check(model, "chat.jsonl", "train.report_to=wandb")
    assert code != 0
    assert "rows used" in shown
    assert "train.report_to=wandb is not installed: pip install 'strop[wandb]'" in shown
    assert "This will train" not in shown
    with pytest.raises(RecipeError, match="wandb is not installed"):
        strop.check(strop.load_recipe("mine.yaml", ["train.report_to=wandb"]), quiet=True)


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


def test_the_held_out_share_is_said_and_why_it_is_another(model: Path) -> None:
    code, shown = check(model, "pairs.jsonl", "data.validation_split_percentage=20", "train.seed=3")
    assert code == 0, shown
    found = re.search(
        r"held out (\d+) of 12 rows \(([\d.]+)%; 20% asked: each row's content decides, by chance\)", shown
    )
    assert found, shown
    assert float(found[2]) == pytest.approx(100 * int(found[1]) / 12, abs=0.05)
    row = [{"prompt": f"q{i // 4}", "completion": "a"} for i in range(120)]  # each of 30 rows four times
    Path("repeated.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in row), encoding="utf-8")
    code, shown = check(model, "repeated.jsonl", "data.validation_split_percentage=5")
    assert code == 0, shown
    found = re.search(r"held out (\d+) of 120 rows \([\d.]+%; 5% asked: repeated rows stay together\)", shown)
    assert found, shown
    assert int(found[1]) % 4 == 0
    _, shown = check(model, "pairs.jsonl", validation_file="chat.jsonl")
    assert "asked" not in shown


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["train.num_train_epochs=0.02"], "is less than one sample, so one is seen: 1 step"),
        (["train.num_train_epochs=3"], "12 samples, 8 a step: 5 steps, because a step may cross the end of an epoch"),
        (["train.warmup_ratio=0.6"], "warmup takes all 2 steps of the run"),
        (["train.warmup_steps=9"], "warmup takes all 2 steps of the run"),
    ],
)
def test_how_long_a_run_is_is_said_where_it_may_surprise(model: Path, overrides: list[str], said: str) -> None:
    for usual in ([], ["train.num_train_epochs=2", "train.per_device_train_batch_size=3"], ["train.max_steps=9"]):
        _, shown = check(model, "pairs.jsonl", *usual)
        assert said not in shown
    code, shown = check(model, "pairs.jsonl", *overrides)
    assert code == 0, shown
    assert said in shown, shown


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.eval_steps=0.1", "train.eval_steps=0.1: a share of all steps is not understood here"),
        ("train.save_steps=0.5", "give a number of steps"),
        ("train.logging_steps=0.01", "give a number of steps"),
        ("train.warmup_steps=0.1", "use train.warmup_ratio"),
        ("train.num_train_epochs=1e300", "less than or equal to 1000000"),
    ],
)
def test_shares_where_steps_are_meant_are_refused_by_name(model: Path, override: str, said: str) -> None:
    code, shown = check(model, "pairs.jsonl", override)
    assert code == 1
    assert said in shown
