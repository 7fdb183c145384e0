"""What a launch takes along, and what makes two launches the same run."""

from pathlib import Path

import pytest

from model_folders import write_model_folder
from strop.errors import DataError, RecipeError
from strop.modal_runs.launch import run_id_of
from strop.modal_runs.upload import collect
from strop.recipe import DataSection, ModelSection, Recipe


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
    assert [spec.partition(":")[0] for spec in inputs.recipe.data.train_file] == ["uploaded", "uploaded", "org/rows"]
    assert {path.rpartition("/")[2] for path in inputs.files} == {
        "a.jsonl",
        "b.jsonl",
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
