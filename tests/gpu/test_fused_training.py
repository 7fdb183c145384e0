"""Whole runs on the fused layers: resumed ones, ones that meet an infinity, and a graph that is fed the wrong block."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import strop
from helpers import metrics, write_recipe
from strop.errors import Interrupted, NumericsError
from strop.model.lora import LoraAdapter
from strop.model.precision import choose_device
from strop.model.pretrained.weights import load_decoder
from strop.recipe import LoraSection, TrainSection, load_recipe
from strop.run.checkpoint import load_newest
from strop.run.reporter import Reporter
from strop.training.loop import Trainer
from strop.training.step import StepInFlight
from test_fused_gpu import adapter_of, captured, step_of
from tiny_models import write_checkpoint
from training_doubles import StopAt, trainer_of
from tree_batches import batch_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize(("dropout", "layers"), [(0.0, "fused kernels"), (0.1, "plain, because lora_dropout")])
@pytest.mark.parametrize("precision", ["bfloat16", "float8", "nf4"])
def test_a_resumed_run_is_bitwise_the_undisturbed_one(
    precision: str, dropout: float, layers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On fused layers the resumed run captures its graphs at other steps."""
    monkeypatch.setenv("STROP_CACHE", str(tmp_path / "cache"))
    held = {"model.load_in_4bit": True, "train.optim": "adamw_8bit"} if precision == "nf4" else {}
    recipe, chosen = write_recipe(tmp_path), held or {"model.precision": precision}
    chosen = chosen | {"lora.lora_dropout": dropout}
    heard = StopAt()
    whole = strop.train(
        load_recipe(str(recipe), chosen | {"train.output_dir": str(tmp_path / "whole")}), reporter=heard
    )
    assert any(layers in line for line in heard.notes)
    parts = load_recipe(str(recipe), chosen | {"train.output_dir": str(tmp_path / "parts")})
    with pytest.raises(Interrupted):
        strop.train(parts, reporter=StopAt(5))
    resumed = strop.train(parts)
    train = [[record | {"peak_memory_gib": 0} for record in metrics(run.path)] for run in (whole, resumed)]
    assert train[0] == train[1]
    assert whole.manifest.precision == precision
    name = "adapter_model.safetensors"
    assert (whole.adapter_path / name).read_bytes() == (resumed.adapter_path / name).read_bytes()
    other = strop.train(
        load_recipe(str(recipe), chosen | {"train.output_dir": str(tmp_path / "other"), "train.seed": 1})
    )
    assert (whole.adapter_path / name).read_bytes() != (other.adapter_path / name).read_bytes()


class PlantsInfinity(Reporter):
    """Spoils the adapter when it hears of step 2, and keeps all state when it hears of step 3."""

    trainer: Trainer
    state: list[torch.Tensor]

    def now(self) -> list[torch.Tensor]:
        return [
            self.trainer.engine.adapter.flat.detach().cpu().clone(),
            *self.trainer.engine.optimizer.state().values(),
        ]

    def on_step(self, record) -> None:
        if record.step == 2:
            self.trainer.engine.adapter.flat[0] = float("inf")
        if record.step == 3:
            self.state = self.now()


def test_an_infinity_names_rows_and_updates_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Step 3 was in flight when it was planted, so step 4 is the first to meet it, and step 5 is in flight by then."""
    monkeypatch.setattr(StepInFlight, "is_done", property(lambda self: False))
    folder = write_checkpoint(tmp_path / "model", "llama3", hidden_size=64, intermediate_size=96)
    adapter = LoraAdapter(load_decoder(folder, torch.bfloat16, choose_device()), LoraSection(r=4), seed=0)
    section, reporter = TrainSection(max_steps=8, learning_rate=1e-2, save_steps=0), PlantsInfinity()
    (tmp_path / "run").mkdir()
    reporter.trainer = trainer_of(adapter, section, tmp_path / "run", reporter)
    assert type(reporter.trainer.engine.gradients).__name__ == "CapturedGradients"
    launched: list[int] = []
    launch = reporter.trainer.engine.launch
    monkeypatch.setattr(
        reporter.trainer.engine, "launch", lambda step, *rest: (launched.append(step), launch(step, *rest))[1]
    )
    with pytest.raises(NumericsError, match=r"step 4.*rows\.jsonl:"):
        reporter.trainer.run()
    assert launched == [0, 1, 2, 3, 4]
    after = reporter.now()
    assert all(torch.equal(a, b) for a, b in zip(reporter.state, after, strict=True))
    assert after[0][0] == float("inf")
    assert after[0][1:].isfinite().all()
    checkpoint, _ = load_newest(reporter.trainer.folder.checkpoints)
    assert checkpoint is not None
    assert checkpoint.step == 3


def test_a_graph_that_reads_a_stale_block_shows(tmp_path: Path) -> None:
    """The control of `test_a_replayed_graph_gives_the_bits_of_an_eager_run`."""
    adapter = adapter_of(write_checkpoint(tmp_path, "phi3", hidden_size=128, intermediate_size=256), torch.bfloat16)
    gradients, first, second = captured(adapter), batch_of(True, 0), batch_of(True, 1)
    for _ in range(2):
        stale, _ = step_of(gradients, adapter, first)
    want, _ = step_of(gradients, adapter, second)
    assert torch.equal(want, step_of(captured(adapter), adapter, second)[0])
    assert not torch.equal(want, stale)
    ((capacity, graph),) = gradients._graphs.items()
    gradients._graphs[capacity] = replace(graph, block=graph.block.clone())
    step_of(gradients, adapter, first)  # its numbers go elsewhere: the graph still reads the second batch
    assert torch.equal(step_of(gradients, adapter, first)[0], want)


def test_float8s_loss_is_near_bfloat16s(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, "llama3", hidden_size=128, head_dim=32, gain=1.0, intermediate_size=256)
    batch, found = batch_of(share=True), {}
    for float8 in (False, True):
        adapter = adapter_of(folder, torch.bfloat16, float8)
        gradients = captured(adapter)
        nll, gradient = step_of(gradients, adapter, batch)
        assert gradient.isfinite().all()
        assert gradient.count_nonzero() > 0.9 * gradient.numel()
        assert gradients.nll_of(batch).item() == pytest.approx(nll.item(), rel=1e-2)  # unpadded
        found[float8] = nll.item()
    assert found[True] != found[False]
    assert found[True] == pytest.approx(found[False], rel=0.03)
