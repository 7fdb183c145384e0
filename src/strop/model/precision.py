"""The type of a model's frozen weights and activations, their device, and how torch keeps a GPU's memory."""

import os
import sys
from dataclasses import dataclass, replace
from typing import Literal

import torch

from strop.errors import RecipeError
from strop.gpus import Gpu
from strop.model.config import DecoderConfig
from strop.recipe import LoraSection

_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float8": torch.bfloat16}
_BFLOAT16_SINCE, _FLOAT8_SINCE = (8, 0), (9, 0)
"""CUDA compute capabilities: Ampere and Hopper."""

PrecisionName = Literal["auto", "float32", "bfloat16", "float8"]


@dataclass(frozen=True, slots=True)
class Precision:
    """How a model is stored and computed with.

    Attributes:
        dtype: Type of activations, norms, embedding and head, and of the frozen matrices too unless:
        float8: The layers' frozen matrices, and what they are multiplied with, are float8 (e4m3).
        reason: One line that says why.
        nf4: The layers' frozen matrices are NF4, or were rounded to it before they became float8.
    """

    dtype: torch.dtype
    float8: bool
    reason: str
    nf4: bool = False


def choose_device() -> torch.device:
    """The current CUDA device if there is one: of several ranks each its own, else the first. If none, the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


_FUSED_RANK = 64
"""Thin matrices of a larger rank do not fit beside the rest in a multiprocessor's shared memory."""


def _name_and_capability(device: torch.device | Gpu) -> tuple[str, tuple[int, int]]:
    if isinstance(device, Gpu):
        return device.name, device.capability
    return torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)


def why_not_fused(config: DecoderConfig, section: LoraSection, device: torch.device | Gpu) -> str | None:
    """Why a model with its LoRA cannot use the fused layers of `fused.decoder` on this device; None if it can."""
    if device.type != "cuda":
        return "no GPU"
    name, capability = _name_and_capability(device)
    if capability < _FLOAT8_SINCE:
        return f"{name} is older than Hopper, which the kernels are made for"
    if section.lora_dropout:
        return "lora_dropout needs a mask for each module's input"
    if section.r > _FUSED_RANK:
        return f"lora.r is over {_FUSED_RANK}"
    return "its queries and keys are normed" if config.qk_norm else None


def choose_precision(
    asked: PrecisionName, device: torch.device | Gpu, why_not_float8: str | None, load_in_4bit: bool = False
) -> Precision:
    """The precision of a model on a device.

    Args:
        asked: The recipe's choice.
        device: Where the model goes.
        why_not_float8: A reason for `auto` not to choose float8, if there is one.
        load_in_4bit: The recipe asks for NF4 weights. `auto` then does not choose float8, which would take the memory
            that NF4 is meant to save.

    Raises:
        RecipeError: The device cannot compute in the type asked for.
    """
    if not load_in_4bit:
        return _choose(asked, device, why_not_float8)
    chosen = _choose(asked, device, "model.load_in_4bit")
    if chosen.float8:
        what = "nf4 in float8: weights rounded to NF4 once and kept in float8, taking as much memory as bfloat16"
    else:
        what = f"nf4: expanded to {str(chosen.dtype).removeprefix('torch.')} for each product"
    return replace(chosen, nf4=True, reason=f"precision {what}, as the recipe says (model.load_in_4bit)")


def _choose(asked: PrecisionName, device: torch.device | Gpu, why_not_float8: str | None) -> Precision:
    if device.type != "cuda":
        if asked == "float8":
            raise RecipeError("model.precision=float8 needs a Hopper GPU (H100, H200) or a later one; leave it unset")
        if asked != "auto":
            return Precision(_TYPES[asked], False, f"precision {asked}: as the recipe says")
        # Measured on two AVX-512 cores without AMX: bfloat16 trains 2.5 to 3 times slower than float32.
        return Precision(torch.float32, False, "precision float32: chosen on a CPU, where bfloat16 is slower")
    name, capability = _name_and_capability(device)
    lacks = "float8" if asked == "float8" and capability < _FLOAT8_SINCE else None
    lacks = "bfloat16" if asked == "bfloat16" and capability < _BFLOAT16_SINCE else lacks
    if lacks:
        raise RecipeError(f"model.precision={lacks}: {name} has no {lacks}; leave it unset or set float32")
    if asked != "auto":
        return Precision(_TYPES[asked], asked == "float8", f"precision {asked}: as the recipe says")
    if capability < _BFLOAT16_SINCE:
        return Precision(torch.float32, False, f"precision float32: {name} has no bfloat16")
    why_not_float8 = f"{name} has no float8" if capability < _FLOAT8_SINCE else why_not_float8
    if why_not_float8:
        return Precision(torch.bfloat16, False, f"precision bfloat16: {why_not_float8}")
    return Precision(torch.bfloat16, True, f"precision float8: frozen weights in e4m3, chosen for {name}")


def grow_segments() -> None:
    """Let torch extend the memory segments that it holds instead of keeping a block for each size that it has seen.

    Hardly any two microbatches have the same number of tokens. Phi-3-mini, 128 samples a step, on an H200: 38.7 GiB
    instead of 68.6, with 38.3 GiB in tensors, at the same speed. Call it before torch first allocates GPU memory.
    Allocator settings in the user's environment take precedence.
    """
    if sys.platform == "linux" and "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # the older name
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
