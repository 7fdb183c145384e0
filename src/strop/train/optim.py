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

    def zero_grad(self) -> None:
        """Clear the gradient buffer, keeping it in place: the parameters' gradients are views of it."""
        self._grad.zero_()

    def grad_norm(self) -> Tensor:
        """L2 norm of all gradients together."""
        norm: Tensor = torch.linalg.vector_norm(self._grad)
        return norm

    def step(self, learning_rate: float, grad_scale: Tensor | None = None) -> None:
        """Update every parameter with the gradient times `grad_scale`."""
        if grad_scale is not None:
            self._grad.mul_(grad_scale)
        self._adamw.param_groups[0]["lr"] = learning_rate
        self._adamw.step()

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint needs beside the parameters, on the host."""
        moments: dict[str, Any] = self._adamw.state[self._parameter]
        return {name: moments[name].detach().cpu() for name in ("exp_avg", "exp_avg_sq", "step")}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue from `state()` of an earlier run."""
        device = self._grad.device
        self._adamw.state[self._parameter] = {name: tensor.clone().to(device) for name, tensor in state.items()}


def clip_scale(grad_norm: Tensor, max_grad_norm: float) -> Tensor | None:
    """The factor that brings the gradient's norm down to `max_grad_norm`; None where clipping is off.

    The 1e-6 is `torch.nn.utils.clip_grad_norm_`'s.
    """
    if max_grad_norm <= 0:
        return None
    return (max_grad_norm / (grad_norm + 1e-6)).clamp(max=1.0)


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
