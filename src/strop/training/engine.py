"""What computes the steps of a run: the interface that the loop needs, and strop's own engine."""

import gc
import hashlib
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from strop.data.store import SampleStore
from strop.errors import NumericsError, OutOfMemoryError
from strop.microbatch.order import Order
from strop.microbatch.pack import Microbatches
from strop.model.lora import LoraAdapter
from strop.parallel.team import ALONE, Team
from strop.recipe import TrainSection
from strop.training.budget import tokens_that_fit
from strop.training.gradients import choose_gradients, why_plain
from strop.training.optim import choose_optimizer
from strop.training.step import StepResult, train_step

Tensors = dict[str, Tensor]


class InFlight(Protocol):
    """A step that was launched and may still be running."""

    @property
    def is_done(self) -> bool:
        """Whether the result is available without waiting."""

    def result(self) -> StepResult:
        """Wait for the step.

        Raises:
            NonFiniteError: Neither this step nor any later one updated anything.
        """


class Engine(Protocol):
    """Computes steps and owns the state that they change. `weights` and `state` name tensors as a checkpoint does.

    Attributes:
        device: The device's name.
        num_trainable: Trained parameters.
        save_seconds: Assumed time of a checkpoint until one has been measured.
    """

    device: str
    num_trainable: int
    save_seconds: float

    @property
    def chosen(self) -> Mapping[str, Any]:
        """Choices made for this device that may change a result's last digits, for the run's manifest."""

    def explain(self) -> list[str]:
        """What was chosen, and why, as lines for the user."""

    def launch(self, step: int, learning_rate: float, check_stop: Callable[[], None]) -> InFlight:
        """Start a step, counted from 0. `check_stop` may raise to abandon it; nothing is updated then.

        Raises:
            torch.OutOfMemoryError: It does not fit. Nothing was updated; see `make_room`.
            NonFiniteError, OutOfMemoryError: It failed for good. The state is that of the previous step.
        """

    def make_room(self, step: int) -> str:
        """Use smaller microbatches from now on, because a step ran out of memory.

        Args:
            step: As people count it, from 1.

        Returns:
            A line that says so.

        Raises:
            OutOfMemoryError: They cannot be made smaller.
        """

    def weights(self) -> Tensors:
        """The trained parameters on the host: `lora`, or `lora/NAME` for each."""

    def state(self) -> tuple[Tensors, dict[str, Any]]:
        """Everything that resuming needs, weights included: tensors on the host, and further entries for JSON."""

    def load_state(self, step: int, tensors: Tensors, entries: Mapping[str, Any]) -> None:
        """Resume from what `state` returned after a step."""

    def adapter_with(self, weights: Tensors) -> LoraAdapter:
        """The adapter with these weights; no step may follow."""


class StropEngine:
    """strop's own engine: packed microbatches on the fused or the plain decoder, one step in flight.

    On several ranks each has one, and each method that changes or compares something is called on all at the same time
    (see `training.ranks`): a step's samples are divided, its gradient is summed, and the update is the same on each.
    """

    save_seconds = 10.0
    """A checkpoint of 90 million floats took 2 seconds."""

    def __init__(
        self,
        adapter: LoraAdapter,
        store: SampleStore,
        section: TrainSection,
        most_tokens: int | None = None,
        keep_tokens: Callable[[int], None] = lambda tokens: None,
        team: Team = ALONE,
    ) -> None:
        """Prepare to train an adapter on a store.

        Args:
            adapter: On its device.
            store: The training samples.
            section: Of the recipe.
            most_tokens: Tokens of a microbatch that an earlier attempt reduced it to after running out of memory.
            keep_tokens: Told the size of a microbatch if it has to be reduced.
            team: The ranks that share each step.
        """
        self.adapter, self.decoder, self._section, self._team = adapter, adapter.decoder, section, team
        self._keep_tokens = keep_tokens
        self.decoder.gradient_checkpointing = section.gradient_checkpointing
        self.decoder.train()
        device = self.decoder.device
        self.device = device_name(device)
        self.num_trainable = adapter.num_parameters
        with team.agreed():
            self.optimizer, self.gradients = choose_optimizer(adapter, section), choose_gradients(adapter)
        self._longest = int(store.lengths.max())

        def fitting() -> int:
            wanted = section.max_tokens_per_microbatch or tokens_that_fit(self.gradients, device, self._longest)
            return min(wanted, most_tokens or wanted)

        self.microbatches = Microbatches(
            store,
            Order.of(section, len(store)),
            max_tokens=min(team.each(fitting)),
            share=adapter.section.lora_dropout == 0,
            long_from=self.decoder.config.rope.long_from,
            rank=team.rank,
            ranks=team.size,
        )

    @property
    def max_tokens(self) -> int:
        """Most tokens in a microbatch."""
        return self.microbatches.max_tokens

    @property
    def chosen(self) -> Mapping[str, Any]:
        """See `Engine`."""
        return {
            "precision": self.decoder.precision,
            "max_tokens_per_microbatch": self.max_tokens,
            "ranks": self._team.size,
        }

    def explain(self) -> list[str]:
        """See `Engine`; on a CPU there is nothing to choose."""
        if self.decoder.device.type != "cuda":
            return []
        reason = why_plain(self.adapter)
        layers = f"plain, because {reason}" if reason else "fused kernels, captured as CUDA graphs"
        return [f"layers: {layers}", f"microbatches of up to {self.max_tokens:,} tokens"]

    def launch(self, step: int, learning_rate: float, check_stop: Callable[[], None]) -> InFlight:
        """See `Engine`."""
        if self.adapter.dropout is not None:
            self.adapter.dropout.step_seed = dropout_seed(self._section.seed, step)
        microbatches, num_loss_tokens = self.microbatches.share_of_step(step)
        return train_step(
            self.gradients,
            self.optimizer,
            microbatches,
            learning_rate,
            self._section.max_grad_norm,
            check_stop,
            num_loss_tokens=num_loss_tokens,
            team=self._team,
        )

    def make_room(self, step: int) -> str:
        """See `Engine`: halves the microbatches; the step's samples are packed again."""
        before = self.max_tokens
        if before <= self._longest:
            raise OutOfMemoryError(
                f"step {step}: a microbatch of {before} tokens does not fit in the GPU's memory, and the longest "
                f"sample has {self._longest}. Set train.gradient_checkpointing=true or a smaller "
                "model.max_seq_length, or use a GPU with more memory: `strop plan` shows which."
            )
        self.microbatches = replace(self.microbatches, max_tokens=max(before // 2, self._longest))
        gc.collect()  # the failed step's frames may lie in a reference cycle and keep its tensors alive
        self.gradients.release()
        self._keep_tokens(self.max_tokens)
        return (
            f"step {step}: out of memory with microbatches of up to {before:,} tokens; continuing with "
            f"{self.max_tokens:,}. The batch stays at {self._section.samples_per_step} samples"
        )

    def weights(self) -> Tensors:
        """See `Engine`."""
        return {"lora": self.adapter.flat.detach().cpu().clone()}

    def state(self) -> tuple[Tensors, dict[str, Any]]:
        """See `Engine`.

        Raises:
            NumericsError: It is not the same on all ranks.
        """
        tensors = {"lora": self.adapter.flat.detach().cpu(), **self.optimizer.state()}
        _refuse_differences(self._team.each(lambda: _digest(tensors) if self._team.size > 1 else ""))
        return tensors, {}

    def load_state(self, step: int, tensors: Tensors, entries: Mapping[str, Any]) -> None:
        """See `Engine`."""
        self.adapter.flat.copy_(tensors["lora"])
        self.optimizer.load_state({name: tensor for name, tensor in tensors.items() if name != "lora"})

    def adapter_with(self, weights: Tensors) -> LoraAdapter:
        """See `Engine`."""
        self.adapter.flat.copy_(weights["lora"])
        return self.adapter


def _digest(tensors: Tensors) -> str:
    """SHA-256 of some tensors on the host."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(tensors[name].contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _refuse_differences(digests: Sequence[str]) -> None:
    """Every rank makes the same updates, so one that has other weights has computed something wrong."""
    usual, count = Counter(digests).most_common(1)[0]
    if count < len(digests):
        others = [rank for rank, digest in enumerate(digests) if digest != usual]
        names = f"rank {others[0]} has" if len(others) == 1 else f"ranks {', '.join(map(str, others))} have"
        raise NumericsError(
            f"{names} other weights or moments than the other ranks: a GPU or its memory computes wrongly, or the "
            "machines differ. Nothing was saved; the newest checkpoint was the same on all. Check that GPU"
        )


def device_name(device: torch.device) -> str:
    """The driver's name for a device, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def dropout_seed(seed: int, step: int) -> int:
    """Dropout's seed is a function of seed and step, so a resumed run draws the same masks as an uninterrupted one.

    32 bits: torch's CPU generator, from which Unsloth draws, ignores a seed's upper half.
    """
    return zlib.crc32(f"{seed}/{step}".encode())
