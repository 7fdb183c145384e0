"""Entries of data.train_file and data.validation_file with keys of their own."""

from pathlib import Path
from typing import Any

import pytest

from strop.errors import RecipeError
from strop.recipe import DataFile, Recipe, differences, load_recipe

MODEL = "model: {model_name_or_path: org/base}\n"


@pytest.fixture
def write(tmp_path: Path):
    def written(text: str) -> str:
        (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
        return str(tmp_path / "mine.yaml")

    return written


@pytest.mark.parametrize(
    ("written", "files"),
    [
        ("a.jsonl", ("a.jsonl",)),
        ("[a.jsonl, 'b*.csv']", ("a.jsonl", "b*.csv")),
        ("{path: a.jsonl, repeat: 2}", (DataFile(path="a.jsonl", repeat=2),)),
        ("{path: a.jsonl}", ("a.jsonl",)),
        (
            "[a.jsonl, {path: org/rows, split: 'train[:10%]', subset: fr, max_samples: 5}]",
            ("a.jsonl", DataFile(path="org/rows", split="train[:10%]", subset="fr", max_samples=5)),
        ),
        (
            "[{path: a.jsonl, weight: 1, columns: {text: body}}, {path: b.jsonl, weight: 0.5, format: sharegpt}]",
            (
                DataFile(path="a.jsonl", weight=1, columns={"text": "body"}),
                DataFile(path="b.jsonl", weight=0.5, format="sharegpt"),
            ),
        ),
    ],
)
def test_entries_in_a_file_on_the_command_line_and_read_back(write, written: str, files: tuple[Any, ...]) -> None:
    recipe = load_recipe(write(MODEL + f"data: {{train_file: {written}}}\n"))
    assert recipe.data.train_file == files
    assert load_recipe(write(MODEL + "data: {train_file: x}\n"), [f"train_file={written}"]).data == recipe.data
    again = load_recipe(write(recipe.to_yaml()))
    assert again == recipe
    assert again.notes == ()


def test_a_recipe_made_in_python_reads_back(write) -> None:
    files = [
        "a.jsonl",
        {"path": "b.jsonl", "split": "train"},
        DataFile(path="c", columns={"prompt": "q", "completion": "a"}),
    ]
    data = {"train_file": files, "validation_file": {"path": "v.jsonl", "max_samples": 3}, "columns": {"messages": "m"}}
    recipe = Recipe(name="mine", model={"model_name_or_path": "m"}, data=data)
    assert load_recipe(write(recipe.to_yaml())) == recipe
    assert "max_samples: null" not in recipe.to_yaml()
    assert recipe.model_dump()["data"]["train_file"][1] == {"path": "b.jsonl", "split": "train"}


def test_entries_as_overrides_from_python(write) -> None:
    path = write(MODEL + "data: {train_file: x}\n")
    for value in ([{"path": "a", "repeat": 2}], {"path": "a", "repeat": 2}, DataFile(path="a", repeat=2)):
        assert load_recipe(path, {"data.train_file": value}).data.train_file == (DataFile(path="a", repeat=2),)


ENTRY = MODEL + "data:\n  train_file:\n    - a.jsonl\n    - path: b.jsonl\n      "


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("repeet: 2", ["mine.yaml:6", "data.train_file: repeet=2", "did you mean repeat?"]),
        ("zzz: 2", ["mine.yaml:6", "zzz=2", "the keys are path, split"]),
        ("repeat: 0", ["mine.yaml:6", "repeat=0", "greater than 0"]),
        ("repeat: true", ["mine.yaml:6", "repeat=True"]),
        ("split: [10%:20%]", ["mine.yaml:6", "put it in quotes"]),
        ("max_samples: many", ["mine.yaml:6", "max_samples='many'", "integer"]),
        ("format: chatml", ["mine.yaml:6", "format='chatml'", "sharegpt"]),
        ("columns: {promt: q}", ["mine.yaml:6", "promt", "the parts of a row are"]),
        ("columns: {prompt: q}", ["mine.yaml:6", "name prompt and completion"]),
        ("columns: {text: body}\n      format: text", ["b.jsonl", "columns decide the format"]),
        ("repeat: 2\n      weight: 1", ["b.jsonl", "keep one"]),
        ("weight: 1", ["mine.yaml:3", "weight is a share among all files"]),
        ("path: c.jsonl", ["mine.yaml:6", "path is set twice", "line 5"]),
        ("split: &x !!python/none 3", ["mine.yaml:6"]),
        ("repeat: {a: 1}", ["mine.yaml:6", "repeat={'a': 1}"]),
    ],
)
def test_a_fault_names_the_line_of_its_key(write, line: str, words: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(f"{ENTRY}{line}\n"))
    for word in words:
        assert word in str(caught.value), str(caught.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.train_file=[{pth: a}]", ["override", "pth='a'", "did you mean path?"]),
        ("data.train_file=[{repeat: 2}]", ["override", "every entry needs a path"]),
        ("data.train_file=[{path: a, path: b}]", ["path is set twice"]),
        ("data.train_file=[3]", ["data.train_file=[3]", "name a file"]),
        ("data.validation_file={path: a, repeat: 2}", ["scored once each"]),
        ("data.system=Be brief.", ["data.system is not used with data.template=plain"]),
        ("data.long_overlap=5", ["data.long_overlap=5 needs data.long_samples=split"]),
        ("data.columns={text: a, prompt: b}", ["data.columns", "nothing else"]),
    ],
)
def test_wrong_entries_on_the_command_line(write, override: str, words: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(MODEL + "data: {train_file: x, template: plain}\n"), [override])
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_the_overlap_is_shorter_than_a_sample(write) -> None:
    path = write(MODEL + "data: {train_file: x, long_samples: split, long_overlap: 100}\n")
    assert load_recipe(path, ["max_seq_length=102"]).data.long_overlap == 100
    with pytest.raises(RecipeError, match=r"data.long_overlap=100 must be less than model.max_seq_length=101"):
        load_recipe(path, ["max_seq_length=101"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("data.system=Be brief.", "data.system: None -> Be brief."),
        ("data.columns={messages: talk}", "data.columns: {} -> {'messages': 'talk'}"),
        ("data.long_samples=drop", "data.long_samples: cut -> drop"),
        ("data.train_file={path: a.jsonl, repeat: 2}", "data.train_file: [] -> [{'repeat': 2.0}]"),
        ("data.train_file={path: moved/a.jsonl, max_samples: 9}", "data.train_file: [] -> [{'max_samples': 9}]"),
    ],
)
def test_what_changes_the_samples_of_a_run_is_named(write, change: str, said: str) -> None:
    path = write(MODEL + "data: {train_file: a.jsonl}\n")
    assert differences(load_recipe(path), load_recipe(path, [change])) == [said]


def test_where_the_files_are_may_change(write) -> None:
    path = write(MODEL + "data: {train_file: {path: a.jsonl, repeat: 2}}\n")
    moved = load_recipe(path, ["data.train_file={path: b/a.jsonl, split: train, repeat: 2}"])
    assert differences(load_recipe(path), moved) == []


def test_a_chat_template_is_read_into_the_recipe_and_named_by_its_digest(write, tmp_path: Path) -> None:
    template = tmp_path / "mine.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}\n{% endfor %}" + "{# long #}" * 30, encoding="utf-8")
    recipe = load_recipe(write(MODEL + f"data:\n  train_file: a\n  chat_template: {template}\n"))
    assert recipe.data.chat_template == template.read_text()
    assert f"data.chat_template: read from {template}" in recipe.notes
    assert load_recipe(write(recipe.to_yaml())) == recipe
    made = Recipe(model={"model_name_or_path": "m"}, data={"train_file": "a", "chat_template": str(template)})
    assert made.data.chat_template == template.read_text()
    [line] = differences(load_recipe(write(MODEL + "data: {train_file: a}\n")), recipe)
    assert line.startswith("data.chat_template: None -> ")
    assert "characters with the digest" in line


@pytest.mark.parametrize("value", ["no/such.jinja", "missing.jinja", "a_file_without_braces.txt"])
def test_a_chat_template_that_is_not_there_is_named_with_its_line(write, value: str) -> None:
    with pytest.raises(RecipeError, match=rf"mine.yaml:4: data.chat_template='{value}': cannot read {value}"):
        load_recipe(write(MODEL + f"data:\n  train_file: a\n  chat_template: {value}\n"))
