"""What Python users give where a recipe, a run or a choice is asked: taken where it is obvious, or refused by name."""

from collections.abc import Callable
from pathlib import Path

import pytest

import strop
from run_folders import write_run
from strop.commands.arguments import as_recipe, as_run
from strop.errors import RecipeError

REFUSED: dict[str, Callable[[], object]] = {
    "path": lambda: strop.Run(5),  # type: ignore[arg-type]
    "run": lambda: strop.evaluate(None),  # type: ignore[arg-type]
    "run=None": lambda: strop.chat(None),  # type: ignore[arg-type]
    "run=5": lambda: strop.export(5),  # type: ignore[arg-type]
    "run=3": lambda: strop.report([3]),  # type: ignore[list-item]
    "run=4": lambda: strop.report(4),  # type: ignore[arg-type]
    "recipe={'a': 1}": lambda: strop.train({"a": 1}),  # type: ignore[arg-type]
    "recipe=5": lambda: strop.check(5),  # type: ignore[arg-type]
    "recipe=None": lambda: strop.plan(None),  # type: ignore[arg-type]
    "name_or_path": lambda: strop.load_recipe(None),  # type: ignore[arg-type]
    "overrides": lambda: strop.load_recipe("demo", 5),  # type: ignore[arg-type]
    "overrides: ": lambda: strop.load_recipe("demo", [5]),  # type: ignore[list-item]
    "to='onnx'": lambda: strop.export("run", "onnx"),  # type: ignore[arg-type]
    "quantisation='q2'": lambda: strop.export("run", "gguf", quantisation="q2"),  # type: ignore[arg-type]
    "layout='x'": lambda: strop.export("run", layout="x"),  # type: ignore[arg-type]
    "output=5": lambda: strop.export("run", output=5),  # type: ignore[arg-type]
    "--base": lambda: strop.export("run", base="org/name"),
    "num_generated=-1": lambda: strop.evaluate("run", num_generated=-1),
    "num_generated='3'": lambda: strop.evaluate("run", num_generated="3"),  # type: ignore[arg-type]
    "max_new_tokens=0": lambda: strop.evaluate("run", max_new_tokens=0),
    "numeric_tolerance=nan": lambda: strop.evaluate("run", numeric_tolerance=float("nan")),
    "answers=5": lambda: strop.evaluate("run", answers=5),  # type: ignore[arg-type]
    "temperature=-1": lambda: strop.chat("run", temperature=-1),
    "max_new_tokens=1.5": lambda: strop.chat("run", max_new_tokens=1.5),  # type: ignore[arg-type]
}


@pytest.fixture(autouse=True)
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_run(tmp_path / "run")


@pytest.mark.parametrize("said", REFUSED)
def test_what_cannot_be_meant_is_refused_by_its_name(said: str) -> None:
    with pytest.raises(RecipeError) as refused:
        REFUSED[said]()
    assert str(refused.value).startswith(said)


@pytest.mark.parametrize("metrics", [strop.Run("/nosuch-run").metrics, lambda: strop.Run("run/adapter").metrics()])
def test_metrics_of_what_is_no_run(metrics: Callable[[], object]) -> None:
    with pytest.raises(RecipeError, match="is not a run folder"):
        metrics()


def test_a_path_is_taken_where_a_run_is(run: Path) -> None:
    assert as_run("run") == as_run(Path("run")) == as_run(strop.Run("run")) == strop.Run(Path("run"))
    assert strop.report("run", output="page.html") == Path("page.html")
    assert len(strop.Run("run").metrics()) > 30


def test_a_run_folder_is_taken_where_a_recipe_is() -> None:
    Path("moved").mkdir()
    Path("moved/recipe.yaml").write_text(as_recipe("demo").to_yaml().replace("output_dir: null", "output_dir: before"))
    recipe = as_recipe("moved")
    assert recipe.output_dir == Path("moved")
    assert strop.load_recipe("moved", ["train.output_dir=other"]).output_dir == Path("other")
    assert strop.load_recipe("moved/recipe.yaml").output_dir == Path("before")
    assert as_recipe(recipe) is recipe
