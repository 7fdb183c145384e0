"""The cost limit: a run saves and stops before it, and resumes when the limit is raised."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from strop.errors import BudgetReached
from strop.model.lora import LoraAdapter
from strop.model.pretrained.weights import load_decoder
from strop.recipe import LoraSection, TrainSection
from strop.run.checkpoint import load_newest
from strop.run.cost import Meter
from strop.run.manifest import AttemptCost
from strop.run.records import read_metrics
from strop.training.loop import Trainer
from tiny_models import write_checkpoint
from training_doubles import StopAt, trainer_of


class Clock:
    """A minute per step, at a dollar per minute."""

    seconds = 0.0

    def meter(self, limit: float | None, **fields: object) -> Meter:
        return Meter("H200", 1 / 60, 0.0, limit=limit, now=lambda: self.seconds, **fields)  # type: ignore[arg-type]


Start = Callable[..., Trainer]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    model = write_checkpoint(tmp_path / "model", "smollm2")

    def started(name: str, clock: Clock, limit: float | None, **fields: object) -> Trainer:
        section = TrainSection(max_steps=8, learning_rate=1e-2, save_steps=0)
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)

        class AMinute(StopAt):
            def on_step(self, record) -> None:
                clock.seconds += 60

        adapter = LoraAdapter(load_decoder(model, torch.float32), LoraSection(r=2), seed=0)
        meter = clock.meter(limit, **fields)
        monkeypatch.setattr("strop.training.loop.time", SimpleNamespace(perf_counter=lambda: clock.seconds))
        return trainer_of(adapter, section, folder, AMinute(), meter=meter)

    return started


def test_it_saves_and_resumes_bitwise_when_the_limit_is_raised(start: Start) -> None:
    whole = start("whole", Clock(), None)
    whole.run()
    first = start("run", Clock(), 3.5)
    with pytest.raises(BudgetReached, match=r"max_cost=3\.5: \$2\.00 so far; step 2 of 8 is saved"):
        # Two more steps of a minute, a checkpoint's 10 s and the exit's 5 s would exceed 3.5 minutes.
        first.run()
    assert first.meter is not None
    assert first.meter.dollars <= 3.5
    start("more", Clock(), 10.3).run()
    checkpoint, _ = load_newest(first.folder.checkpoints)
    assert checkpoint is not None
    second = start("run", Clock(), 10.0, earlier=(first.meter.entry(1),))
    second.restore(checkpoint)
    second.run()
    assert torch.equal(second.engine.adapter.flat, whole.engine.adapter.flat)
    dollars = [record.dollars for record in read_metrics(second.folder.metrics_path)]
    assert dollars == [0, 1, 2, 3, 4, 5, 6, 7]  # over all attempts; a step's record is written before its minute passes


def test_room_is_left_for_a_checkpoint_as_long_as_the_last_one_took(start: Start) -> None:
    for save_seconds, steps in ((50.0, 4), (120.0, 2)):
        trainer = start(f"run{steps}", Clock(), 6.0)
        trainer._save_seconds = save_seconds
        with pytest.raises(BudgetReached, match=f"step {steps} of 8 is saved"):
            trainer.run()
        assert trainer._save_seconds == 0.0  # measured by now, on a clock that does not advance


def test_a_limit_already_reached_before_the_first_step_trains_nothing(start: Start) -> None:
    spent = (AttemptCost(1, "H200", "1970-01-01T00:00:00+00:00", 0.01, 500.0, 5.0),)
    with pytest.raises(BudgetReached, match="before step 1"):
        start("run", Clock(), 4.0, earlier=spent).run()


def test_an_evaluation_stops_at_the_limit_too(start: Start) -> None:
    clock = Clock()
    trainer = start("run", clock, 6.0)

    def evaluate() -> float:
        clock.seconds += 600
        trainer.check()
        raise AssertionError("the check did not stop it")

    trainer.section = trainer.section.model_copy(update={"eval_steps": 2, "eval_on_start": False})
    trainer.evaluate = evaluate
    with pytest.raises(BudgetReached, match="step 2 of 8 is saved"):
        trainer.run()
