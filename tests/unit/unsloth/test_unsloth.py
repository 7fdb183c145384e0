"""How a run uses its worker: here a double answers, without a process or a model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from strop.errors import Interrupted, NumericsError, OutOfMemoryError, RecipeError, StropError
from strop.recipe import TrainSection
from strop.run.checkpoint import load_newest
from strop.run.folder import RunFolder
from strop.run.records import read_metrics
from strop.run.reporter import Reporter
from strop.training.loop import Trainer
from strop.unsloth.engine import UnslothEngine
from strop.unsloth.process import WorkerFailed
from training_doubles import Rows, StopAt

READY = {"device": "test", "precision": "bfloat16", "versions": {"trl": "1.15.0"}, "num_trainable": 3}


class Answers:
    """A worker whose only weight counts the steps; `losses` are held-out losses, `failures` replace answers."""

    def __init__(self, folder: Path, losses: tuple[float, ...] = (), failures: dict[str, WorkerFailed] | None = None):
        self.log, self.asked, self.weight = folder / "unsloth" / "worker.log", [], 0.0
        self._losses, self._failures = list(losses), failures or {}
        self.log.parent.mkdir(parents=True, exist_ok=True)
        for name in ("rows.npz", "initial.safetensors", "worker.log"):
            self.log.with_name(name).touch()

    def answer(self) -> dict[str, Any]:
        if failure := self._failures.get("ready"):
            raise failure
        return READY

    def last_words(self) -> str:
        return "the last line"

    def ask(self, what: str, **details: Any) -> dict[str, Any]:
        self.asked.append(what)
        if failure := self._failures.get(f"{what} {self.weight:.0f}"):
            raise failure
        if what == "begin":
            if details["state"]:
                self.weight = load_file(details["state"])["lora/w"].item()
                assert details["scalars"] == {"w": {"step": int(self.weight)}}
            return {"padding_free": False}
        if what == "go":
            self.weight += 1
            return {"loss": 2.0, "grad_norm": 1.0, "seconds": 0.5}
        if what == "evaluate":
            return {"nll": self._losses.pop(0)}
        save_file({"lora/w": torch.tensor(self.weight), "moments/w/m": torch.tensor(self.weight)}, details["path"])
        return {"scalars": {"w": {"step": int(self.weight)}}}


def trainer(folder: Path, worker: Answers, reporter: Reporter | None = None, **section: Any) -> Trainer:
    settings = TrainSection(**{"max_steps": 6, "save_steps": 2, "eval_on_start": False, **section})
    folder.mkdir(exist_ok=True)
    engine = UnslothEngine(worker, Rows(), settings, load=lambda weights: weights)  # type: ignore[arg-type]
    evaluate = engine.evaluate if worker._losses else None
    return Trainer(engine, Rows(), settings, RunFolder(folder), reporter or Reporter(), lambda: None, evaluate)  # type: ignore


def test_the_best_adapter_is_kept_and_early_stopping_ends_the_run(tmp_path: Path) -> None:
    watched = {"eval_steps": 1, "early_stopping_patience": 2, "load_best_model_at_end": True}
    run = trainer(tmp_path / "run", Answers(tmp_path / "run", (3.0, 1.0, 2.0, 1.5, 0.0, 0.0)), **watched)
    assert run.run()["lora/w"].item() == 2
    assert (run.progress.step, run.progress.best_step, run.progress.stopped_early) == (4, 2, True)
    last = trainer(tmp_path / "last", Answers(tmp_path / "last", (3.0, 1.0, 2.0, 1.5, 0.0, 0.0)), eval_steps=1)
    assert last.run()["lora/w"].item() == 6


def test_an_interrupted_run_resumes_with_its_best_weights_and_moments(tmp_path: Path) -> None:
    watched = {"eval_steps": 1, "load_best_model_at_end": True}
    first = trainer(tmp_path, Answers(tmp_path, (3.0, 1.0, 2.0)), StopAt(3), **watched)
    with pytest.raises(Interrupted, match="step 3 of 6 is saved"):
        first.run()
    checkpoint, _ = load_newest(tmp_path / "checkpoints")
    assert checkpoint is not None
    worker = Answers(tmp_path, (2.0, 1.5, 1.2, 1.1))
    second = trainer(tmp_path, worker, **watched)
    second.restore(checkpoint)
    assert second.run()["lora/w"].item() == 2
    assert worker.weight == 6
    steps = [record.step for record in read_metrics(tmp_path / "metrics.jsonl") if record.kind == "train"]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_padding_counts_as_executed(tmp_path: Path) -> None:
    run = trainer(
        tmp_path, Answers(tmp_path), max_steps=1, per_device_train_batch_size=20, gradient_accumulation_steps=1
    )
    run.run()
    (record,) = read_metrics(tmp_path / "metrics.jsonl")
    lengths = Rows().lengths
    assert (record.num_tokens, record.num_executed_tokens) == (lengths.sum(), 20 * lengths.max())
    assert record.num_loss_tokens == sum(length - 3 for length in lengths)
    assert record.tokens_per_second == lengths.sum() / 0.5


@pytest.mark.parametrize(
    ("what", "kind", "words"),
    [
        ("out of memory", OutOfMemoryError, ["step 3", "train.per_device_train_batch_size", "stays at 8"]),
        ("not finite", NumericsError, ["step 3: nan. Nothing was updated", "rows.jsonl:"]),
        ("ImportError", RecipeError, ["ImportError: nan", "the last line"]),
        ("RuntimeError", StropError, ["RuntimeError: nan", "the last line"]),
    ],
)
def test_a_failure_becomes_the_error_that_the_user_sees(
    what: str, kind: type[StropError], words: list[str], tmp_path: Path
) -> None:
    worker = Answers(tmp_path, failures={"go 2": WorkerFailed(what, "nan")})
    with pytest.raises(kind) as caught:
        trainer(tmp_path, worker, save_steps=0).run()
    assert type(caught.value) is kind
    assert all(word in str(caught.value) for word in words), str(caught.value)
    saved = kind in (OutOfMemoryError, NumericsError)
    assert [path.name for path in tmp_path.glob("checkpoints/*")] == (["step-00000002"] if saved else [])


def test_a_failure_while_loading_is_reported(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="needs another torch"):
        trainer(tmp_path, Answers(tmp_path, failures={"ready": WorkerFailed("ImportError", "needs another torch")}))
