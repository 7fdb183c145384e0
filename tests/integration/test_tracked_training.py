"""A tracker beside a real training, through the API."""

from pathlib import Path

import pytest

import strop
from strop.errors import RecipeError
from strop.recipe import load_recipe
from strop.run.trackers import tracker
from tiny_runs import write_recipe


def test_a_run_leaves_events_and_a_missing_extra_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboardX")
    monkeypatch.setenv("STROP_CACHE", str(tmp_path / "cache"))
    recipe = load_recipe(str(write_recipe(tmp_path, max_steps=2, report_to="tensorboard", sample_rows=0)))
    with monkeypatch.context() as without:
        without.setitem(tracker.MODULES, "tensorboard", "no_such_module_here")
        with pytest.raises(RecipeError, match="pip install"):
            strop.train(recipe)
    assert not recipe.output_dir.exists()
    run = strop.train(recipe)
    (events,) = (run.path / "tensorboard").iterdir()
    assert b"train/loss" in events.read_bytes()
    assert b"eval/loss" in events.read_bytes()
