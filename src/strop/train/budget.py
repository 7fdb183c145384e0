"""How many tokens a microbatch may hold, where the recipe leaves it open."""

import torch

from strop.model.decoder import Decoder

_CPU_TOKENS = 1024
"""Larger microbatches gain nothing measurable on a CPU, and a signal is answered between microbatches."""

_GPU_TOKENS = 16384
"""On an H200 the matrix products have reached their full rate by then."""


def tokens_per_microbatch(decoder: Decoder, longest_sample: int) -> int:
    """A budget that fits the device's free memory and at least the longest sample.

    What a token keeps for the backward, in elements: in each layer 8 D (residual twice, two normed inputs, q, k and
    v, the attention's output) and 3 F (gate, up, their product); with gradient checkpointing one D, and one layer
    in full. A quarter of the memory is left for temporaries.
    """
    config = decoder.config
    layer = 8 * config.hidden_size + 3 * config.intermediate_size
    layers = config.num_layers
    elements = layers * config.hidden_size + layer if decoder.gradient_checkpointing else layers * layer
    if decoder.device.type != "cuda":
        return max(_CPU_TOKENS, longest_sample)
    free, _ = torch.cuda.mem_get_info(decoder.device)
    fits = int(0.75 * free / (elements * decoder.dtype.itemsize))
    return max(min(_GPU_TOKENS, fits), longest_sample)
