"""What a launch takes along, and what makes two launches the same run."""

from pathlib import Path

import pytest

from model_folders import write_model_folder
from strop.errors import DataError, RecipeError
from strop.modal_runs.launch import run_id_of
from strop.modal_runs.upload import Inputs, collect
from strop.recipe import DataFile, DataSection, ModelSection, Recipe


def recipe_of(model: str, *rows: str, **changes: object) -> Recipe:
    recipe = Recipe(name="mine", model=ModelSection(model_name_or_path=model), data=DataSection(train_file=rows))
    return recipe.model_copy(update={"train": recipe.train.model_copy(update=changes)})


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_model_folder(tmp_path / "model")
    (tmp_path / "model" / "modeling.py").write_text("print('never taken along')")
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"text": "{name}"}}\n')
    return tmp_path


def test_local_names_become_places_and_hub_ids_stay(here: Path) -> None:
    inputs = collect(recipe_of("model", "*.jsonl", "org/rows:train"))
    assert inputs.recipe.model.model_name_or_path.startswith("uploaded:models/")
    assert [spec.partition(":")[0] for spec in inputs.recipe.data.train_file] == ["uploaded", "org/rows"]
    assert {path.rpartition("/")[2] for path in inputs.files} == {
        "00000-a.jsonl",
        "00001-b.jsonl",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    hub = collect(recipe_of("org/model", "org/rows"))
    assert (hub.recipe.model.model_name_or_path, hub.files) == ("org/model", {})


def test_files_of_a_package_are_taken_along(here: Path) -> None:
    inputs = collect(recipe_of("model", "package:strop/recipes/census/train.jsonl"))
    assert any(path.endswith("/train.jsonl") for path in inputs.files)


def test_the_same_recipe_and_content_are_the_same_run_wherever_they_lie(here: Path) -> None:
    def run_id(recipe: Recipe) -> str:
        return run_id_of(recipe, collect(recipe))

    first = run_id(recipe_of("model", "a.jsonl"))
    assert first.startswith("mine-")
    assert run_id(recipe_of(str(here / "model"), str(here / "a.jsonl"), save_steps=7)) == first
    (here / "moved").mkdir()
    (here / "moved" / "a.jsonl").write_bytes((here / "a.jsonl").read_bytes())
    assert run_id(recipe_of("model", "moved/a.jsonl")) == first
    others = [
        recipe_of("model", "b.jsonl"),
        recipe_of("model", "a.jsonl", learning_rate=1.0),
        recipe_of("model", "a.jsonl", output_dir="runs/other"),
    ]
    assert len({first, *map(run_id, others)}) == 4
    (here / "model" / "config.json").write_text("{}")
    assert run_id(recipe_of("model", "a.jsonl")) != first


def test_a_run_id_is_a_plain_folder_name(here: Path) -> None:
    recipe = recipe_of("model", "a.jsonl", output_dir="runs/../my run; rm -rf")
    assert set(run_id_of(recipe, collect(recipe))) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_")


def test_what_is_not_there_is_said_before_anything_is_sent(here: Path) -> None:
    with pytest.raises(RecipeError, match="model_name_or_path"):
        collect(recipe_of("./none", "a.jsonl"))
    with pytest.raises(DataError, match=r"none\.jsonl"):
        collect(recipe_of("model", "none.jsonl"))


def collected(here: Path, *files: object, **data: object) -> Inputs:
    section = DataSection(train_file=files, **data)
    return collect(Recipe(name="mine", model=ModelSection(model_name_or_path="model"), data=section))


def test_an_entry_keeps_its_keys_and_gets_a_place(here: Path) -> None:
    entry = {"path": "a.jsonl", "repeat": 2, "columns": {"text": "text"}, "split": "[:1]"}
    inputs = collected(
        here, entry, {"path": "org/rows", "split": "test", "subset": "fr"}, validation_file={"path": "b.jsonl"}
    )
    first, hub = inputs.recipe.data.train_file
    assert isinstance(first, DataFile)
    assert first.path.startswith("uploaded:inputs/")
    assert first.model_copy(update={"path": "a.jsonl"}) == DataFile(**entry)
    assert hub == DataFile(path="org/rows", split="test", subset="fr")
    assert {path.name for path in inputs.files.values()} >= {"a.jsonl", "b.jsonl"}


def test_the_files_of_a_glob_stay_one_source_in_their_order(here: Path) -> None:
    (here / "rows").mkdir()
    for name in ("10.jsonl", "9.jsonl", "x y.jsonl"):
        (here / "rows" / name).write_text(f'{{"text": "{name}"}}\n')
    for files in (("rows/*.jsonl",), ({"path": "rows/*.jsonl", "weight": 1},)):
        inputs = collected(here, *files)
        [spec] = inputs.recipe.data.train_file
        place = str(spec if isinstance(spec, str) else spec.path).removeprefix("uploaded:")
        assert place.endswith("/*")
        sent = {key: path.name for key, path in inputs.files.items() if key.startswith(place[:-1])}
        assert [sent[key] for key in sorted(sent)] == ["10.jsonl", "9.jsonl", "x y.jsonl"]


def test_a_run_with_another_repeat_or_template_is_another_run(here: Path) -> None:
    def run_id(*files: object, **data: object) -> str:
        section = DataSection(train_file=files, **data)
        recipe = Recipe(name="mine", model=ModelSection(model_name_or_path="model"), data=section)
        return run_id_of(recipe, collect(recipe))

    (here / "mine.jinja").write_text("{{ messages[0].content }}")
    (here / "moved.jinja").write_text("{{ messages[0].content }}")
    ids = [
        run_id("a.jsonl"),
        run_id({"path": "a.jsonl", "repeat": 2}),
        run_id({"path": "a.jsonl", "repeat": 3}),
        run_id({"path": "a.jsonl", "columns": {"text": "text"}}),
        run_id("a.jsonl", system="Be brief."),
        run_id("a.jsonl", chat_template="mine.jinja"),
    ]
    assert len(set(ids)) == len(ids)
    assert run_id("a.jsonl", chat_template="moved.jinja") == ids[-1]


def test_the_text_of_a_chat_template_goes_along(here: Path) -> None:
    (here / "mine.jinja").write_text("{{ messages[0].content }}")
    inputs = collected(here, "a.jsonl", chat_template="mine.jinja")
    assert inputs.recipe.data.chat_template == "{{ messages[0].content }}"
