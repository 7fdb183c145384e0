"""The file itself: hyperparameters, tokenizer and weights under llama.cpp's names and in its order."""

import math
from pathlib import Path
from typing import Literal

import numpy as np
from torch import Tensor

from strop.data.template import Template
from strop.exporting.gguf.quantise import FILE_TYPES, quantise, tensor_type
from strop.exporting.gguf.shape import ARCHITECTURES, add_shape, rope_tensors
from strop.exporting.gguf.vocabulary import add_tokenizer, name_for_tokenizer
from strop.exporting.merge import MergedModel

Quantisation = Literal["f16", "q8_0", "q4_k_m"]

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",  # llama.cpp tells Phi-3's by its height
    "mlp.down_proj": "ffn_down",
}


def write_gguf(
    model: MergedModel, template: Template, path: Path, quantisation: Quantisation, name: str, context: int
) -> None:
    """Write the file, a tensor at a time.

    Args:
        model: What was trained.
        template: Of training: its tokenizer goes in, with the chat template and the stop tokens.
        path: The file.
        quantisation: How matrices are stored.
        name: What the model is called.
        context: From `usable_context`.

    Raises:
        RecipeError: llama.cpp knows no such tokenizer.
    """
    import gguf

    config = model.base.config
    architecture = ARCHITECTURES[config.family]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name(name_for_tokenizer(template.tokenizer, name))
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_file_type(FILE_TYPES[quantisation])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_shape(writer, config, context)
    add_tokenizer(writer, template, config.vocab_size)

    weights = {}
    for original in model.names:
        if original.endswith((".weight", ".bias")) and not (
            config.tie_word_embeddings and original.startswith("lm_head.")
        ):
            target, shape = gguf_name(original), model.shape(original)
            kind = tensor_type(quantisation, target, shape, config)
            weights[original] = (target, kind)
            size = math.prod(gguf.quant_shape_to_byte_shape(shape, kind))
            writer.add_tensor_info(target, shape, np.dtype(np.float32), size, kind)
    factors = dict(rope_tensors(config))
    for target, array in factors.items():
        writer.add_tensor_info(target, array.shape, array.dtype, array.nbytes)

    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for original, (target, kind) in weights.items():
        weight = model[original]
        if architecture == "llama":
            weight = in_pairs(target, weight, config.num_heads, config.num_kv_heads)
        writer.write_tensor_data(quantise(weight.contiguous().numpy(), kind))
    for array in factors.values():
        writer.write_tensor_data(array)
    writer.close()


def gguf_name(name: str) -> str:
    """llama.cpp's name of a checkpoint's tensor."""
    module, _, suffix = name.rpartition(".")
    if module in _NAMES:
        return f"{_NAMES[module]}.{suffix}"
    _, _, layer, rest = module.split(".", 3)
    return f"blk.{layer}.{_NAMES[rest]}.{suffix}"


def in_pairs(name: str, weight: Tensor, num_heads: int, num_kv_heads: int) -> Tensor:
    """Queries' and keys' channels in the order in which llama.cpp's `llama` turns them; other tensors as they are.

    It turns neighbours (0, 1), (2, 3), ..., a checkpoint's are halves (0, h/2), (1, h/2 + 1), ...
    """
    heads = {"attn_q": num_heads, "attn_k": num_kv_heads}.get(name.split(".")[-2])
    if heads is None:
        return weight
    halves = weight.reshape(heads, 2, -1, *weight.shape[1:])
    return halves.transpose(1, 2).reshape(weight.shape)
