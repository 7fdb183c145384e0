"""Out of memory in a microbatch: the microbatch is halved, the batch size stays, and the adapter is the same."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from emulated_cuda_graphs import Graph, emulate_graphs
from strop.errors import OutOfMemoryError
from strop.model.lora import LoraAdapter
from strop.model.pretrained.weights import load_decoder
from strop.recipe import LoraSection, TrainSection
from strop.run.checkpoint import checkpoint_path, is_intact
from strop.run.records import read_metrics
from strop.training import budget
from strop.training.gradients import PlainGradients
from strop.training.loop import Trainer
from training_doubles import StopAt, trainer_of

LONGEST = 10


Start = Callable[..., Trainer]


@pytest.fixture
def start(model: Path, tmp_path: Path) -> Start:
    def started(name: str, max_tokens: int, **changes: object) -> Trainer:
        section = TrainSection(
            **{"max_steps": 6, "learning_rate": 1e-2, "save_steps": 0, "max_tokens_per_microbatch": max_tokens}
        )
        adapter = LoraAdapter(load_decoder(model, torch.float64), LoraSection(r=2), seed=0)
        folder = tmp_path / name
        folder.mkdir()
        return trainer_of(adapter, section, folder, StopAt(), **changes)  # type: ignore[arg-type]

    return started


def limit_memory(trainer: Trainer, tokens: int, from_step: int = 0) -> list[int]:
    """From a step on, microbatches over `tokens` run out of memory; returns a list that collects their sizes.

    Memory runs out at the end of the backward, when the gradient has already been added.
    """
    add, failed = trainer.engine.gradients._add, []

    def limited(batch, scale: float) -> torch.Tensor:
        nll = add(batch, scale)
        if batch.num_tokens > tokens and trainer.progress.step + len(trainer._in_flight) >= from_step:
            failed.append(batch.num_tokens)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return nll

    trainer.engine.gradients._add = limited  # type: ignore[method-assign]
    return failed


def test_the_adapter_equals_that_of_a_run_with_the_smaller_microbatch_bitwise(start: Start) -> None:
    small, large = start("small", 25), start("large", 100)
    failed = limit_memory(large, 25)
    small.run()
    large.run()
    assert [size > 50 for size in failed] == [True, False]  # the whole step, then half of it
    assert large.engine.max_tokens == 25
    assert torch.equal(large.engine.adapter.flat, small.engine.adapter.flat)
    losses = [[r.loss for r in read_metrics(trainer.folder.metrics_path)] for trainer in (small, large)]
    assert losses[0] == losses[1]


def test_in_the_middle_of_a_run_only_rounding_changes(start: Start) -> None:
    undisturbed, disturbed, careless = start("a", 100), start("b", 100), start("c", 100)
    failed = limit_memory(disturbed, 26, from_step=3)
    undisturbed.run()
    disturbed.run()
    assert len(failed) == 2
    distance = (disturbed.engine.adapter.flat - undisturbed.engine.adapter.flat).abs().max().item()
    assert distance < 1e-12
    assert [r.num_tokens for r in read_metrics(disturbed.folder.metrics_path)] == [
        r.num_tokens for r in read_metrics(undisturbed.folder.metrics_path)
    ]
    # The negative control keeps the gradients of the failed microbatch.
    limit_memory(careless, 26, from_step=3)
    of = careless.engine.gradients.of

    def keeping(*arguments):
        is_again = careless.progress.step == 3 and careless.engine.max_tokens < 100
        kept = careless.engine.adapter.flat_grad.clone() if is_again else 0.0
        losses, grad = of(*arguments)
        return losses, grad.add_(kept)

    careless.engine.gradients.of = keeping  # type: ignore[method-assign]
    careless.run()
    assert (careless.engine.adapter.flat - undisturbed.engine.adapter.flat).abs().max().item() > 1e6 * max(
        distance, 1e-16
    )


def test_the_smaller_size_is_announced_and_kept_for_the_rest_of_the_run(start: Start) -> None:
    trainer = start("run", 100)
    failed = limit_memory(trainer, 40, from_step=2)
    trainer.run()
    notes = trainer.reporter.notes  # type: ignore[attr-defined]
    assert len(failed) == 1  # not once per step
    assert len(notes) == 1
    for words in ("step 3", "100 tokens", "50", "8 samples"):
        assert words in notes[0]
    assert trainer.folder.begun.max_tokens_per_microbatch == 50
    assert start("again", 100, most_tokens=50).engine.max_tokens == 50
    assert start("less", 16, most_tokens=50).engine.max_tokens == 16


def test_if_the_longest_sample_does_not_fit_it_saves_and_stops(start: Start) -> None:
    trainer = start("run", 64)
    limit_memory(trainer, LONGEST - 1, from_step=3)
    with pytest.raises(OutOfMemoryError, match=r"gradient_checkpointing=true") as caught:
        trainer.run()
    assert caught.value.exit_code == 6
    assert trainer.engine.max_tokens == LONGEST
    assert is_intact(checkpoint_path(trainer.folder.checkpoints, 3))


def test_an_evaluation_that_runs_out_of_memory_is_repeated(start: Start) -> None:
    trainer = start("run", 64)
    sizes = []

    def evaluate() -> float:
        sizes.append(trainer.engine.max_tokens)
        if trainer.engine.max_tokens > 32:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 1.0

    trainer.evaluate = evaluate
    trainer.run()
    assert sizes == [64, 32, 32]  # the base again, and the end
    assert trainer.progress.evaluated_step == 6


class Card:
    """The GPU that `tokens_that_fit` sees: `free` bytes, of which a microbatch takes a constant and 1,000 per token."""

    device = SimpleNamespace(type="cuda")

    def __init__(self, patch: pytest.MonkeyPatch, free: int, constant: int = 0) -> None:
        self.free, self.constant, self.peak, self.probed, self.released = free, constant, 0, [], 0
        patch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
        patch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
        patch.setattr(torch.cuda, "mem_get_info", lambda device: (free, free))
        patch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
        patch.setattr(torch.cuda, "synchronize", lambda device: None)
        patch.setattr(torch.cuda, "max_memory_allocated", lambda device: self.peak)

    def of(self, microbatches, scale: float) -> None:
        (batch,) = microbatches
        self.probed.append(batch.num_tokens)
        self.peak = self.constant + 1000 * batch.num_tokens
        if self.peak > self.free:
            raise torch.OutOfMemoryError("CUDA out of memory")

    def release(self) -> None:
        self.released += 1


def test_a_probe_that_does_not_fit_is_made_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(monkeypatch, free=3_000_000)
    assert budget.tokens_that_fit(card, card.device, 200) == 1024  # type: ignore[arg-type]
    assert card.probed == [2048, 4096, 1024, 2048]  # 45% of 3,000 tokens is 1,350, rounded down to 2 x 512
    assert card.released == 1
    roomy = Card(monkeypatch, free=10**12)
    assert budget.tokens_that_fit(roomy, roomy.device, 200) == 32768  # type: ignore[arg-type]


def test_if_not_even_the_smallest_probe_fits_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(monkeypatch, free=3_000_000, constant=3_000_000)
    with pytest.raises(OutOfMemoryError, match=r"128 tokens does not fit .* beside the weights") as caught:
        budget.tokens_that_fit(card, card.device, 200)  # type: ignore[arg-type]
    assert caught.value.exit_code == 6
    assert card.probed[-1] == 64


def test_plain_gradients_need_no_release_on_a_cpu(model: Path) -> None:
    PlainGradients(LoraAdapter(load_decoder(model, torch.float32), LoraSection(r=2), seed=0)).release()


def captured(model: Path, patch: pytest.MonkeyPatch):
    pytest.importorskip("triton")
    from strop.fused.capture import CapturedGradients

    emulate_graphs(patch)
    adapter = LoraAdapter(load_decoder(model, torch.float32), LoraSection(r=4), seed=0)
    adapter.flat.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    return adapter, CapturedGradients(adapter)


def test_released_graphs_are_captured_again_with_the_same_gradients(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, gradients = captured(model, monkeypatch)
    batch = budget.worst_microbatch(20, 10)

    def gradient() -> torch.Tensor:
        return gradients.of([batch], 1.0)[1]

    eager, replayed = gradient(), gradient()
    gradients.release()
    assert not gradients._graphs
    assert not gradients._seen
    for again in (gradient(), gradient()):
        assert torch.equal(again, eager)
        assert torch.equal(again, replayed)
    assert len(gradients._graphs) == 1


def test_a_capture_that_ran_out_of_memory_says_so(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, gradients = captured(model, monkeypatch)
    batch = budget.worst_microbatch(20, 10)
    gradients.of([batch], 1.0)

    class Broken:
        def __init__(self, made: Graph, **_: object) -> None: ...
        def __enter__(self) -> None: ...
        def __exit__(self, *exc: object) -> None:
            raise RuntimeError("capture_end: operation failed due to a previous error during capture")

    def full(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.cuda, "graph", Broken)
    monkeypatch.setattr(type(gradients), "_compute", full)
    with pytest.raises(torch.OutOfMemoryError):
        gradients.of([batch], 1.0)


def test_a_budget_has_room_for_the_longest_sample() -> None:
    assert budget.wanted_tokens(torch.device("cpu"), 5000) == 5000
    assert budget.wanted_tokens(torch.device("cpu"), 10) == 1024
    assert budget.tokens_within(free=2000, constant=0, each=1, wanted=32768, longest_sample=700) == 700
    assert budget.tokens_within(free=4000, constant=0, each=1, wanted=32768, longest_sample=700) == 1536
