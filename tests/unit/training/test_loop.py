"""What the loop decides: when to evaluate, which weights to keep, when to stop. Stopping loses nothing."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from strop.errors import Interrupted, NumericsError
from strop.microbatch.order import Order
from strop.model.decoder import Dropout
from strop.model.lora import LoraAdapter
from strop.model.pretrained.weights import load_decoder
from strop.recipe import LoraSection, TrainSection
from strop.run.checkpoint import load_newest
from strop.run.records import EvalRecord, Sample, TrainRecord, read_metrics
from strop.training.engine import dropout_seed
from strop.training.loop import Trainer
from strop.training.optim import learning_rate
from training_doubles import Rows, trainer_of

Start = Callable[..., Trainer]


@pytest.fixture
def start(model: Path, tmp_path: Path) -> Start:
    def started(
        losses: Iterator[float] | None = None, check_stop: Callable[[], None] = lambda: None, **settings: object
    ) -> Trainer:
        section = TrainSection(
            **{"max_steps": 8, "learning_rate": 1e-2, "save_steps": 0, "eval_on_start": False, **settings}
        )
        adapter = LoraAdapter(load_decoder(model, torch.float32), LoraSection(r=2), seed=0)
        tmp_path.mkdir(exist_ok=True)
        evaluate = None if losses is None else (lambda: next(losses))
        return trainer_of(adapter, section, tmp_path, evaluate=evaluate, check_stop=check_stop)

    return started


def evaluated_at(trainer: Trainer) -> list[int]:
    return [r.step for r in read_metrics(trainer.folder.metrics_path) if isinstance(r, EvalRecord)]


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({}, [8]),
        ({"eval_steps": 3}, [3, 6, 8]),
        ({"eval_steps": 4}, [4, 8]),
        ({"eval_on_start": True}, [0, 8]),
        ({"eval_on_start": None, "eval_steps": 4}, [0, 4, 8]),
    ],
)
def test_when_it_evaluates(start: Start, settings: dict[str, object], steps: list[int]) -> None:
    trainer = start(itertools.count(1.0), **settings)
    trainer.run()
    assert evaluated_at(trainer) == steps


def test_the_best_weights_win(start: Start) -> None:
    trainer = start(iter([3.0, 1.0, 2.0, 2.5]), eval_steps=2, load_best_model_at_end=True)
    kept: dict[int, torch.Tensor] = {}
    trainer.reporter.on_eval = lambda record: kept.__setitem__(record.step, trainer.engine.adapter.flat.clone())  # type: ignore
    weights = trainer.run()
    assert trainer.progress.best_step == 4
    assert not torch.equal(trainer.engine.adapter.flat, kept[4])
    assert torch.equal(trainer.engine.adapter_with(weights).flat, kept[4])
    assert not torch.equal(kept[4], kept[8])


def test_the_best_weights_win_even_if_early_stopping_would_not_count_their_gain(start: Start) -> None:
    losses = iter([3.0, 2.75, 2.9, 2.8])
    settings = {"early_stopping_patience": 9, "early_stopping_threshold": 1.0}
    trainer = start(losses, eval_steps=2, load_best_model_at_end=True, **settings)
    kept: dict[int, torch.Tensor] = {}
    trainer.reporter.on_eval = lambda record: kept.__setitem__(record.step, trainer.engine.adapter.flat.clone())  # type: ignore
    weights = trainer.run()
    assert trainer.progress.best_step == 4
    assert torch.equal(trainer.engine.adapter_with(weights).flat, kept[4])


def test_early_stopping_counts_evaluations_without_gain(start: Start) -> None:
    losses = iter([3.0, 2.0, 1.99, 1.98, 0.1])
    trainer = start(losses, eval_steps=1, early_stopping_patience=2, early_stopping_threshold=0.05)
    trainer.run()
    assert trainer.progress.stopped_early
    assert trainer.progress.step == 4


def test_the_base_is_no_candidate_for_the_best_weights_nor_counted_for_patience(start: Start) -> None:
    losses = iter([0.5, 3.0, 2.0, 2.5, 2.6, 0.1])
    trainer = start(losses, eval_on_start=None, eval_steps=1, load_best_model_at_end=True, early_stopping_patience=2)
    weights = trainer.run()
    assert (trainer.progress.best_step, trainer.progress.best_loss) == (2, 2.0)
    assert (trainer.progress.step, trainer.progress.stopped_early) == (4, True)
    assert evaluated_at(trainer) == [0, 1, 2, 3, 4]
    assert weights["lora"].any()


def test_a_base_whose_evaluation_was_lost_with_its_attempt_is_entered_once(start: Start) -> None:
    def killed() -> None:
        raise Interrupted("SIGTERM")

    first = start(iter([2.0]), check_stop=killed, eval_on_start=None)
    with pytest.raises(Interrupted, match="before step 1"):
        first.run()
    assert evaluated_at(first) == [0]
    second = start(itertools.count(1.0), eval_on_start=None)
    second.start_over()
    second.run()
    assert evaluated_at(second) == [0, 8]


def test_an_interrupted_evaluation_is_repeated(start: Start) -> None:
    def losses() -> Iterator[float]:
        yield 2.0
        raise Interrupted("SIGTERM")

    first = start(losses(), eval_steps=2)
    with pytest.raises(Interrupted, match="step 4 of 8 is saved"):
        first.run()
    assert evaluated_at(first) == [2]
    second = start(itertools.count(1.0), eval_steps=2)
    checkpoint, _ = load_newest(second.folder.checkpoints)
    assert checkpoint is not None
    second.restore(checkpoint)
    second.run()
    assert evaluated_at(second) == [2, 4, 6, 8]


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_number_that_is_not_finite_stops_the_run_before_the_update(start: Start, what: str) -> None:
    trainer = start(max_steps=5, max_tokens_per_microbatch=20)
    before: list[torch.Tensor] = []
    real = trainer.engine.decoder.nll_sum
    calls = itertools.count()

    def poisoned(*args: torch.Tensor) -> torch.Tensor:
        nll = real(*args)
        if trainer.progress.step < 2 or next(calls) != 1:
            return nll
        before.append(trainer.engine.adapter.flat.clone())
        return nll * float("nan") if what == "loss" else nll + (nll - nll.detach()) * float("inf")

    trainer.engine.decoder.nll_sum = poisoned  # type: ignore[method-assign]
    with pytest.raises(NumericsError, match="step 3") as caught:
        trainer.run()
    assert torch.equal(trainer.engine.adapter.flat, before[0])
    assert "rows.jsonl:" in str(caught.value)
    checkpoint, _ = load_newest(trainer.folder.checkpoints)
    assert checkpoint is not None
    assert checkpoint.step == 2
    assert torch.equal(checkpoint.tensors["lora"], before[0])


def test_dropout_depends_on_seed_and_step(start: Start) -> None:
    def dropped(seed: int) -> list[float]:
        trainer = start(seed=seed, max_steps=2, learning_rate=1e-12)  # so that the weights stay, to six digits
        adapter = trainer.engine.adapter
        adapter.dropout = adapter.decoder.dropout = dropout = Dropout(0.5)
        for projection in (layer.qkv for layer in trainer.engine.decoder.layers):
            projection.lora = replace(projection.lora, dropout=dropout)
        trainer.engine.adapter.flat.normal_(generator=torch.Generator().manual_seed(0))
        trainer.run()
        return [r.loss for r in read_metrics(trainer.folder.metrics_path) if isinstance(r, TrainRecord)][-2:]

    with pytest.MonkeyPatch.context() as patch:  # the same rows whatever the seed
        patch.setattr(Order, "samples", lambda *_: np.arange(8))
        first, second = dropped(1)
        assert [first, second] == dropped(1)
        assert abs(first - second) > 1e-3, "the same rows and weights: only the masks differ"
        assert [first, second] != dropped(2)


def test_every_step_has_a_dropout_seed_of_its_own() -> None:
    seeds = {dropout_seed(seed, step) for seed in range(20) for step in range(500)}
    assert len(seeds) > 9_990, "of 10,000; 32 bits repeat one in a hundred thousand pairs by chance"
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_shared_prefixes_are_computed_once_unless_there_is_dropout(model: Path, tmp_path: Path) -> None:
    def trained(dropout: float) -> Trainer:
        section = TrainSection(max_steps=2, save_steps=0, per_device_train_batch_size=10, gradient_accumulation_steps=1)
        decoder = load_decoder(model, torch.float32)
        adapter = LoraAdapter(decoder, LoraSection(r=2, lora_dropout=dropout), seed=0)
        folder = tmp_path / str(dropout)
        folder.mkdir()
        rows = Rows(header=30)
        trainer = trainer_of(adapter, section, folder, rows=rows)
        trainer.run()
        return trainer

    shared, separate = trained(0.0), trained(0.1)
    once, each = (read_metrics(trainer.folder.metrics_path)[0] for trainer in (shared, separate))
    assert isinstance(once, TrainRecord)
    assert isinstance(each, TrainRecord)
    assert once.num_tokens - (once.num_executed_tokens or 0) == 9 * 30
    assert each.num_executed_tokens == each.num_tokens == once.num_tokens
    assert shared.progress.num_tokens == separate.progress.num_tokens
    assert shared.engine.microbatches.sharing() == pytest.approx(20 * 38 / (20 * 8 + 2 * 30))
    assert separate.engine.microbatches.sharing() == 1.0


def test_every_step_is_launched_once_and_at_its_rate(start: Start) -> None:
    trainer = start(max_steps=6, warmup_steps=3, lr_scheduler_type="cosine", save_steps=4)
    launched: list[tuple[int, float]] = []
    real = trainer.engine.launch

    def launch(step: int, rate: float, check_stop: Callable[[], None]):
        launched.append((step, rate))
        return real(step, rate, check_stop)

    trainer.engine.launch = launch  # type: ignore[method-assign]
    trainer.run()
    wanted = [learning_rate(step, trainer.section, 6) for step in range(6)]
    assert launched == list(enumerate(wanted))
    records = [r for r in read_metrics(trainer.folder.metrics_path) if isinstance(r, TrainRecord)]
    assert [(r.step, r.learning_rate) for r in records] == [(step + 1, rate) for step, rate in launched]
    assert [r.num_tokens for r in records] == [
        sum(m.num_sample_tokens for m in trainer.engine.microbatches.of_step(step)) for step in range(6)
    ]
    assert trainer.progress.num_tokens == sum(r.num_tokens for r in records)


def test_samples_that_do_not_fit_are_skipped(start: Start) -> None:
    trainer = start(itertools.count(1.0))
    notes: list[str] = []
    trainer.reporter.note = notes.append  # type: ignore[method-assign]

    def sample(step: int) -> list[Sample]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    trainer.sample = sample
    trainer.run()
    assert trainer.progress.step == 8
    assert notes == ["step 8: no samples, because they do not fit in the GPU's memory"]
    assert evaluated_at(trainer) == [8]
    assert not trainer.folder.samples_path.exists()
