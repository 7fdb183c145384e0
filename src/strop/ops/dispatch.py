"""Choose between an op's two forms: plain PyTorch or the Triton kernels."""

from types import ModuleType

import torch
from torch import Tensor


def kernels_for(x: Tensor) -> ModuleType | None:
    """`ops.kernels` if it can compute with x: on a GPU, in float32 or narrower. torch's CUDA builds include Triton."""
    if not x.is_cuda or x.dtype == torch.float64:
        return None
    from strop.ops import kernels

    return kernels
