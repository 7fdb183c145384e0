"""Which of GGUF's types each tensor takes, and the numbers in it.

The quantising itself is ggml's own, in the library that also tries the file out: the `gguf` package has no K types,
and xllamacpp's Python interface no call for them. `ggml_quantize_chunk` is plain C, with these arguments since 2024.
"""

import ctypes
import importlib.util
import math
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strop.model.config import DecoderConfig

FILE_TYPES = {"f16": 1, "q8_0": 7, "q4_k_m": 15}
"""llama.cpp's `llama_ftype`, by what strop calls it."""

_NARROW = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}  # llama.cpp's choice for rows that are not n x 256
_CHUNK = 2**22  # weights; a task of some 50 ms


def tensor_type(quantisation: str, name: str, shape: tuple[int, ...], config: DecoderConfig) -> Any:
    """A tensor's type: float32 for norms and biases, for matrices what llama.cpp's own quantiser takes.

    Args:
        quantisation: A key of `FILE_TYPES`.
        name: llama.cpp's.
        shape: (rows, columns), or (n,).
        config: Of the model; the mixture gives more bits to some layers.

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
    """llama.cpp's Q4_K_M (`llama_tensor_get_type`): 6 bits for the output and half of the v and down matrices."""
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
    """A contiguous tensor as the file holds it: floats, or (rows, bytes of a row)."""
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
            raise RuntimeError(f"ggml wrote {size} bytes of {kind.name} and not {stored.nbytes}: another ggml?")

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # ctypes lets go of Python's lock
        list(pool.map(chunk, range(0, rows, step)))
    return out


@cache
def _ggml() -> ctypes.CDLL:
    spec = importlib.util.find_spec("xllamacpp")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("xllamacpp")  # require_consumer has looked for it
    library = ctypes.CDLL(str(next(Path(spec.origin).parent.glob("xllamacpp*.so"))))
    size, pointer = ctypes.c_int64, ctypes.c_void_p
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, size, size, size, pointer]
    return library
