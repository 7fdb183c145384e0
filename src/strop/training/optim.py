"""The update: AdamW on the adapter's one buffer, and the learning rate of each step."""

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from strop.model.lora import LoraAdapter
from strop.ops.adamw_8bit import AdamWSettings, Moments, adamw_8bit
from strop.recipe import TrainSection


class FlatOptimizer(ABC):
    """What all optimizers share: clip, and stop updating for good once a number is not finite."""

    def __init__(self, adapter: LoraAdapter, section: TrainSection) -> None:
        self._adapter = adapter
        self._settings = AdamWSettings(
            section.adam_beta1, section.adam_beta2, section.adam_epsilon, section.weight_decay
        )
        self._failed = torch.zeros((), dtype=torch.bool, device=adapter.flat.device)

    def update(self, grad: Tensor, loss: Tensor, learning_rate: float, max_grad_norm: float) -> Tensor:
        """Clip the gradient to `max_grad_norm` (0: never), in place, and update every parameter.

        This does not wait for the device. If loss or gradient is not finite, the device skips this update and every
        later one, so parameters and moments stay as the last good step left them until the host finds out.

        Returns:
            The L2 norm of the whole gradient before clipping, a scalar on the device.
        """
        grad_norm: Tensor = torch.linalg.vector_norm(grad)
        self._failed.logical_or_(~torch.isfinite(grad_norm + loss))
        if max_grad_norm > 0:
            # The 1e-6 is `torch.nn.utils.clip_grad_norm_`'s.
            grad.mul_((max_grad_norm / (grad_norm + 1e-6)).clamp(max=1.0))
        self._step(grad, learning_rate)
        return grad_norm

    @abstractmethod
    def _step(self, grad: Tensor, learning_rate: float) -> None:
        """Update the parameters, unless `_failed`."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """What a checkpoint needs besides the parameters, on the host."""

    @abstractmethod
    def load_state(self, state: dict[str, Tensor]) -> None:
        """Resume from what `state()` returned."""


class FlatAdamW(FlatOptimizer):
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) on the flat LoRA buffer: one tensor, one fused kernel."""

    def __init__(self, adapter: LoraAdapter, section: TrainSection) -> None:
        super().__init__(adapter, section)
        self._parameter = torch.nn.Parameter(adapter.flat)
        beta1, beta2, eps, weight_decay = self._settings
        self._adamw = torch.optim.AdamW(
            [self._parameter], lr=0.0, betas=(beta1, beta2), eps=eps, weight_decay=weight_decay, fused=True
        )
        # AdamW would allocate them in its first step; running out of memory there would leave only half of them.
        moments = {name: torch.zeros_like(adapter.flat) for name in ("exp_avg", "exp_avg_sq")}
        self._adamw.state[self._parameter] = {"step": torch.zeros((), device=adapter.flat.device), **moments}

    def _step(self, grad: Tensor, learning_rate: float) -> None:
        self._adamw.found_inf = self._failed.float()  # type: ignore[attr-defined]
        self._adamw.param_groups[0]["lr"] = learning_rate
        self._parameter.grad = grad
        self._adamw.step()
        self._parameter.grad = None

    def state(self) -> dict[str, Tensor]:
        """See `FlatOptimizer`."""
        moments: dict[str, Any] = self._adamw.state[self._parameter]
        return {name: moments[name].detach().cpu() for name in ("exp_avg", "exp_avg_sq", "step")}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """See `FlatOptimizer`."""
        device = self._adapter.flat.device
        self._adamw.state[self._parameter] = {name: tensor.clone().to(device) for name, tensor in state.items()}


class FlatAdamW8bit(FlatOptimizer):
    """AdamW with moments in 8 bits (`ops.adamw_8bit`), like bitsandbytes' AdamW8bit.

    bitsandbytes quantises each tensor separately and leaves those with fewer than 4,096 numbers in 32 bits. Here,
    blocks of 256 run through the one buffer that holds all tensors, small ones included. If r times a module's inputs
    and outputs are multiples of 256, as in most models from rank 16 on, the blocks are the same as bitsandbytes'.
    """

    def __init__(self, adapter: LoraAdapter, section: TrainSection) -> None:
        super().__init__(adapter, section)
        self._moments = Moments.zeros(adapter.flat)

    def _step(self, grad: Tensor, learning_rate: float) -> None:
        adamw_8bit(self._adapter.flat, grad, self._moments, self._settings, learning_rate, self._failed)

    def state(self) -> dict[str, Tensor]:
        """See `FlatOptimizer`."""
        return {name: tensor.to("cpu", copy=True) for name, tensor in self._moments._asdict().items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """See `FlatOptimizer`."""
        for name, tensor in self._moments._asdict().items():
            tensor.copy_(state[name])


def choose_optimizer(adapter: LoraAdapter, section: TrainSection) -> FlatOptimizer:
    """The recipe's optimizer."""
    return (FlatAdamW8bit if section.optim == "adamw_8bit" else FlatAdamW)(adapter, section)


def warmup_steps(section: TrainSection, num_steps: int) -> int:
    """Steps in which the learning rate rises."""
    return section.warmup_steps or math.ceil(section.warmup_ratio * num_steps)


def learning_rate(step: int, section: TrainSection, num_steps: int) -> float:
    """The learning rate of a step, counted from 0, as in transformers' schedules: step 0 of a warmup has rate 0."""
    warmup = warmup_steps(section, num_steps)
    if section.lr_scheduler_type != "constant" and step < warmup:
        return section.learning_rate * step / max(1, warmup)
    if section.lr_scheduler_type in ("constant", "constant_with_warmup"):
        return section.learning_rate
    progress = (step - warmup) / max(1, num_steps - warmup)
    if section.lr_scheduler_type == "linear":
        return section.learning_rate * max(0.0, 1.0 - progress)
    return section.learning_rate * max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
