"""The probe, on a CPU: training's own steps, timed, and an adapter that nobody sees again."""

from pathlib import Path

import pytest
import torch

from strop.errors import OutOfMemoryError
from strop.forecast.probe import probe
from strop.model.lora import LoraAdapter
from strop.model.pretrained.weights import load_decoder
from strop.recipe import LoraSection, Recipe
from strop.training.gradients import PlainGradients
from tiny_models import write_checkpoint
from training_doubles import Rows


@pytest.fixture
def adapter(tmp_path: Path) -> LoraAdapter:
    return LoraAdapter(load_decoder(write_checkpoint(tmp_path, "smollm2"), torch.float32), LoraSection(r=2), seed=0)


def recipe(**train: object) -> Recipe:
    return Recipe.model_validate({"model": {"model_name_or_path": "m"}, "data": {"train_file": "t"}, "train": train})


def test_it_times_the_recipe_s_own_steps_and_is_labelled_for_the_cpu(
    adapter: LoraAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, sizes = PlainGradients._add, []

    def counted(self: PlainGradients, batch, scale: float) -> torch.Tensor:
        sizes.append((batch.num_sample_tokens, len(batch.samples)))
        return add(self, batch, scale)

    monkeypatch.setattr(PlainGradients, "_add", counted)
    found = probe(recipe(max_steps=100), adapter, Rows())  # type: ignore[arg-type]
    assert (found.device, found.precision, found.layers) == ("CPU", "float32", "plain")
    assert (found.memory_gib, found.peak_gib, found.max_tokens) == (0.0, 0.0, 1024)
    assert 0 < found.token_seconds < found.step_seconds
    assert found.steps == 8
    worst, *steps = sizes
    assert worst[0] >= max(tokens for tokens, _ in steps)
    assert [count for _, count in steps] == [8] * 24  # eight steps, three times


def test_a_short_run_has_no_more_steps_than_it_has(adapter: LoraAdapter) -> None:
    assert probe(recipe(max_steps=2), adapter, Rows()).steps == 2  # type: ignore[arg-type]


def test_a_microbatch_that_does_not_fit_is_one_message(adapter: LoraAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(PlainGradients, "_add", full)
    with pytest.raises(OutOfMemoryError, match=r"; lower train\.max_tokens_per_microbatch") as caught:
        probe(recipe(max_tokens_per_microbatch=64), adapter, Rows())  # type: ignore[arg-type]
    assert caught.value.exit_code == 6
