"""Keys and values of what has been read so far, for a batch of sequences of different lengths."""

import torch
from torch import Tensor

from strop.model.decoder import Attend
from strop.model.families import DecoderConfig
from strop.ops.attention import Packing, attention


class KVCache:
    """Room for B sequences of up to `capacity` tokens in every layer.

    Sequences start at slot 0 of their row; `lengths_B` says how many slots of each are filled. Memory is
    2 * layers * B * capacity * K * H elements.
    """

    def __init__(self, config: DecoderConfig, batch: int, capacity: int, dtype: torch.dtype, device: torch.device):
        shape = (config.num_layers, batch, capacity, config.num_kv_heads, config.head_dim)
        self._k = torch.zeros(shape, dtype=dtype, device=device)
        self._v = torch.zeros(shape, dtype=dtype, device=device)
        self.lengths_B = torch.zeros(batch, dtype=torch.int64, device=device)

    def keep(self, rows: Tensor) -> None:
        """Drop all sequences but these."""
        self._k, self._v = self._k[:, rows], self._v[:, rows]
        self.lengths_B = self.lengths_B[rows]

    def reading(self, packing: Packing) -> Attend:
        """Attention for the packed prompts, one for each row, which fills the cache on the way."""

        def attend(layer: int, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, window: int | None) -> Tensor:
            for row, (k, v) in enumerate(zip(k_TKH.split(packing.lengths), v_TKH.split(packing.lengths), strict=True)):
                self._k[layer, row, : len(k)] = k
                self._v[layer, row, : len(v)] = v
            return attention(q_TNH, k_TKH, v_TKH, packing, window)

        self.lengths_B = torch.tensor(packing.lengths, device=self.lengths_B.device)
        return attend

    def writing(self) -> Attend:
        """Attention for one new token of each row: it is stored, and sees everything stored before it."""
        rows = torch.arange(len(self.lengths_B), device=self.lengths_B.device)
        position_B = self.lengths_B
        filled = int(position_B.max()) + 1
        distance_BL = position_B[:, None] - torch.arange(filled, device=rows.device)

        def attend(layer: int, q_BNH: Tensor, k_BKH: Tensor, v_BKH: Tensor, window: int | None) -> Tensor:
            self._k[layer, rows, position_B] = k_BKH
            self._v[layer, rows, position_B] = v_BKH
            visible_BL = distance_BL >= 0 if window is None else (distance_BL >= 0) & (distance_BL < window)
            out_BN1H = torch.nn.functional.scaled_dot_product_attention(
                q_BNH[:, :, None],
                self._k[layer, :, :filled].transpose(1, 2),
                self._v[layer, :, :filled].transpose(1, 2),
                attn_mask=visible_BL[:, None, None],
                enable_gqa=q_BNH.shape[1] != k_BKH.shape[1],
            )
            return out_BN1H[:, :, 0]

        self.lengths_B = self.lengths_B + 1
        return attend
