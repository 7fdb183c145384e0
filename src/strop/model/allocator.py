"""How torch keeps the memory of a GPU."""

import os
import sys


def grow_segments() -> None:
    """Have torch extend the memory that it holds, and not keep a block of its own for each size that came up.

    Hardly two microbatches have the same number of tokens. Phi-3-mini, 128 samples a step, on an H200: 38.7 GiB instead
    of 68.6, of which 38.3 are in tensors, at the same speed. To be called before torch first takes memory of a GPU;
    what the user's environment says of the allocator stands.
    """
    if sys.platform == "linux" and "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # the older name
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
