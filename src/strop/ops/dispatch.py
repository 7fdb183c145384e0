"""Which of an op's two forms computes: plain PyTorch, or the Triton kernels."""

from types import ModuleType

import torch
from torch import Tensor


def kernels_for(x: Tensor) -> ModuleType | None:
    """`ops.kernels` where it can compute with x: on a GPU, in float32 or narrower. torch's CUDA builds bring Triton."""
    if not x.is_cuda or x.dtype == torch.float64:
        return None
    from strop.ops import kernels

    return kernels
