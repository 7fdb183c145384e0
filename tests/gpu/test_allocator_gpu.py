"""Memory that torch holds beside what is in tensors, where hardly two microbatches have one size."""

import os
import subprocess
import sys

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

GROWING = """
import torch
{before}
for size in range(64, 512, 8):
    x = [torch.empty(size << 20, dtype=torch.uint8, device="cuda") for _ in range(4)]
    del x
print(torch.cuda.max_memory_reserved() / torch.cuda.max_memory_allocated())
"""


def held_for_each_byte_in_use(before: str) -> float:
    """In a process of its own, without the settings that a test of training has left in this one's environment."""
    program = [sys.executable, "-c", GROWING.format(before=before)]
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_ALLOC_CONF")}
    return float(subprocess.run(program, check=True, capture_output=True, text=True, env=environment).stdout)


def test_free_memory_is_joined() -> None:
    grow = "from strop.model.precision import grow_segments; grow_segments()"
    assert held_for_each_byte_in_use(grow) < 1.05
    assert held_for_each_byte_in_use("") > 1.5
