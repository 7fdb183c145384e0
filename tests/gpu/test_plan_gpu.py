"""What only a GPU can show of `strop plan` and of running out of memory: a probe, and graphs that are dropped."""

from pathlib import Path

import pytest
import torch

import strop
from strop.model.lora import LoraAdapter
from strop.model.precision import choose_device
from strop.model.pretrained.weights import load_decoder
from strop.recipe import LoraSection, TrainSection, load_recipe
from strop.training.loop import Trainer
from tiny_models import write_checkpoint
from tiny_runs import write_recipe
from training_doubles import StopAt, trainer_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("dropout", [0.0, 0.1], ids=["fused", "plain"])
def test_a_probe_is_kept_for_the_run_on_this_gpu(
    dropout: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STROP_CACHE", str(tmp_path / "cache"))
    recipe, heard = load_recipe(str(write_recipe(tmp_path)), {"lora.lora_dropout": dropout}), StopAt()
    found = strop.plan(recipe, reporter=heard)
    assert found.here is not None
    assert found.here.source == "measured"
    assert 0 < found.here.peak_gib < found.here.memory_gib
    run = strop.train(recipe, reporter=heard)
    assert run.manifest.plan.source == "measured"
    assert {"training_seconds", "tokens_per_second", "peak_gib"} <= set(run.manifest.outcome)
    assert any(line.startswith("plan (measured)") for line in heard.notes)


def test_captured_graphs_are_dropped_and_the_adapter_is_that_of_the_smaller_microbatch(tmp_path: Path) -> None:
    """Memory really runs out, inside the layers: an allocation of more than the GPU has."""
    folder = write_checkpoint(tmp_path / "model", "llama3", hidden_size=64, intermediate_size=96)

    def trainer(name: str, max_tokens: int) -> Trainer:
        adapter = LoraAdapter(load_decoder(folder, torch.bfloat16, choose_device()), LoraSection(r=4), seed=0)
        section = TrainSection(max_steps=8, learning_rate=1e-2, save_steps=0, max_tokens_per_microbatch=max_tokens)
        (tmp_path / name).mkdir()
        return trainer_of(adapter, section, tmp_path / name, StopAt())

    small, large = trainer("small", 50), trainer("large", 100)
    gradients = large.engine.gradients
    compute = gradients._compute  # type: ignore[attr-defined]

    def limited(block: torch.Tensor, capacity) -> torch.Tensor:
        nll = compute(block, capacity)
        if capacity.tokens > 64:
            torch.empty(1 << 46, dtype=torch.uint8, device="cuda")
        return nll

    gradients._compute = limited  # type: ignore[attr-defined]
    small.run()
    large.run()
    assert large.engine.max_tokens == 50  # the first step has 65 tokens, padded to 128; each half is padded to 64
    assert torch.equal(small.engine.adapter.flat, large.engine.adapter.flat)
    assert sum("out of memory" in line for line in large.reporter.notes) == 1  # type: ignore[attr-defined]
