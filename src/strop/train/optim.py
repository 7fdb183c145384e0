"""The update: AdamW on the adapter's one buffer, and the learning rate of each step."""

import math
from typing import Any

import torch
from torch import Tensor

from strop.model.lora import LoraAdapter
from strop.recipe import TrainSection


class FlatAdamW:
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) on the flat LoRA buffer: one tensor, one fused kernel."""

    def __init__(self, adapter: LoraAdapter, section: TrainSection) -> None:
        self._grad = adapter.flat_grad
        self._parameter = torch.nn.Parameter(adapter.flat)
        self._parameter.grad = adapter.flat_grad
        self._adamw = torch.optim.AdamW(
            [self._parameter],
            lr=0.0,
            betas=(section.adam_beta1, section.adam_beta2),
            eps=section.adam_epsilon,
            weight_decay=section.weight_decay,
            fused=True,
        )
        # AdamW would make them in its first step, where running out of memory would leave half of them.
        moments = {name: torch.zeros_like(adapter.flat) for name in ("exp_avg", "exp_avg_sq")}
        self._adamw.state[self._parameter] = {"step": torch.zeros((), device=adapter.flat.device), **moments}
        self._failed = torch.zeros((), dtype=torch.bool, device=adapter.flat.device)

    def update(self, loss: Tensor, learning_rate: float, max_grad_norm: float) -> Tensor:
        """Clip the gradient to `max_grad_norm` (0: never) and update every parameter.

        Nothing waits for the device: where loss or gradient is not finite, the device skips this update and every later
        one, so that parameters and moments stay as the last sound step left them until the host has heard of it.

        Returns:
            The L2 norm of all gradients together before clipping, a scalar on the device.
        """
        grad_norm: Tensor = torch.linalg.vector_norm(self._grad)
        self._failed.logical_or_(~torch.isfinite(grad_norm + loss))
        if max_grad_norm > 0:
            # The 1e-6 is `torch.nn.utils.clip_grad_norm_`'s.
            self._grad.mul_((max_grad_norm / (grad_norm + 1e-6)).clamp(max=1.0))
        self._adamw.found_inf = self._failed.float()  # type: ignore[attr-defined]
        self._adamw.param_groups[0]["lr"] = learning_rate
        self._adamw.step()
        return grad_norm

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint needs beside the parameters, on the host."""
        moments: dict[str, Any] = self._adamw.state[self._parameter]
        return {name: moments[name].detach().cpu() for name in ("exp_avg", "exp_avg_sq", "step")}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue from `state()` of an earlier run."""
        device = self._grad.device
        self._adamw.state[self._parameter] = {name: tensor.clone().to(device) for name, tensor in state.items()}


def learning_rate(step: int, section: TrainSection, num_steps: int) -> float:
    """The rate of a step (from 0), as transformers' schedules define it: step 0 of a warmup has rate 0."""
    warmup = section.warmup_steps or math.ceil(section.warmup_ratio * num_steps)
    if section.lr_scheduler_type != "constant" and step < warmup:
        return section.learning_rate * step / max(1, warmup)
    if section.lr_scheduler_type in ("constant", "constant_with_warmup"):
        return section.learning_rate
    progress = (step - warmup) / max(1, num_steps - warmup)
    if section.lr_scheduler_type == "linear":
        return section.learning_rate * max(0.0, 1.0 - progress)
    return section.learning_rate * max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
