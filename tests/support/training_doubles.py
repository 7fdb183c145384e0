"""Stand-ins for what a trainer talks to: rows in memory, a reporter that stops the run, an adapter already trained."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from strop.data.examples import Origin
from strop.data.store import Sample
from strop.errors import Interrupted
from strop.model.lora import LoraAdapter
from strop.model.pretrained.weights import load_decoder
from strop.recipe import LoraSection, TrainSection
from strop.run.folder import RunFolder
from strop.run.reporter import Reporter
from strop.training.engine import StropEngine
from strop.training.loop import Trainer


class Rows:
    """A store of twenty random samples; they begin with `header`."""

    def __init__(self, header: int = 0) -> None:
        random = np.random.default_rng(0)
        self._rows = [random.integers(3, 128, 6 + i % 5).astype(np.int32) for i in range(20)]
        self._rows = [np.concatenate([np.arange(header, dtype=np.int32), row]) for row in self._rows]
        self.lengths = np.array([len(row) for row in self._rows])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        return Sample(self._rows[index], np.arange(len(self._rows[index])) > 2)

    def origin(self, index: int) -> Origin:
        return Origin("rows.jsonl", index + 1)


class StopAt(Reporter):
    """Interrupts a run at a step, as a signal would, and keeps what it was told."""

    def __init__(self, step: int | None = None) -> None:
        self.step, self.notes = step, []

    def note(self, line: str) -> None:
        self.notes.append(line)

    def on_step(self, record) -> None:
        if record.step == self.step:
            raise Interrupted("stopped by the test")


def trainer_of(
    adapter: LoraAdapter,
    section: TrainSection,
    folder: Path,
    reporter: Reporter | None = None,
    rows: Rows | None = None,
    most_tokens: int | None = None,
    **more: object,
) -> Trainer:
    """A trainer on strop's own engine; `more` goes to `Trainer`."""
    rows, run = rows or Rows(), RunFolder(folder)

    def keep(tokens: int) -> None:
        run.update(lambda manifest: replace(manifest, max_tokens_per_microbatch=tokens))

    engine = StropEngine(adapter, rows, section, most_tokens, keep)  # type: ignore[arg-type]
    more = {"check_stop": lambda: None} | more
    return Trainer(engine, rows, section, run, reporter or Reporter(), **more)  # type: ignore[arg-type]


def adapter_with_b(folder: Path) -> LoraAdapter:
    """A float64 adapter whose B is not zero, so that A has gradients too."""
    adapter = LoraAdapter(load_decoder(folder, torch.float64), LoraSection(r=4), seed=0)
    generator = torch.Generator().manual_seed(5)
    for name, tensor in adapter.state_dict().items():
        if "lora_B" in name:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
    return adapter
