"""Each command vets the base model's folder once, and hands the vetted folder on."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import strop
from model_folders import edit_json
from strop.commands import load
from strop.errors import CheckpointError
from strop.exporting.parity import gate
from strop.model.pretrained import folder as model_folder
from strop.model.pretrained.folder import ModelFolder
from strop.model.pretrained.weights import load_decoder
from tiny_runs import write_bfloat16_recipe


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> strop.Recipe:
    folder = tmp_path_factory.mktemp("vetted")
    file = write_bfloat16_recipe(folder, hidden_size=64, intermediate_size=128)
    return strop.load_recipe(file, {"train.max_steps": 2, "data.max_train_samples": 8, "data.max_eval_samples": 2})


@pytest.fixture(scope="module")
def run(recipe: strop.Recipe) -> strop.Run:
    return strop.train(recipe)


@pytest.fixture
def vetted(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that are vetted from here on."""
    seen: list[Path] = []
    real = model_folder.vet_model_folder

    def vet(path: Path, needs_weights: bool = True) -> object:
        seen.append(path)
        return real(path, needs_weights)

    monkeypatch.setattr(model_folder, "vet_model_folder", vet)
    return seen


@pytest.mark.parametrize(
    "use",
    [
        lambda recipe, run, out: strop.train(recipe.model_copy(update={"train": _elsewhere(recipe, out)})),
        lambda recipe, run, out: strop.plan(recipe, probing=True),
        lambda recipe, run, out: strop.evaluate(run, num_generated=1, max_new_tokens=2),
        lambda recipe, run, out: strop.chat(run),
        lambda recipe, run, out: strop.export(run, "adapter", output=out / "adapter"),
        lambda recipe, run, out: strop.export(run, "merged", output=out / "merged"),
        lambda recipe, run, out: load.load_tuned(run),
    ],
    ids=["train", "plan", "evaluate", "chat", "adapter", "merged", "serve"],
)
def test_a_command_vets_the_folder_once(
    use: Callable[..., object],
    recipe: strop.Recipe,
    run: strop.Run,
    tmp_path: Path,
    vetted: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gate, "check_parity", lambda *export: None)  # it is another program that reads the folder there
    use(recipe, run, tmp_path)
    assert vetted == [Path(recipe.model.model_name_or_path)]


def _elsewhere(recipe: strop.Recipe, out: Path) -> object:
    return recipe.train.model_copy(update={"output_dir": str(out / "run")})


def test_no_weights_are_read_from_a_folder_that_is_not_vetted(recipe: strop.Recipe, vetted: list[Path]) -> None:
    path = Path(recipe.model.model_name_or_path)
    load_decoder(path, torch.float32)
    assert vetted == [path]
    load_decoder(ModelFolder.vetted(path), torch.float32)
    assert vetted == [path, path]


@pytest.mark.parametrize(
    "use",
    [
        lambda run, out: strop.evaluate(run, num_generated=1, max_new_tokens=2),
        lambda run, out: strop.chat(run),
        lambda run, out: strop.export(run, "adapter", output=out / "adapter"),
        lambda run, out: strop.export(run, "merged", output=out / "merged"),
        lambda run, out: load.load_tuned(run),
    ],
    ids=["evaluate", "chat", "adapter", "merged", "serve"],
)
def test_no_command_uses_an_adapter_that_asks_for_another_scaling(
    use: Callable[..., object], run: strop.Run, tmp_path: Path
) -> None:
    config = run.adapter_path / "adapter_config.json"
    written = config.read_bytes()
    try:
        edit_json(config, use_rslora=True)
        with pytest.raises(CheckpointError, match=r"adapter_config\.json"):
            use(run, tmp_path)
    finally:
        config.write_bytes(written)
    assert not list(tmp_path.iterdir())
