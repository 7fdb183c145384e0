"""How many tokens a microbatch may hold if the recipe does not say: a round number that is known to fit."""

import numpy as np
import torch

from strop.errors import OutOfMemoryError
from strop.gpus import Gpu
from strop.microbatch.pack import Microbatch
from strop.microbatch.tree import Tree
from strop.training.gradients import Gradients

_CPU_TOKENS = 1024
"""Larger microbatches gain nothing measurable on a CPU, and signals are handled only between microbatches."""

_GPU_TOKENS = 32768
"""On an H200 the matrix products reach their full rate at half of this, but every microbatch also costs about 10 ms of
kernels too small to fill the GPU."""

_SHARE = 0.45
"""Of the free memory. Captured graphs have their own memory pool beside that of the eager run before each capture, so a
microbatch's memory may be held twice."""

_LEAST_PROBE = 128
"""The smallest size, in tokens, of the larger of the two probes."""

_STEP = 512
"""A budget below the wanted one is rounded down to a multiple of this, so that a few free bytes change nothing."""


def wanted_tokens(device: torch.device | Gpu, longest_sample: int) -> int:
    """The budget if memory is no concern, with room for the longest sample."""
    return max(_GPU_TOKENS if device.type == "cuda" else _CPU_TOKENS, longest_sample)


def tokens_that_fit(gradients: Gradients, device: torch.device, longest_sample: int) -> int:
    """`wanted_tokens`, or fewer if the GPU's memory holds fewer.

    A microbatch's memory is a constant plus a fixed amount per token. Both are measured by computing gradients of two
    small microbatches of the worst kind: samples of the greatest length, with every token learned. If those do not
    fit, smaller ones are tried.

    Raises:
        OutOfMemoryError: Not even the smallest probe fits.
    """
    wanted = wanted_tokens(device, longest_sample)
    if device.type != "cuda":
        return wanted
    start = torch.cuda.memory_allocated(device)
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - start
    more = max(_LEAST_PROBE, wanted // 8)
    while (peaks := _peaks(gradients, device, more, longest_sample)) is None:
        gradients.release()
        if more // 2 < _LEAST_PROBE:
            raise OutOfMemoryError(
                f"a microbatch of {more} tokens does not fit in the GPU's memory beside the weights: "
                f"{free / 2**30:.1f} GiB are free. Use a GPU with more memory, a smaller model or a smaller lora.r."
            )
        more //= 2
    # Release the probes' memory, so that the run's peak is that of its steps.
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    each = max(1.0, (peaks[1] - peaks[0]) / (more - more // 2))
    return tokens_within(free, peaks[1] - start - each * more, each, wanted, longest_sample)


def tokens_within(free: float, constant: float, each: float, wanted: int, longest_sample: int) -> int:
    """The budget for `free` bytes if a microbatch takes `constant` bytes plus `each` per token."""
    fit = int((_SHARE * free - constant) / each)
    return wanted if fit >= wanted else max(fit // _STEP * _STEP, longest_sample)


def _peaks(gradients: Gradients, device: torch.device, more: int, longest_sample: int) -> tuple[int, int] | None:
    """Peak bytes allocated with half of `more` tokens and with `more`; None if that runs out of memory."""
    try:
        return (
            peak_memory(gradients, device, more // 2, longest_sample),
            peak_memory(gradients, device, more, longest_sample),
        )
    except torch.OutOfMemoryError:
        return None


def peak_memory(gradients: Gradients, device: torch.device, tokens: int, longest_sample: int) -> int:
    """Peak bytes allocated on the device while a microbatch of the worst kind is computed."""
    torch.cuda.reset_peak_memory_stats(device)
    gradients.of([worst_microbatch(tokens, longest_sample)], scale=1.0)
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)


def worst_microbatch(tokens: int, longest_sample: int) -> Microbatch:
    """The microbatch that takes most memory: samples of the greatest length, every token learned."""
    lengths = [longest_sample] * (tokens // longest_sample) + [tokens % longest_sample] * (tokens % longest_sample > 0)
    learned = np.arange(tokens)  # a sample's last token predicts nothing, but the extra row costs nothing here
    return Microbatch(
        input_ids=np.zeros(tokens, np.int64),
        tree=Tree.of(lengths),
        learned=learned,
        label_rows=learned,
        labels=np.zeros(tokens, np.int64),
        weights=np.ones(tokens, np.float32),
        samples=tuple(range(len(lengths))),
        places=learned,
    )
