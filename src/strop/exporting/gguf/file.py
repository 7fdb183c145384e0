"""The GGUF file: hyperparameters, tokenizer and weights, with llama.cpp's names, order and quantisation types.

ggml itself quantises, from the library that also tests the file: the `gguf` package has no K types, and xllamacpp's
Python interface does not expose them. `ggml_quantize_chunk` is plain C and has had these arguments since 2024.
"""

import ctypes
import importlib.util
import math
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from strop.data.template import Template
from strop.exporting.gguf.metadata import ARCHITECTURES, add_shape, add_tokenizer, name_for_tokenizer, rope_tensors
from strop.exporting.merge import MergedModel
from strop.model.config import DecoderConfig

Quantisation = Literal["f16", "q8_0", "q4_k_m"]

FILE_TYPES = {"f16": 1, "q8_0": 7, "q4_k_m": 15}
"""llama.cpp's `llama_ftype` for each of strop's names."""

_NARROW = {
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}  # llama.cpp's choice if the row length is not a multiple of 256
_CHUNK = 2**22  # weights; a task of about 50 ms

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
    "mlp.gate_up_proj": "ffn_up",  # llama.cpp recognises Phi-3's by its number of rows
    "mlp.down_proj": "ffn_down",
}


def write_gguf(
    model: MergedModel, template: Template, path: Path, quantisation: Quantisation, name: str, context: int
) -> None:
    """Write the file, one tensor at a time.

    Args:
        model: The merged model.
        template: The training template; its tokenizer, chat template and stop tokens go into the file.
        path: The file.
        quantisation: How matrices are stored.
        name: The model's name.
        context: The context length from `usable_context`.

    Raises:
        RecipeError: llama.cpp has no such tokenizer.
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
    """llama.cpp's name for a tensor of the checkpoint."""
    module, _, suffix = name.rpartition(".")
    if module in _NAMES:
        return f"{_NAMES[module]}.{suffix}"
    _, _, layer, rest = module.split(".", 3)
    return f"blk.{layer}.{_NAMES[rest]}.{suffix}"


def in_pairs(name: str, weight: Tensor, num_heads: int, num_kv_heads: int) -> Tensor:
    """Reorder query and key channels for llama.cpp's `llama` architecture; other tensors stay unchanged.

    It rotates neighbouring channels (0, 1), (2, 3), ...; a checkpoint pairs the halves (0, h/2), (1, h/2 + 1), ...
    """
    heads = {"attn_q": num_heads, "attn_k": num_kv_heads}.get(name.split(".")[-2])
    if heads is None:
        return weight
    halves = weight.reshape(heads, 2, -1, *weight.shape[1:])
    return halves.transpose(1, 2).reshape(weight.shape)


def tensor_type(quantisation: str, name: str, shape: tuple[int, ...], config: DecoderConfig) -> Any:
    """A tensor's type: float32 for norms and biases; for matrices, what llama.cpp's own quantiser chooses.

    Args:
        quantisation: A key of `FILE_TYPES`.
        name: llama.cpp's name of the tensor.
        shape: (rows, columns), or (n,).
        config: The model's config; the mixture gives some layers more bits.

    Returns:
        A `gguf.GGMLQuantizationType`.
    """
    from gguf import GGMLQuantizationType as Kind

    if len(shape) == 1:
        return Kind.F32
    if quantisation == "f16":
        return Kind.F16
    kind = "Q8_0" if quantisation == "q8_0" else _mixture(name, config)
    if shape[-1] % 256:
        kind = _NARROW.get(kind, kind)
    return Kind[kind] if shape[-1] % 32 == 0 else Kind.F16


def _mixture(name: str, config: DecoderConfig) -> str:
    """llama.cpp's Q4_K_M (`llama_tensor_get_type`): 6 bits for the output and for half of the v and down matrices."""
    if name == "output.weight" or (name == "token_embd.weight" and config.tie_word_embeddings):
        return "Q6_K"
    if name.endswith("attn_qkv.weight"):
        return "Q5_K"
    if not name.endswith(("attn_v.weight", "ffn_down.weight")):
        return "Q4_K"
    layer, layers = int(name.split(".")[1]), config.num_layers
    more = layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
    return "Q6_K" if more else "Q4_K"


def quantise(weight: NDArray[np.float32], kind: Any) -> NDArray[Any]:
    """Convert a contiguous tensor to what the file stores: floats, or (rows, bytes per row)."""
    import gguf

    if kind.name in ("F32", "F16"):
        return weight.astype(np.float32 if kind.name == "F32" else np.float16, copy=False)
    rows, columns = weight.shape
    out = np.empty((rows, math.prod(gguf.quant_shape_to_byte_shape((columns,), kind))), dtype=np.uint8)
    step = max(1, _CHUNK // columns)
    library = _ggml()

    def chunk(start: int) -> None:
        part, stored = weight[start : start + step], out[start : start + step]
        pointers = (array.ctypes.data_as(ctypes.c_void_p) for array in (part, stored))
        size = library.ggml_quantize_chunk(int(kind), *pointers, 0, len(part), columns, None)
        if size != stored.nbytes:
            raise RuntimeError(f"ggml wrote {size} bytes of {kind.name}, expected {stored.nbytes}: a different ggml?")

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # ctypes releases the GIL
        list(pool.map(chunk, range(0, rows, step)))
    return out


@cache
def _ggml() -> ctypes.CDLL:
    spec = importlib.util.find_spec("xllamacpp")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("xllamacpp")  # cannot happen: require_consumer checked
    library = ctypes.CDLL(str(next(Path(spec.origin).parent.glob("xllamacpp*.so"))))
    size, pointer = ctypes.c_int64, ctypes.c_void_p
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, size, size, size, pointer]
    return library
