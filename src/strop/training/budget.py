"""How many tokens a microbatch may hold, where the recipe leaves it open: a round number that is known to fit."""

import numpy as np
import torch

from strop.errors import OutOfMemoryError
from strop.gpus import Gpu
from strop.microbatch.pack import Microbatch
from strop.microbatch.tree import Tree
from strop.training.gradients import Gradients

_CPU_TOKENS = 1024
"""Larger microbatches gain nothing measurable on a CPU, and a signal is answered between microbatches."""

_GPU_TOKENS = 32768
"""On an H200 the matrix products have reached their full rate at half of it, but every microbatch costs some 10 ms of
kernels that are too small to fill the GPU."""

_SHARE = 0.45
"""Of the free memory. Captured graphs keep a pool of their own, beside that of the eager run which precedes each, so a
microbatch's memory may be held twice."""

_LEAST_PROBE = 128
"""Tokens of the larger probe below which no smaller one is tried."""

_STEP = 512
"""What does not fit is cut down to a multiple of this, so that a few bytes more or less free change nothing."""


def wanted_tokens(device: torch.device | Gpu, longest_sample: int) -> int:
    """The budget where memory is no concern, with room for the longest sample."""
    return max(_GPU_TOKENS if device.type == "cuda" else _CPU_TOKENS, longest_sample)


def tokens_that_fit(gradients: Gradients, device: torch.device, longest_sample: int) -> int:
    """`wanted_tokens`, or as many of them as the GPU's memory holds.

    A microbatch's memory is a constant and so much for each token. Both are measured, by computing gradients of two
    small microbatches of the worst kind: samples of the greatest length, with every token learned. Where those do not
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
                f"{free / 2**30:.1f} GiB are free. Take a GPU with more memory, or a smaller model or lora.r."
            )
        more //= 2
    # What was only tried goes back, and the run's peak is that of its steps.
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    each = max(1.0, (peaks[1] - peaks[0]) / (more - more // 2))
    return tokens_within(free, peaks[1] - start - each * more, each, wanted, longest_sample)


def tokens_within(free: float, constant: float, each: float, wanted: int, longest_sample: int) -> int:
    """The budget for `free` bytes where a microbatch takes `constant` bytes and `each` for every token."""
    fit = int((_SHARE * free - constant) / each)
    return wanted if fit >= wanted else max(fit // _STEP * _STEP, longest_sample)


def _peaks(gradients: Gradients, device: torch.device, more: int, longest_sample: int) -> tuple[int, int] | None:
    """Peak bytes allocated with half of `more` tokens and with `more`; None where that runs out of memory."""
    try:
        return (
            peak_memory(gradients, device, more // 2, longest_sample),
            peak_memory(gradients, device, more, longest_sample),
        )
    except torch.OutOfMemoryError:
        return None


def peak_memory(gradients: Gradients, device: torch.device, tokens: int, longest_sample: int) -> int:
    """Bytes that a microbatch of the worst kind takes at its peak, all that is allocated included."""
    torch.cuda.reset_peak_memory_stats(device)
    gradients.of([worst_microbatch(tokens, longest_sample)])
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)


def worst_microbatch(tokens: int, longest_sample: int) -> Microbatch:
    """A microbatch of the kind that takes most memory: samples as long as they come, every token learned."""
    lengths = [longest_sample] * (tokens // longest_sample) + [tokens % longest_sample] * (tokens % longest_sample > 0)
    learned = np.arange(tokens)  # a sample's last token predicts nothing, but one row more costs nothing here
    return Microbatch(
        input_ids=np.zeros(tokens, np.int64),
        tree=Tree.of(lengths),
        learned=learned,
        label_rows=learned,
        labels=np.zeros(tokens, np.int64),
        weights=np.ones(tokens, np.float32),
        samples=(),
        places=learned,
    )
