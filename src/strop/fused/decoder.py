"""The decoder as a GPU trains it: fused layers, shared prefixes, and one gradient buffer.

It computes what `model.decoder` does, faster, wherever `why_not_fused` gives no reason against it.
"""

from typing import Any

import torch
from torch import Tensor

from strop.fused.inputs import FusedInputs, lay_out, read_inputs
from strop.fused.layer import FusedLayer, LayerInputs
from strop.fused.lora_work import LoraWork
from strop.microbatch.pack import Microbatch
from strop.model.lora import LoraAdapter
from strop.ops.elementwise import rms_norm
from strop.ops.triton.cross_entropy import fused_linear_cross_entropy
from strop.ops.triton.norm import Stream
from strop.ops.triton.thin import Measured, measure


class FusedDecoder:
    """A decoder and its adapter, ready to be trained on one GPU.

    Attributes:
        decoder: The plain decoder, which owns the weights.
        work: LoRA's working copy; call `work.refresh` after every update.
    """

    def __init__(self, adapter: LoraAdapter) -> None:
        self.decoder, self.adapter = adapter.decoder, adapter
        self.work = LoraWork(adapter)
        layers = self.decoder.layers
        self.layers = [FusedLayer(layer, self.work, adapter.scaling, len(layers)) for layer in layers]  # type: ignore[arg-type]
        self.work.refresh()

    def inputs_of(self, microbatch: Microbatch) -> FusedInputs:
        """A microbatch on the decoder's device, without padding."""
        block, capacity = lay_out(microbatch, "none")
        return read_inputs(block.to(self.decoder.device), capacity)

    def nll_sum(self, inputs: FusedInputs) -> Tensor:
        """Weighted sum of -log p over the learned positions; its backward adds LoRA's gradients to `work.grad`."""
        decoder = self.decoder
        plan = inputs.plan
        cos_TR, sin_TR = decoder.rotary_table(plan.positions, inputs.sample_lengths_T, decoder.dtype)
        layer_inputs = LayerInputs(cos_TR, sin_TR, plan, inputs.learned_R.long())
        x_TD = torch.nn.functional.embedding(inputs.input_ids_T, decoder.embedding.weight)
        # So that autograd calls the layers' backward; no gradient of the embedding is computed.
        x_TD.requires_grad_(torch.is_grad_enabled())
        hidden_RD = _Layers.apply(x_TD, self, layer_inputs)  # type: ignore[no-untyped-call]
        hidden_RD = rms_norm(hidden_RD, decoder.final_norm, decoder.config.rms_norm_eps)
        return fused_linear_cross_entropy(
            hidden_RD, decoder.head, inputs.label_offsets, inputs.labels_E, inputs.weights_E
        )


class _Layers(torch.autograd.Function):
    """All layers; `FusedLayer` writes out their backward."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, model: FusedDecoder, inputs: LayerInputs) -> Tensor:
        ctx.model, ctx.inputs, ctx.kept = model, inputs, []
        training, recompute = x_TD.requires_grad, model.decoder.gradient_checkpointing
        stream = Stream(x_TD, None, None)
        for layer in model.layers:
            stream, kept = layer.forward(stream, inputs)
            if training:
                ctx.kept.append(kept.x_TD if recompute else kept)
            del kept  # otherwise it would stay allocated while the next layer computes
        x, block, pending = stream
        assert block is not None
        assert pending is not None
        return x + block + pending.h_TR @ pending.thin_OR.t()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, None]:
        layers, inputs = ctx.model.layers, ctx.inputs
        grad: Measured | None = measure(grads[0].contiguous(), layers[-1].down.thin.b_OR)
        for layer in reversed(layers):
            kept = ctx.kept.pop()  # frees each layer's memory as soon as it has been used
            if isinstance(kept, Tensor):
                kept = layer.recall(kept, inputs)
            assert grad is not None
            grad = layer.backward(grad, kept, inputs)
        return None, None, None
