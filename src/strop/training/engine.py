"""What computes the steps of a run: the interface that the loop needs, and strop's own engine."""

import gc
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from strop.data.store import SampleStore
from strop.errors import OutOfMemoryError
from strop.microbatch.order import Order
from strop.microbatch.pack import Microbatches
from strop.model.lora import LoraAdapter
from strop.recipe import TrainSection
from strop.run.folder import RunFolder
from strop.training.budget import tokens_that_fit
from strop.training.gradients import choose_gradients, why_plain
from strop.training.optim import choose_optimizer
from strop.training.step import StepResult, train_step

Tensors = dict[str, Tensor]


class InFlight(Protocol):
    """A step that was launched and may not be done."""

    @property
    def is_done(self) -> bool:
        """The result can be had without waiting."""

    def result(self) -> StepResult:
        """Wait for the step.

        Raises:
            NonFiniteError: The step updated nothing, and neither did any after it.
        """


class Engine(Protocol):
    """Computes steps, and holds what they change. `weights` and `state` name tensors as a checkpoint does.

    Attributes:
        device: What it trains on, by name.
        num_trainable: Parameters that are trained.
        save_seconds: What a checkpoint may take until one has been measured.
    """

    device: str
    num_trainable: int
    save_seconds: float

    @property
    def chosen(self) -> Mapping[str, Any]:
        """What was chosen for this device and may change last digits, for the run's manifest."""

    def explain(self) -> list[str]:
        """The same for a person, with reasons."""

    def launch(self, step: int, learning_rate: float, check_stop: Callable[[], None]) -> InFlight:
        """Start a step, counted from 0; `check_stop` may raise to abandon it, and then it updates nothing.

        Raises:
            torch.OutOfMemoryError: It does not fit, and updates nothing; see `make_room`.
            NonFiniteError, OutOfMemoryError: It failed for good; the state is that of the step before.
        """

    def make_room(self, step: int) -> str:
        """After a step ran out of memory: compute it in smaller pieces from now on, and say what was changed.

        Raises:
            OutOfMemoryError: There is nothing smaller.
        """

    def weights(self) -> Tensors:
        """The trained parameters on the host: `lora`, or `lora/NAME` for each."""

    def state(self) -> tuple[Tensors, dict[str, Any]]:
        """The weights and all else that resuming needs: tensors on the host, and further entries in JSON."""

    def load_state(self, step: int, tensors: Tensors, entries: Mapping[str, Any]) -> None:
        """Continue from what `state` gave after a step."""

    def adapter_with(self, weights: Tensors) -> LoraAdapter:
        """The adapter with these weights; nothing is trained after that."""


class StropEngine:
    """strop's own: packed microbatches on the fused or the plain decoder, one step in flight."""

    save_seconds = 10.0
    """90 million floats took 2."""

    def __init__(
        self,
        adapter: LoraAdapter,
        store: SampleStore,
        section: TrainSection,
        folder: RunFolder,
        most_tokens: int | None = None,
    ) -> None:
        """Prepare to train an adapter on a store.

        Args:
            adapter: On its device.
            store: The training samples.
            section: Of the recipe.
            folder: Keeps the size of a microbatch once it had to be made smaller.
            most_tokens: Tokens of a microbatch that an earlier attempt was left with after it ran out of memory.
        """
        self.adapter, self.decoder, self._section, self._folder = adapter, adapter.decoder, section, folder
        self.decoder.gradient_checkpointing = section.gradient_checkpointing
        self.decoder.train()
        device = self.decoder.device
        self.device = device_name(device)
        self.num_trainable = adapter.num_parameters
        self.optimizer, self.gradients = choose_optimizer(adapter, section), choose_gradients(adapter)
        self._longest = int(store.lengths.max())
        wanted = section.max_tokens_per_microbatch or tokens_that_fit(self.gradients, device, self._longest)
        self.microbatches = Microbatches(
            store,
            Order.of(section, len(store)),
            max_tokens=min(wanted, most_tokens or wanted),
            share=adapter.section.lora_dropout == 0,
            long_from=self.decoder.config.rope.long_from,
        )

    @property
    def max_tokens(self) -> int:
        """Tokens of a microbatch, at most."""
        return self.microbatches.max_tokens

    @property
    def chosen(self) -> Mapping[str, Any]:
        """See `Engine`."""
        return {"precision": self.decoder.precision, "max_tokens_per_microbatch": self.max_tokens}

    def explain(self) -> list[str]:
        """See `Engine`; nothing is chosen on a CPU."""
        if self.decoder.device.type != "cuda":
            return []
        reason = why_plain(self.adapter)
        layers = f"plain, because {reason}" if reason else "fused kernels, captured as CUDA graphs"
        return [f"layers: {layers}", f"microbatches of up to {self.max_tokens:,} tokens"]

    def launch(self, step: int, learning_rate: float, check_stop: Callable[[], None]) -> InFlight:
        """See `Engine`."""
        torch.manual_seed(dropout_seed(self._section.seed, step))
        microbatches = self.microbatches.of_step(step)
        norm = self._section.max_grad_norm
        return train_step(self.gradients, self.optimizer, microbatches, learning_rate, norm, check_stop)

    def make_room(self, step: int) -> str:
        """See `Engine`: microbatches of half the size, in which the step's samples are packed anew."""
        before = self.max_tokens
        if before <= self._longest:
            raise OutOfMemoryError(
                f"step {step}: a microbatch of {before} tokens does not fit in the GPU's memory, and the longest "
                f"sample has {self._longest}. Set train.gradient_checkpointing=true or a smaller "
                "model.max_seq_length, or use a GPU with more memory: `strop plan` says which."
            )
        self.microbatches = replace(self.microbatches, max_tokens=max(before // 2, self._longest))
        gc.collect()  # the frames of what failed may lie in a cycle, and with them its tensors
        self.gradients.release()
        self._folder.update(lambda manifest: replace(manifest, max_tokens_per_microbatch=self.max_tokens))
        return (
            f"step {step}: out of memory with microbatches of up to {before:,} tokens; continuing with "
            f"{self.max_tokens:,}. The batch stays at {self._section.samples_per_step} samples"
        )

    def weights(self) -> Tensors:
        """See `Engine`."""
        return {"lora": self.adapter.flat.detach().cpu().clone()}

    def state(self) -> tuple[Tensors, dict[str, Any]]:
        """See `Engine`."""
        return {"lora": self.adapter.flat.detach().cpu(), **self.optimizer.state()}, {}

    def load_state(self, step: int, tensors: Tensors, entries: Mapping[str, Any]) -> None:
        """See `Engine`."""
        self.adapter.flat.copy_(tensors["lora"])
        self.optimizer.load_state({name: tensor for name, tensor in tensors.items() if name != "lora"})

    def adapter_with(self, weights: Tensors) -> LoraAdapter:
        """See `Engine`."""
        self.adapter.flat.copy_(weights["lora"])
        return self.adapter


def device_name(device: torch.device) -> str:
    """A device as its driver calls it, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def dropout_seed(seed: int, step: int) -> int:
    """Dropout's draws are a function of seed and step, so a resumed run draws what an undisturbed one does.

    A single 32-bit number, because torch's CPU generator ignores a seed's upper half.
    """
    return zlib.crc32(f"{seed}/{step}".encode())
