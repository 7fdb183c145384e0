"""Steps of a tiny model in float64 on one rank of several: what each computes, and whether all end up the same."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from strop.data.store import Sample
from strop.microbatch.pack import Microbatches
from strop.model.lora import LoraAdapter
from strop.model.pretrained.weights import load_decoder
from strop.parallel.team import ALONE, Team
from strop.recipe import LoraSection, TrainSection
from strop.training.engine import StropEngine
from strop.training.step import train_step


@dataclass(frozen=True)
class Case:
    """What is trained, and what is done wrong on purpose.

    Attributes:
        per_step: Samples of a step.
        max_tokens: Of a microbatch.
        fault: `mean of means`, `not summed`, `a sample twice`, or none.
    """

    per_step: int = 8
    dropout: float = 0.0
    max_tokens: int = 60
    optim: str = "adamw_torch"
    steps: int = 3
    fault: str = ""


class Rows:
    """Twenty samples of 2 to 47 tokens, every other one after a header, of which very different shares are learned."""

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        header = random.integers(3, 128, 17)
        self._rows = []
        for i in range(20):
            ids = random.integers(3, 128, random.integers(2, 31)).astype(np.int32)
            ids = np.concatenate([header, ids]).astype(np.int32) if i % 2 else ids
            learned = random.random(len(ids)) < random.random()
            learned[-1] = True
            self._rows.append(Sample(ids, learned))
        self.lengths = np.array([len(row.input_ids) for row in self._rows])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        return self._rows[index]


def steps(team: Team, folder: Path, case: Case) -> dict[str, Any]:
    """Losses, gradients before they are clipped, norms, and the weights in the end."""
    section = TrainSection(
        per_device_train_batch_size=case.per_step,
        gradient_accumulation_steps=1,
        max_steps=case.steps,
        learning_rate=1e-2,
        max_tokens_per_microbatch=case.max_tokens,
        optim=case.optim,
    )
    adapter = LoraAdapter(load_decoder(folder, torch.float64), LoraSection(r=4, lora_dropout=case.dropout), seed=0)
    for name, tensor in adapter.state_dict().items():
        if "lora_B" in name:
            tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(5)) * 0.1)
    engine = StropEngine(adapter, Rows(), section, team=team)  # type: ignore[arg-type]
    gradients: list[Tensor] = []
    update = engine.optimizer.update

    def kept(grad: Tensor, *more: Any) -> Tensor:
        gradients.append(grad.clone())
        return update(grad, *more)

    engine.optimizer.update = kept  # type: ignore[method-assign]
    launch = _faulty(engine, team, case.fault) if case.fault else engine.launch
    results = [launch(step, 1e-2, lambda: None).result() for step in range(case.steps)]
    state, _ = engine.state() if not case.fault else ({"lora": adapter.flat}, {})
    return {
        "losses": [result.loss for result in results],
        "norms": [result.grad_norm for result in results],
        "counts": [
            (each.num_samples, each.num_tokens, each.num_loss_tokens, each.num_executed_tokens) for each in results
        ],
        "ranks": [len(result.rank_seconds) for result in results],
        "gradients": torch.stack(gradients),
        "weights": state["lora"],
        "own": [sum(len(m.samples) for m in engine.microbatches.of_step(step)) for step in range(case.steps)],
    }


def _faulty(engine: StropEngine, team: Team, fault: str) -> Any:
    """A launch with one thing wrong."""
    of: Microbatches = engine.microbatches

    def launch(step: int, rate: float, check_stop: Any) -> Any:
        (batches, whole), together = of.share_of_step(step), team
        if fault == "mean of means":
            whole = team.size * sum(batch.num_loss_tokens for batch in batches)
        elif fault == "not summed":
            together = ALONE
        elif fault == "a sample twice" and team.rank == 1:
            batches = batches + replace(of, rank=0).of_step(step)[:1]
        return train_step(engine.gradients, engine.optimizer, batches, rate, 1.0, num_loss_tokens=whole, team=together)

    return launch
