"""Checkpoints whose content follows from their step, so that a test knows what it must find."""

import os
from pathlib import Path
from typing import Any

import torch

from strop.run.checkpoint import Checkpoint, save_checkpoint


def tensors(step: int, size: int = 257) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(step)
    return {
        "lora": torch.randn(size, generator=draw),
        "exp_avg": torch.randn(size, generator=draw).to(torch.bfloat16),
        "step": torch.tensor(float(step)),
    }


def state(step: int) -> dict[str, Any]:
    return {"step": step, "seconds": step / 3, "best_loss": None, "best_step": 0}


def save(folder: Path, step: int, size: int = 257) -> Path:
    return save_checkpoint(folder, step, tensors(step, size), state(step))


def assert_is(checkpoint: Checkpoint | None, step: int, size: int = 257) -> None:
    """It is exactly what `save` wrote for this step."""
    assert checkpoint is not None
    assert checkpoint.step == step
    assert checkpoint.state == state(step)
    assert checkpoint.tensors.keys() == tensors(step, size).keys()
    for name, tensor in tensors(step, size).items():
        assert checkpoint.tensors[name].dtype == tensor.dtype
        assert torch.equal(checkpoint.tensors[name], tensor), name


def flip_bit(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))
