"""Prompts -> the cache: packed, a prefix that several share read once, and the logits of what comes next."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from strop.evaluation.kv_cache import KVCache
from strop.microbatch.tree import Tree, grow, sort_by_prefix
from strop.model.decoder import Decoder
from strop.ops.attention import Packing


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
    tree = grow([len(arrays[i]) for i in order], shared)
    lengths = np.subtract(tree.ends, tree.begins)
    packing = Packing.of(tuple(lengths.tolist()), tree.parents)
    ids_T = np.concatenate(
        [arrays[order[s]][a:b] for s, a, b in zip(tree.first, tree.begins, tree.ends, strict=True)], dtype=np.int64
    )
    final_T = np.repeat(np.array(tree.longest) + max_new_tokens, lengths)
    places = [_places(tree, packing, sample) for sample in range(len(order))]
    sizes = [len(place) for place in places]
    place_L = np.concatenate(places)
    slot_L = np.repeat([slots[i] for i in order], sizes)
    position_L = np.concatenate([np.arange(size) for size in sizes])

    def put(array: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Tensor:
        return torch.from_numpy(array).to(device)

    attend = cache.reading(packing, put(place_L), put(slot_L), put(position_L))
    hidden_TD = decoder.hidden_states(put(ids_T), packing.positions().to(device), put(final_T), attend)
    last = np.empty(len(order), np.int64)
    last[order] = [place[-1] for place in places]
    return decoder.logits(hidden_TD[put(last)])


def _places(tree: Tree, packing: Packing, sample: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Where each token of a prompt is among the packed ones."""
    return np.concatenate(
        [np.arange(packing.starts[n], packing.starts[n] + packing.lengths[n]) for n in tree.path(sample)],
        dtype=np.int64,
    )
