"""Keys and values of the tokens read so far, in a fixed pool of slots that sequences enter and leave.

Prompts are read packed: a prefix that several share is computed once.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from strop.microbatch.tree import Tree, grow, sort_by_prefix
from strop.model.config import DecoderConfig
from strop.model.decoder import Attend, Decoder
from strop.ops.attention import attention


class KVCache:
    """Room for S sequences of up to `capacity` tokens in every layer; a sequence starts at position 0 of its slot.

    It does not track which slots are in use: the caller says where to write and how much to read. Its tensors stay at
    the same address, so a step that reads and writes them can be captured as a CUDA graph.
    """

    def __init__(self, config: DecoderConfig, slots: int, capacity: int, dtype: torch.dtype, device: torch.device):
        shape = (config.num_layers, slots, config.num_kv_heads, capacity, config.head_dim)
        self.slots, self.capacity = slots, capacity
        self._windows = set(config.sliding_windows)
        self._k = torch.zeros(shape, dtype=dtype, device=device)
        self._v = torch.zeros(shape, dtype=dtype, device=device)

    @staticmethod
    def bytes_per_token(config: DecoderConfig, dtype: torch.dtype) -> int:
        """Memory of one position in one slot, over all layers."""
        return 2 * config.num_layers * config.num_kv_heads * config.head_dim * dtype.itemsize

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of one slot to another."""
        for held in (self._k, self._v):
            held[:, target, :, :length] = held[:, source, :, :length]

    def taken_out(self, slot: int, length: int) -> Tensor:
        """The first `length` positions of a slot, copied to the host: (2, layers, kv heads, length, head size)."""
        return torch.stack([held[:, slot, :, :length].cpu() for held in (self._k, self._v)])

    def put_in(self, slot: int, taken: Tensor) -> None:
        """Write what `taken_out` gave, perhaps of another cache, to a slot."""
        for held, values in zip((self._k, self._v), taken, strict=True):
            held[:, slot, :, : values.shape[2]] = values

    def reading(self, tree: Tree, place_L: Tensor, slot_L: Tensor, position_L: Tensor) -> Attend:
        """Attention for packed prompts, which also fills their slots.

        Args:
            tree: The prompts' prefix tree, T tokens.
            place_L: The index among the T of each token of each prompt; a shared prefix's tokens are repeated.
            slot_L: The slot of each of these tokens.
            position_L: Its position in the slot.
        """

        def attend(layer: int, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, window: int | None) -> Tensor:
            self._k[layer][slot_L, :, position_L] = k_TKH[place_L]
            self._v[layer][slot_L, :, position_L] = v_TKH[place_L]
            return attention(q_TNH, k_TKH, v_TKH, tree, window)

        return attend

    def writing(self, position_B: Tensor, width: int) -> Attend:
        """Attention for one new token in each of the first B slots: it is stored, and sees itself and earlier tokens.

        Query heads that share a key head become rows of one small matrix, so no kernel has to support grouped heads.

        Args:
            position_B: int64, each new token's position.
            width: How many positions are read; greater than every `position_B`.
        """
        batch = len(position_B)
        rows = torch.arange(batch, device=position_B.device)
        distance_BW = position_B[:, None] - torch.arange(width, device=position_B.device)
        bias = {window: _bias(distance_BW, window, self._k.dtype) for window in self._windows}

        def attend(layer: int, q_BNH: Tensor, k_BKH: Tensor, v_BKH: Tensor, window: int | None) -> Tensor:
            k_BKWH, v_BKWH = self._k[layer, :batch, :, :width], self._v[layer, :batch, :, :width]
            k_BKWH[rows, :, position_B] = k_BKH
            v_BKWH[rows, :, position_B] = v_BKH
            q_BKGH = q_BNH.unflatten(1, (k_BKH.shape[1], -1))
            with _kernels(q_BNH.device):
                out_BKGH = torch.nn.functional.scaled_dot_product_attention(
                    q_BKGH, k_BKWH, v_BKWH, attn_mask=bias[window]
                )
            return out_BKGH.flatten(1, 2)

        return attend


def _bias(distance_BW: Tensor, window: int | None, dtype: torch.dtype) -> Tensor:
    """0 where a position is visible and -inf elsewhere, (B, 1, 1, W); made once for all layers."""
    visible_BW = distance_BW >= 0 if window is None else (distance_BW >= 0) & (distance_BW < window)
    bias_BW = torch.zeros(distance_BW.shape, dtype=dtype, device=distance_BW.device)
    return bias_BW.masked_fill_(~visible_BW, float("-inf"))[:, None, None]


@contextmanager
def _kernels(device: torch.device) -> Iterator[None]:
    """Avoid cuDNN attention on a GPU: it makes a new plan for each shape, which takes longer than a step."""
    if device.type != "cuda":
        yield
        return
    with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
        yield


def read_prompts(
    decoder: Decoder,
    cache: KVCache,
    prompts: Sequence[Sequence[int]],
    slots: Sequence[int],
    check_stop: Callable[[], None],
) -> Tensor:
    """Put each prompt into its slot and return the logits after its last token, (prompts, V).

    Args:
        decoder: With or without its LoRA terms enabled.
        cache: Receives the prompts' keys and values; positions after a prompt's end stay unchanged.
        prompts: Token ids, at least one each.
        slots: A different slot for each prompt.
        check_stop: Called in every layer; may raise to end early.
    """
    device = decoder.device
    arrays = [np.asarray(prompt, np.int32) for prompt in prompts]
    order, shared = sort_by_prefix(arrays, decoder.config.rope.long_from)
    sizes = [len(arrays[i]) for i in order]
    tree = grow(sizes, shared)
    place_L = tree.places()
    ids_T = np.empty(tree.num_tokens, np.int64)
    ids_T[place_L] = np.concatenate([arrays[i] for i in order])
    length_T = np.repeat(np.array(tree.sample_lengths), tree.lengths)
    slot_L = np.repeat([slots[i] for i in order], sizes)
    position_L = np.concatenate([np.arange(size) for size in sizes])

    def put(array: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Tensor:
        return torch.from_numpy(array).to(device)

    read = cache.reading(tree, put(place_L), put(slot_L), put(position_L))

    def attend(layer: int, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, window: int | None) -> Tensor:
        check_stop()
        return read(layer, q_TNH, k_TKH, v_TKH, window)

    hidden_TD = decoder.hidden_states(put(ids_T), put(tree.positions()), put(length_T), attend)
    last = np.empty(len(order), np.int64)
    last[order] = place_L[np.cumsum(sizes) - 1]
    return decoder.logits(hidden_TD[put(last)])
