"""Tensor functions that know nothing of recipes, files or models.

Each op is defined in plain PyTorch in `reference.py`; the numerics tests compare the fast form with that.
Shape letters, here and in `model`:

    T  tokens of a packed microbatch      S  samples in it           D  model width
    F  feed-forward width                 N  query heads             K  key/value heads
    H  head width                         V  vocabulary              R  LoRA rank
    I  input width of a linear            O  output width of a linear
    E  labels of a microbatch             R  in the loss: positions that have labels
    P  positions of a path in the tree    L  those of its last node
"""

from types import ModuleType

import torch
from torch import Tensor


def kernels_for(x: Tensor) -> ModuleType | None:
    """`ops.triton.kernels` if it can compute with x: on a GPU, in float32 or narrower. torch's CUDA builds include Triton."""
    if not x.is_cuda or x.dtype == torch.float64:
        return None
    from strop.ops.triton import kernels  # its kernels need Triton, which torch's CPU builds lack

    return kernels
