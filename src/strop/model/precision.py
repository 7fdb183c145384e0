"""Which type a model's weights take, and where they go."""

from typing import Literal

import torch

from strop.errors import RecipeError

_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def choose_device() -> torch.device:
    """The first CUDA device if there is one, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def choose_precision(asked: Literal["auto", "float32", "bfloat16"], device: torch.device) -> tuple[torch.dtype, str]:
    """The weights' type, and a line that says why.

    Raises:
        RecipeError: The GPU cannot compute in the type asked for.
    """
    if device.type == "cuda" and asked != "float32" and torch.cuda.get_device_capability(device) < (8, 0):
        name = torch.cuda.get_device_name(device)
        if asked == "bfloat16":
            raise RecipeError(f"model.precision=bfloat16: {name} has no bfloat16; set model.precision=float32")
        return torch.float32, f"precision float32: {name} has no bfloat16"
    if asked != "auto":
        return _TYPES[asked], f"precision {asked}: as the recipe says"
    if device.type == "cuda":
        return torch.bfloat16, "precision bfloat16: chosen for a GPU that has it"
    # Measured on two AVX-512 cores without AMX: bfloat16 trains 2.5 to 3 times slower than float32.
    return torch.float32, "precision float32: chosen on a CPU, where bfloat16 is slower"
