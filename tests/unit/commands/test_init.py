"""`strop init` never writes a recipe that `strop check` refuses without saying what to change in it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

import strop
from strop.commands.init import init
from strop.commands.prepare import Prepared
from strop.errors import DataError, RecipeError
from tiny_runs import write_model

Row = dict[str, Any]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STROP_CACHE", str(model.parent / "cache"))  # the chat template is tried only once
    monkeypatch.chdir(tmp_path)


def write(rows: list[Row], name: str = "rows.jsonl") -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


def checked(recipe: str, model: Path) -> Prepared:
    return strop.check(strop.load_recipe(recipe, {"model_name_or_path": str(model), "max_seq_length": 256}))


def uncommented(key: str) -> str:
    """The recipe with one of its proposals taken."""
    text = Path("mine.yaml").read_text(encoding="utf-8")
    assert f"  # {key}: " in text, text
    Path("mine.yaml").write_text(text.replace(f"  # {key}: ", f"  {key}: "), encoding="utf-8")
    return "mine.yaml"


def numbered(count: int, **row: Any) -> list[Row]:
    """Rows that differ in the number in their texts."""
    return [json.loads(json.dumps(row).replace("N", str(i))) for i in range(count)]


TURNS = [{"role": "user", "content": "Say N."}, {"role": "assistant", "content": "It is N."}]
SHAPES: dict[str, Row] = {
    "instruction": {
        "instruction": "Say N.",
        "context": "Here.",
        "output": "It is N.",
        "system": "Be brief.",
        "id": "rN",
    },
    "question": {"Question": "Say N.", "answer": "It is N."},
    "messages": {"messages": TURNS, "source": "web"},
    "conversations": {"conversations": [{"from": "human", "value": "Say N."}, {"from": "gpt", "value": "N."}]},
    "dialogue": {"dialogue": TURNS, "system_prompt": "Be brief."},
    "prompt": {"prompt": "Say N:", "completion": " it is N"},
    "text": {"text": "Once there was a number, and it was N."},
}


@pytest.mark.parametrize("count", [2, 60])
@pytest.mark.parametrize("shape", SHAPES)
def test_what_it_writes_is_accepted(shape: str, count: int, model: Path) -> None:
    init(write(numbered(count, **SHAPES[shape])), Path("mine.yaml"))
    prepared = checked("mine.yaml", model)
    held_out = prepared.report.validation.rows_kept if prepared.report.validation else 0
    assert prepared.report.train.rows_kept + held_out == count
    assert held_out or count < 20


@pytest.mark.parametrize("shape", SHAPES)
def test_the_columns_that_it_names_are_those_that_are_read(shape: str, model: Path) -> None:
    told = init(write(numbered(12, **SHAPES[shape])), Path("mine.yaml"))
    found = checked("mine.yaml", model).data.distinct.fingerprint
    assert any("columns: {" in line for line in told), told
    assert checked(uncommented("columns"), model).data.distinct.fingerprint == found


def test_keys_that_are_not_used_are_named() -> None:
    told = init(write(numbered(12, **SHAPES["instruction"])), Path("mine.yaml"))
    assert "not used: id" in told
    assert "# not used: id" in Path("mine.yaml").read_text()


def test_two_equal_rows_are_not_split(model: Path) -> None:
    init(write(numbered(1, **SHAPES["text"]) * 2), Path("mine.yaml"))
    assert strop.load_recipe("mine.yaml").data.validation_split_percentage == 0
    assert checked("mine.yaml", model).report.train.samples == 2


def test_rows_that_cannot_be_used_are_named_and_can_be_skipped(model: Path) -> None:
    rows = numbered(30, **SHAPES["question"])
    rows[3]["answer"], rows[7]["answer"] = "", None
    told = "\n".join(init(write(rows), Path("mine.yaml")))
    assert "2 of 30 rows cannot be used" in told
    for line in ("rows.jsonl:4", "rows.jsonl:8"):
        assert line in told
    with pytest.raises(DataError, match=r"data.on_bad_row=skip"):
        checked("mine.yaml", model)
    assert checked(uncommented("on_bad_row"), model).report.train.skipped


@pytest.mark.parametrize(
    "row",
    [
        {"text": "A long story of N.", "summary": "N."},
        {"prompt": "Say N.", "chosen": "It is N.", "rejected": "No."},
        {"messages": TURNS, "chosen": TURNS[1:], "rejected": TURNS[1:]},
    ],
)
def test_rows_that_can_be_read_in_several_ways_get_a_recipe_that_says_what_to_decide(row: Row, model: Path) -> None:
    [told] = init(write(numbered(40, **row)), Path("mine.yaml"))
    assert told.startswith("data.columns has to be set")
    assert "before it trains, say which column is which" in Path("mine.yaml").read_text()
    with pytest.raises(DataError, match=r"data\.columns"):
        checked("mine.yaml", model)
    assert checked(uncommented("columns"), model).report.train.samples


def test_rows_of_no_known_shape_are_shown_with_their_keys(model: Path) -> None:
    [told] = init(write(numbered(40, foo="N", bar="It is N.")), Path("mine.yaml"))
    assert "'foo', 'bar'" in told
    recipe = Path(uncommented("columns"))
    recipe.write_text(recipe.read_text().replace("QUESTION", "foo").replace("ANSWER", "bar"))
    assert checked("mine.yaml", model).report.train.samples


def test_several_files_in_one_recipe(model: Path) -> None:
    files = [write(numbered(20, **SHAPES[shape]), f"{shape}.jsonl") for shape in ("messages", "text")]
    told = init(files, Path("mine.yaml"))
    assert strop.load_recipe("mine.yaml").data.train_file == tuple(files)
    assert len([line for line in told if "columns: {" in line]) == 2
    assert [source.shape.format for source in checked("mine.yaml", model).data.sources] == ["messages", "text"]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"messages": TURNS, "images": ["a.png"]}], "none of 1 row can be used"),
        ([], "has no rows"),
        (None, "there is no file rows.jsonl"),
    ],
)
def test_nothing_is_written_for_rows_that_no_recipe_can_train_on(rows: list[Row] | None, words: str) -> None:
    if rows is not None:
        write(rows)
    with pytest.raises(DataError, match=re.escape(words)):
        init("rows.jsonl", Path("mine.yaml"))
    assert not Path("mine.yaml").exists()


def test_a_recipe_is_not_overwritten() -> None:
    Path("mine.yaml").write_text("mine")
    with pytest.raises(RecipeError, match="exists already"):
        init(write(numbered(3, **SHAPES["text"])), Path("mine.yaml"))
    assert Path("mine.yaml").read_text() == "mine"


CASES = Path(__file__).parents[2] / "fixtures" / "cases"


@pytest.mark.parametrize(
    ("case", "proposal"),
    [
        ("csv/cp1252_semicolon.csv", None),
        ("csv/trailing_commas.csv", None),
        ("files/wrapped_train.json", None),
        ("files/column_oriented.json", None),
        ("rows/longdoc.jsonl", None),
        ("rows/gemini_contents.jsonl", None),
        ("rows/kto_prompt_completion.jsonl", "# on_bad_row: skip"),
        ("rows/hf_binarized.jsonl", "# columns: {prompt: prompt, completion: chosen}"),
        ("rows/dpo_lf_sharegpt.jsonl", "# columns: {prompt: conversations, completion: chosen}"),
        ("rows/text_with_label.jsonl", "# columns: {prompt: text, completion: label}"),
        ("rows/tools_full.jsonl", "# chat_template: FILE.jinja # if the model's own has no place for the tools"),
        (
            "rows/thinking_field.jsonl",
            "# chat_template: FILE.jinja # if the model's own has no place for the reasoning",
        ),
    ],
)
def test_rows_as_people_have_them(case: str, proposal: str | None, model: Path) -> None:
    """The recipe is accepted as it is, or has a line that says what to change."""
    init(str(CASES / case), Path("mine.yaml"))
    text = Path("mine.yaml").read_text(encoding="utf-8")
    if proposal is None:
        assert checked("mine.yaml", model).report.train.samples
        return
    assert proposal in text
    with pytest.raises(DataError):
        checked("mine.yaml", model)


@pytest.mark.parametrize(("count", "percentage"), [(6, 0), (99, 0), (100, 5)])
def test_few_rows_whose_columns_are_not_known_are_not_held_out(count: int, percentage: int) -> None:
    """Which row is held out depends on how it is read: 5% of a few may be none, which `strop check` refuses."""
    told = init(write(numbered(count, zork="Say N.", frob="N.")), Path("mine.yaml"))
    assert "data.columns has to be set" in told[0]
    assert strop.load_recipe("mine.yaml").data.validation_split_percentage == percentage


@pytest.mark.parametrize("name", ["", " ", "a\udcff.jsonl"])
def test_a_name_that_no_recipe_can_hold_is_refused(name: str) -> None:
    with pytest.raises(RecipeError, match="DATA: "):
        init(name, Path("mine.yaml"))
    assert not Path("mine.yaml").exists()
