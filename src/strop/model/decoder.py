"""The one transformer: a pre-norm decoder with rotary attention and SwiGLU, for every supported family.

It works on T packed tokens with no batch axis. How queries attend to keys is passed in as `attend`: packed samples in
training (`attend_packed`), a KV cache in generation. Weights are loaded by `model.pretrained.weights`, LoRA by
`model.lora`.
"""

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from strop.microbatch.pack import PackedInputs
from strop.microbatch.tree import Tree
from strop.model.config import DecoderConfig
from strop.model.rope import RotaryTable
from strop.ops.attention import attention
from strop.ops.dropout import dropout
from strop.ops.elementwise import rms_norm, rotary, swiglu
from strop.ops.linear import FrozenWeight, Rows, frozen_linear, lora_linear
from strop.ops.linear_cross_entropy import label_nll, linear_cross_entropy

Attend = Callable[[int, Tensor, Tensor, Tensor, int | None], Tensor]
"""(layer, q_TNH, k_TKH, v_TKH, window) -> (T, N, H)."""


@dataclass(slots=True)
class Dropout:
    """LoRA's dropout of all modules: what of it changes from step to step and from microbatch to microbatch.

    Attributes:
        p: Probability with which an input of A is zeroed.
        step_seed: 32 bits that are the step's own.
        keys_T: int32, of the tokens that are computed next (`ops.dropout.token_keys`).
    """

    p: float
    step_seed: int = 0
    keys_T: Tensor | None = None

    def of(self, names: Sequence[str], module: int, x_TI: Tensor) -> Tensor:
        """The input of the module-th of some modules, with numbers zeroed."""
        assert self.keys_T is not None, "dropout needs to know which tokens these are"
        return dropout(x_TI, self.keys_T, zlib.crc32(f"{self.step_seed}/{names[module]}".encode()), self.p)


@dataclass(frozen=True, slots=True)
class LoraTerms:
    """The LoRA parameters of one merged projection; see `ops.linear` for the shapes.

    Attributes:
        names: Of the modules, each with its layer.
        dropout: Of all modules; None for none.
    """

    a_RI: nn.Parameter
    b_OR: nn.Parameter
    rows: Rows
    scaling: float
    names: tuple[str, ...]
    dropout: Dropout | None


class Projection(nn.Module):
    """A frozen linear, made of one or several checkpoint modules that read the same input.

    Attributes:
        modules_rows: Name of each checkpoint module and the output rows [first, last) it owns.
        lora: The low-rank terms, if any of the modules is a target.
        lora_enabled: False computes the base model. A tensor (T, 1) of ones and zeros says it for each token; without
            gradients.
    """

    bias: Tensor | None

    def __init__(self, frozen: FrozenWeight, bias: Tensor | None, modules_rows: dict[str, tuple[int, int]]) -> None:
        super().__init__()
        self.frozen = frozen
        self.register_buffer("bias", bias, persistent=False)
        self.modules_rows = modules_rows
        self.lora: LoraTerms | None = None
        self.lora_enabled: bool | Tensor = True

    def forward(self, x_TI: Tensor) -> Tensor:
        """(T, I) -> (T, O)."""
        if self.lora is None or self.lora_enabled is False:
            return frozen_linear(x_TI, self.frozen, self.bias)
        terms = self.lora
        drop = partial(terms.dropout.of, terms.names) if self.training and terms.dropout is not None else None
        share_T1 = None if self.lora_enabled is True else self.lora_enabled
        return lora_linear(
            x_TI, self.frozen, self.bias, terms.a_RI, terms.b_OR, terms.rows, terms.scaling, drop, share_T1
        )


class Layer(nn.Module):
    """Attention and feed-forward, each behind a norm and added to the residual stream."""

    input_norm: Tensor
    post_attention_norm: Tensor
    q_norm: Tensor
    k_norm: Tensor

    def __init__(
        self, index: int, config: DecoderConfig, norms: dict[str, Tensor], projections: dict[str, Projection]
    ) -> None:
        super().__init__()
        self.index, self.config = index, config
        for name, weight in norms.items():
            self.register_buffer(name, weight, persistent=False)
        self.qkv, self.o = projections["qkv"], projections["o"]
        self.gate_up, self.down = projections["gate_up"], projections["down"]

    def forward(self, x_TD: Tensor, cos_TR: Tensor, sin_TR: Tensor, attend: Attend) -> Tensor:
        """The residual stream (T, D) after this layer."""
        eps = self.config.rms_norm_eps
        x_TD = x_TD + self._attention(rms_norm(x_TD, self.input_norm, eps), cos_TR, sin_TR, attend)
        out_TD: Tensor = x_TD + self.down(swiglu(self.gate_up(rms_norm(x_TD, self.post_attention_norm, eps))))
        return out_TD

    def _attention(self, x_TD: Tensor, cos_TR: Tensor, sin_TR: Tensor, attend: Attend) -> Tensor:
        config = self.config
        heads = (config.num_heads, config.num_kv_heads, config.num_kv_heads)
        q_TNH, k_TKH, v_TKH = self.qkv(x_TD).unflatten(-1, (sum(heads), config.head_dim)).split(heads, dim=1)
        if config.qk_norm:
            q_TNH = rms_norm(q_TNH, self.q_norm, config.rms_norm_eps)
            k_TKH = rms_norm(k_TKH, self.k_norm, config.rms_norm_eps)
        q_TNH, k_TKH = rotary(q_TNH, cos_TR, sin_TR), rotary(k_TKH, cos_TR, sin_TR)
        window = config.sliding_windows[self.index]
        return self.o(attend(self.index, q_TNH, k_TKH, v_TKH, window).flatten(1))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Tokens in, hidden states, logits or a loss out. Its weights are frozen buffers; only LoRA is trained."""

    final_norm: Tensor

    def __init__(
        self,
        config: DecoderConfig,
        embedding: FrozenWeight,
        head: FrozenWeight,
        final_norm: Tensor,
        layers: list[Layer],
    ) -> None:
        super().__init__()
        self.config = config
        self.embedding, self.head = embedding, head
        self.register_buffer("final_norm", final_norm, persistent=False)
        self.layers = nn.ModuleList(layers)
        self.rotary_table = RotaryTable(config.rope).to(embedding.weight.device)
        self.gradient_checkpointing = False
        self.dropout: Dropout | None = None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the activations."""
        return self.embedding.weight.dtype

    @property
    def precision(self) -> str:
        """The recipe's name for the format of the weights."""
        kinds = {module.kind for module in self.modules() if isinstance(module, FrozenWeight) and module.kind}
        return kinds.pop() if kinds else str(self.dtype).removeprefix("torch.")

    @property
    def num_base_parameters(self) -> int:
        """Number of frozen weights in the checkpoint, whatever their format; a tied embedding counts once."""
        matrices = [module for module in self.modules() if isinstance(module, FrozenWeight)]
        held = set(self.rotary_table.buffers()).union(*(matrix.buffers() for matrix in matrices))
        others = sum(buffer.numel() for buffer in self.buffers() if buffer not in held)
        return others + sum(math.prod(matrix.shape) for matrix in matrices)

    def hidden_states(self, input_ids_T: Tensor, positions_T: Tensor, lengths_T: Tensor, attend: Attend) -> Tensor:
        """Final hidden states (T, D), after the last norm.

        Args:
            input_ids_T: int64 token ids.
            positions_T: Position of each token in its sample.
            lengths_T: Length of each token's sample (see `RotaryTable`).
            attend: How queries attend to keys.
        """
        x_TD = torch.nn.functional.embedding(input_ids_T, self.embedding.weight)
        cos_TR, sin_TR = self.rotary_table(positions_T, lengths_T, self.dtype)
        for layer in self.layers:
            if self.gradient_checkpointing and self.training:
                x_TD = checkpoint(layer, x_TD, cos_TR, sin_TR, attend, use_reentrant=False)
            else:
                x_TD = layer(x_TD, cos_TR, sin_TR, attend)
        return rms_norm(x_TD, self.final_norm, self.config.rms_norm_eps)

    def packed_hidden_states(self, input_ids_T: Tensor, tree: Tree) -> Tensor:
        """`hidden_states` of packed samples that share nothing, each attending only to itself."""
        assert tree.is_flat, "samples that share a prefix are read as `PackedInputs`"
        lengths_S, device = torch.tensor(tree.lengths), input_ids_T.device
        lengths_T = lengths_S.repeat_interleave(lengths_S).to(device)
        positions_T = torch.from_numpy(tree.positions()).to(device)
        return self.hidden_states(input_ids_T, positions_T, lengths_T, attend_packed(tree))

    def logits(self, hidden_TD: Tensor) -> Tensor:
        """Next-token logits (T, V)."""
        return frozen_linear(hidden_TD, self.head)

    def nll_sum(self, inputs: PackedInputs) -> Tensor:
        """Sum of -log p over the learned tokens of a microbatch's samples, a scalar in float32 or wider."""
        hidden_RD = self._learned_states(inputs)
        return linear_cross_entropy(hidden_RD, self.head, inputs.label_rows_E, inputs.labels_E, inputs.weights_E)

    def label_nll(self, inputs: PackedInputs) -> tuple[Tensor, Tensor]:
        """-log p of each of a microbatch's labels, (E,) in float32 or wider, and whether no token is likelier."""
        return label_nll(self._learned_states(inputs), self.head, inputs.label_rows_E, inputs.labels_E)

    def _learned_states(self, inputs: PackedInputs) -> Tensor:
        attend = attend_packed(inputs.tree)
        if self.dropout is not None:
            self.dropout.keys_T = inputs.keys_T
        hidden_TD = self.hidden_states(inputs.input_ids_T, inputs.positions_T, inputs.sample_lengths_T, attend)
        # learned_R names no position twice, so the backward of index_select never adds two values in one place.
        return hidden_TD.index_select(0, inputs.learned_R)


def attend_packed(tree: Tree) -> Attend:
    """Attention within packed samples: each sees itself and the prefix that it shares."""

    def attend(layer: int, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, window: int | None) -> Tensor:
        return attention(q_TNH, k_TKH, v_TKH, tree, window)

    return attend
