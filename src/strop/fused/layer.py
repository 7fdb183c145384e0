"""A layer as a GPU trains it: its forward and backward written out, with nothing computed twice.

The plain decoder's layer (`model.decoder`) defines what is computed and runs anywhere. This is the same function and
its gradient as a sequence of frozen products and fused kernels (`ops.triton`). Tests compare the two.

For its backward a layer keeps x and x1, the stream before its two blocks; q, k and v after rotation; the attention's
output; gate and up; and thin matrices. Operands of products are never kept, because no frozen weight has a gradient.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from strop.fused.lora_work import LoraWork, ThinPair
from strop.model.decoder import Layer
from strop.ops.linear import FrozenWeight, Operand
from strop.ops.triton.attention import tree_attention, tree_attention_backward
from strop.ops.triton.attention_plan import AttentionPlan
from strop.ops.triton.norm import Stream, advance, norm_backward, norm_operand
from strop.ops.triton.rotary import finish_qkv, turn_back
from strop.ops.triton.swiglu import swiglu, swiglu_backward
from strop.ops.triton.thin import LowRank, Measured, measure, operand_of


@dataclass(frozen=True, slots=True)
class LayerInputs:
    """What every layer reads about a microbatch: rotary tables, attention's tiles, and the rows that the loss needs.

    Attributes:
        cos_TR: Cosines of every token's position.
        sin_TR: Sines.
        plan: Attention's tiles.
        learned_R: Positions that predict a learned token, each once; the value T is padding.
    """

    cos_TR: Tensor
    sin_TR: Tensor
    plan: AttentionPlan
    learned_R: Tensor


class FusedProjection(NamedTuple):
    """A frozen product with its low-rank term, which the next kernel adds."""

    frozen: FrozenWeight
    bias: Tensor | None
    thin: ThinPair

    def product(self, x: Operand) -> Tensor:
        """X W^T + b, without the low-rank term."""
        y_TO = self.frozen.product(x)
        return y_TO if self.bias is None else y_TO.add_(self.bias)

    def forward_term(self, h_TR: Tensor) -> LowRank:
        """The low-rank term, still to be added to the product."""
        return LowRank(h_TR, self.thin.b_OR)

    def backward_term(self, dh_TR: Tensor) -> LowRank:
        """The low-rank term, still to be added to the gradient of the product's input."""
        return LowRank(dh_TR, self.thin.a_IR)


class Kept(NamedTuple):
    """A layer's tensors between forward and backward.

    In the last layer, those from `last_out` on have one row per learned position instead of one per token.
    """

    x_TD: Tensor
    factor_T: Tensor
    qkv_TO: Tensor
    h_qkv: Tensor
    out_TO: Tensor
    lse_NT: Tensor
    last_out: Tensor
    h_o: Tensor
    x1: Tensor
    factor1: Tensor
    gate_up: Tensor
    h_gate_up: Tensor
    h_down: Tensor


class FusedLayer:
    """One layer. A model's last layer computes everything after its attention for the learned positions only."""

    def __init__(self, layer: Layer, work: LoraWork, scaling: float, num_layers: int) -> None:
        config, index = layer.config, layer.index
        named = {"qkv": layer.qkv, "o": layer.o, "gate_up": layer.gate_up, "down": layer.down}
        self.qkv, self.o, self.gate_up, self.down = (
            FusedProjection(projection.frozen, projection.bias, work.thin[index, group])
            for group, projection in named.items()
        )
        self.below = work.thin[index - 1, "down"] if index else None
        self.norm, self.norm1, self.eps = layer.input_norm, layer.post_attention_norm, config.rms_norm_eps
        self.heads = (config.num_heads, config.num_kv_heads)
        self.window, self.scaling = config.sliding_windows[index], scaling
        self.is_last = index == num_layers - 1

    def forward(self, stream: Stream, inputs: LayerInputs) -> tuple[Stream, Kept]:
        """The stream after the layer, and what the backward needs."""
        kept, operand = self._up_to_down(stream, inputs)
        return Stream(kept.x1, self.down.product(operand), self.down.forward_term(kept.h_down)), kept

    def recall(self, x_TD: Tensor, inputs: LayerInputs) -> Kept:
        """What the backward needs, recomputed from the stream before the layer."""
        return self._up_to_down(Stream(x_TD, None, None), inputs)[0]

    def _up_to_down(self, stream: Stream, inputs: LayerInputs) -> tuple[Kept, Operand]:
        """What the backward needs, and what the last product reads."""
        qkv, o, gate_up, down, scaling = self.qkv, self.o, self.gate_up, self.down, self.scaling
        measured = advance(stream, self.norm, qkv.thin.a_IR)
        x_TD = measured.x_TD
        operand, h_qkv, factor = norm_operand(measured, self.norm, self.eps, scaling, qkv.frozen.float8)
        qkv_TO = qkv.product(operand)
        finish_qkv(qkv_TO, qkv.forward_term(h_qkv), qkv.thin.blocks, inputs.cos_TR, inputs.sin_TR, self.heads)
        out, lse = tree_attention(qkv_TO, inputs.plan, self.heads, self.window, o.thin.a_IR)
        out_TO, x = out.x_TI, x_TD
        if self.is_last:
            rows = inputs.learned_R.clamp(max=len(x_TD) - 1)
            x, out = x_TD.index_select(0, rows), measure(out_TO.index_select(0, rows), o.thin.a_IR)
        operand, h_o = operand_of(out, scaling, o.frozen.float8)
        measured = advance(Stream(x, o.product(operand), o.forward_term(h_o)), self.norm1, gate_up.thin.a_IR)
        x1 = measured.x_TD
        operand, h_gate_up, factor1 = norm_operand(measured, self.norm1, self.eps, scaling, gate_up.frozen.float8)
        both = gate_up.product(operand)
        a = swiglu(both, gate_up.forward_term(h_gate_up), gate_up.thin.blocks, down.thin.a_IR)
        operand, h_down = operand_of(a, scaling, down.frozen.float8)
        kept = Kept(x_TD, factor, qkv_TO, h_qkv, out_TO, lse, out.x_TI, h_o, x1, factor1, both, h_gate_up, h_down)
        return kept, operand

    def backward(self, grad: Measured, kept: Kept, inputs: LayerInputs) -> Measured | None:
        """The gradient of the stream before the layer (None for the first); adds LoRA's gradients to their buffers."""
        qkv = self.qkv
        grad_TO, dh_o, grad1_TD = self._output_backward(self._feed_forward_backward(grad, kept), kept, inputs)
        dqkv_TO = tree_attention_backward(
            grad_TO, self.o.backward_term(dh_o), kept.qkv_TO, kept.out_TO, kept.lse_NT,
            inputs.plan, self.heads, self.window,
        )  # fmt: skip
        measured = turn_back(dqkv_TO, qkv.thin.b_OR, qkv.thin.blocks, inputs.cos_TR, inputs.sin_TR, self.heads)
        operand, dh_qkv = operand_of(measured, self.scaling, qkv.frozen.float8)
        _add_part_products(qkv.thin, dqkv_TO, kept.h_qkv)
        _add_norm_product(qkv.thin.grad_a_IR, self.norm, kept.x_TD, kept.factor_T, dh_qkv)
        if self.below is None:
            return None  # nothing before the first layer is trained
        terms = (qkv.frozen.product_back(operand), qkv.backward_term(dh_qkv), kept.x_TD, kept.factor_T, self.norm)
        return norm_backward(*terms, grad1_TD, self.below.b_OR)

    def _feed_forward_backward(self, grad: Measured, kept: Kept) -> Measured:
        gate_up, down, scaling = self.gate_up, self.down, self.scaling
        operand, dh_down = operand_of(grad, scaling, down.frozen.float8)
        _add_product(down.thin.grad_b_OR, grad.x_TI, kept.h_down)
        da = down.frozen.product_back(operand)
        terms = (
            da,
            down.backward_term(dh_down),
            kept.gate_up,
            gate_up.forward_term(kept.h_gate_up),
            gate_up.thin.blocks,
        )
        grads = swiglu_backward(*terms)
        operand, dh_gate_up = operand_of(grads.measured, scaling, gate_up.frozen.float8)
        gate_up.thin.grad_b_OR.add_(grads.thin_2FB)
        down.thin.grad_a_IR.add_(grads.out_thin_FR)
        _add_norm_product(gate_up.thin.grad_a_IR, self.norm1, kept.x1, kept.factor1, dh_gate_up)
        dn = gate_up.frozen.product_back(operand)
        term = gate_up.backward_term(dh_gate_up)
        return norm_backward(dn, term, kept.x1, kept.factor1, self.norm1, grad.x_TI, self.o.thin.b_OR)

    def _output_backward(self, grad1: Measured, kept: Kept, inputs: LayerInputs) -> tuple[Tensor, Tensor, Tensor]:
        """The gradient of attention's output without its low-rank term, that term's h, and the stream's gradient."""
        o = self.o
        operand, dh_o = operand_of(grad1, self.scaling, o.frozen.float8)
        _add_product(o.thin.grad_b_OR, grad1.x_TI, kept.h_o)
        _add_product(o.thin.grad_a_IR, kept.last_out, dh_o)
        grads = (o.frozen.product_back(operand), dh_o, grad1.x_TI)
        if self.is_last:
            grads = tuple(_scatter(x, inputs.learned_R, len(kept.x_TD)) for x in grads)  # type: ignore[assignment]
        return grads


def _scatter(rows_RD: Tensor, learned_R: Tensor, total: int) -> Tensor:
    """Put rows at their positions, with zeros elsewhere; rows at position T are dropped."""
    out = rows_RD.new_zeros((total + 1, rows_RD.shape[1]))
    return out.index_copy_(0, learned_R, rows_RD)[:total]


def _add_product(total_OR: Tensor, grad_TO: Tensor, h_TR: Tensor) -> None:
    """Total += grad^T h, summed in float32."""
    total_OR.add_(_wide_product(grad_TO.t(), h_TR))


def _add_part_products(thin: ThinPair, grad_TO: Tensor, h_TR: Tensor) -> None:
    """`_add_product` for each part of the output, with its own columns of h."""
    product_OR = _wide_product(grad_TO.t(), h_TR)
    for (first, last), start in zip(thin.rows, thin.blocks.starts, strict=True):
        thin.grad_b_OR[first:last].add_(product_OR[first:last, start : start + thin.blocks.width])


def _add_norm_product(total_IR: Tensor, gain_D: Tensor, x_TD: Tensor, factor_T: Tensor, dh_TR: Tensor) -> None:
    """Total += n^T dh, for the normed rows n = gain * factor * x, which were not kept."""
    scaled_TR = (dh_TR * factor_T[:, None]).to(dh_TR.dtype)
    total_IR.addcmul_(_wide_product(x_TD.t(), scaled_TR), gain_D[:, None].float())


def _wide_product(left: Tensor, right: Tensor) -> Tensor:
    if left.dtype == torch.float32:
        return left @ right
    return torch.mm(left, right, out_dtype=torch.float32)
