"""Prompts -> the cache: packed, a prefix that several share read once, and the logits of what comes next."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from strop.evaluation.kv_cache import KVCache
from strop.microbatch.tree import grow, sort_by_prefix
from strop.model.decoder import Decoder


def read_prompts(
    decoder: Decoder, cache: KVCache, prompts: Sequence[Sequence[int]], slots: Sequence[int], max_new_tokens: int
) -> Tensor:
    """Put each prompt into its slot and return the logits after its last token, (prompts, V).

    Args:
        decoder: With or without its LoRA terms enabled.
        cache: Filled on the way; each slot's positions from the prompt's length on keep what they held.
        prompts: Token ids, at least one each.
        slots: One for each prompt, no two alike.
        max_new_tokens: What will follow, which decides LongRoPE's frequencies.
    """
    device = decoder.device
    arrays = [np.asarray(prompt, np.int32) for prompt in prompts]
    long_from = decoder.config.rope.long_from
    order, shared = sort_by_prefix(arrays, None if long_from is None else long_from - max_new_tokens)
    sizes = [len(arrays[i]) for i in order]
    tree = grow(sizes, shared)
    place_L = tree.places()
    ids_T = np.empty(tree.num_tokens, np.int64)
    ids_T[place_L] = np.concatenate([arrays[i] for i in order])
    final_T = np.repeat(np.array(tree.sample_lengths) + max_new_tokens, tree.lengths)
    slot_L = np.repeat([slots[i] for i in order], sizes)
    position_L = np.concatenate([np.arange(size) for size in sizes])

    def put(array: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Tensor:
        return torch.from_numpy(array).to(device)

    attend = cache.reading(tree, put(place_L), put(slot_L), put(position_L))
    hidden_TD = decoder.hidden_states(put(ids_T), put(tree.positions()), put(final_T), attend)
    last = np.empty(len(order), np.int64)
    last[order] = place_L[np.cumsum(sizes) - 1]
    return decoder.logits(hidden_TD[put(last)])
