"""Causal attention over packed samples: each sees itself and nothing else; a prefix that several share is there once.

On a GPU in bfloat16 a few kernels do a whole microbatch (`ops.fused.attention`). Elsewhere each node of the prefix
tree is a call of its own to PyTorch's attention; a list of small calls costs under 2% of a layer on a CPU and wastes no
padding.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Packing:
    """How T tokens divide into the nodes of a tree, in depth-first pre-order; a sample is a path from a root.

    All of it is known to the host. The nodes of a subtree lie side by side, so token q sees token k where
    k <= q < subtree_ends[node of k], and no ancestors need be listed.

    Attributes:
        lengths: Tokens of each node.
        parents: Index of each node's parent, -1 for a root. Without shared prefixes every node is a root: a sample.
        starts: Index of each node's first token.
        depths: Position in the sample of each node's first token.
        subtree_ends: Index after the last token of each node's last descendant.
        paths: For each node its ancestors from the root on, then itself.
    """

    lengths: tuple[int, ...]
    parents: tuple[int, ...]
    starts: tuple[int, ...]
    depths: tuple[int, ...]
    subtree_ends: tuple[int, ...]
    paths: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, lengths: tuple[int, ...], parents: tuple[int, ...] | None = None) -> "Packing":
        """The packing of nodes of these lengths; without `parents` each is a sample of its own.

        Raises:
            ValueError: The nodes are not in depth-first pre-order.
        """
        parents = (-1,) * len(lengths) if parents is None else parents
        starts, depths, paths = [], [], []
        ends = [0] * len(lengths)
        start = 0
        path: tuple[int, ...] = ()
        for node, (length, parent) in enumerate(zip(lengths, parents, strict=True)):
            while path and path[-1] != parent:
                ends[path[-1]] = start
                path = path[:-1]
            if not path and parent != -1:
                raise ValueError(f"node {node}: its parent {parent} is not on the path to the node before it")
            starts.append(start)
            depths.append(sum(lengths[above] for above in path))
            path = (*path, node)
            paths.append(path)
            start += length
        for node in path:
            ends[node] = start
        return cls(lengths, parents, tuple(starts), tuple(depths), tuple(ends), tuple(paths))

    @property
    def is_flat(self) -> bool:
        """No prefix is shared: every node is a whole sample."""
        return all(parent < 0 for parent in self.parents)

    def positions(self) -> Tensor:
        """int64 (T,) on the host: the position of each token in its sample."""
        shifts = torch.tensor(self.depths) - torch.tensor(self.starts)
        return torch.arange(sum(self.lengths)) + shifts.repeat_interleave(torch.tensor(self.lengths))


def attention(q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, packing: Packing, window: int | None) -> Tensor:
    """See `reference.attention`. Returns (T, N, H)."""
    if q_TNH.is_cuda and q_TNH.dtype == torch.bfloat16:
        from strop.ops.fused.attention import packed_attention  # needs Triton, which torch's CPU builds lack

        return packed_attention(q_TNH, k_TKH, v_TKH, packing, window)
    # A node's keys are put together from the pieces of `split`, whose backward adds the pieces' gradients up one after
    # the other: no index, no atomics, the same bits every time.
    q, k, v = (x.split(packing.lengths) for x in (q_TNH, k_TKH, v_TKH))
    return torch.cat([_one_node(q[path[-1]], _along(k, path), _along(v, path), window) for path in packing.paths])


def _along(pieces: tuple[Tensor, ...], path: tuple[int, ...]) -> Tensor:
    return pieces[path[0]] if len(path) == 1 else torch.cat([pieces[node] for node in path])


def _one_node(q_LNH: Tensor, k_PKH: Tensor, v_PKH: Tensor, window: int | None) -> Tensor:
    """The last L of a path's P positions, which see those before them."""
    length, total = q_LNH.shape[0], k_PKH.shape[0]
    mask = None
    if length < total or (window is not None and total > window):
        key = torch.arange(total, device=q_LNH.device)
        distance = key[total - length :, None] - key
        mask = distance >= 0 if window is None else (distance >= 0) & (distance < window)
    out_NLH = torch.nn.functional.scaled_dot_product_attention(
        q_LNH.transpose(0, 1),
        k_PKH.transpose(0, 1),
        v_PKH.transpose(0, 1),
        attn_mask=mask,
        is_causal=mask is None,
        enable_gqa=q_LNH.shape[1] != k_PKH.shape[1],
    )
    return out_NLH.transpose(0, 1)
