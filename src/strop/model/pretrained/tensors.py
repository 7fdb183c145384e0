"""The tensors that a checkpoint of a config must hold, by name and shape, and whether it does."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from strop.errors import ModelError
from strop.model.config import DecoderConfig
from strop.model.pretrained.headers import PACKED_BYTES, StoredTensor, load_strict_json

GROUPS = {"qkv": "self_attn", "o": "self_attn", "gate_up": "mlp", "down": "mlp"}
"""The four merged projections of a layer, and the block of the checkpoint's names each belongs to."""

STATE = "quant_state.bitsandbytes__nf4"
"""Suffix to a quantised matrix's name that gives the tensor describing it."""

_DESCRIBING = ("absmax", "quant_map", STATE)
_DESCRIBING_NESTED = ("nested_absmax", "nested_quant_map")
_MAX_STATE_BYTES = 1 << 16
_SHOWN = 6
_CHUNK = 16 << 20

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


def check_tensors(config: DecoderConfig, stored: Mapping[str, StoredTensor]) -> None:
    """Check every tensor of a checkpoint against its config.json; reads no values but a tied head's.

    Args:
        config: What config.json says.
        stored: The tensors of the weights files.

    Raises:
        ModelError: Tensors are missing, superfluous, or of another shape or type; the first few and how many.
    """
    faults = list(_faults(config, stored))
    if not faults:
        return
    lines = faults[:_SHOWN] + ([f"and {len(faults) - _SHOWN} more"] if len(faults) > _SHOWN else [])
    raise ModelError(
        f"config.json and the weights do not belong together ({len(faults)} fault{'s' * (len(faults) > 1)}); download "
        "all files of the model again, from one place:" + "".join(f"\n  - {line}" for line in lines)
    )


def checkpoint_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor that a checkpoint of this config has, in any order of its files."""
    width = config.hidden_size
    shapes: dict[str, tuple[int, ...]] = {_EMBEDDING: (config.vocab_size, width), "model.norm.weight": (width,)}
    if not config.tie_word_embeddings:
        shapes[_HEAD] = (config.vocab_size, width)
    return shapes | matrix_shapes(config) | _norm_and_bias_shapes(config)


def matrix_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Of the layers' matrices alone, which are those that may be quantised."""
    inputs = {"o": config.num_heads * config.head_dim, "down": config.intermediate_size}
    return {
        f"{module_path(layer, group, module)}.weight": (last - first, inputs.get(group, config.hidden_size))
        for layer in range(config.num_layers)
        for group, modules in group_modules(config).items()
        for module, (first, last) in modules.items()
    }


def _norm_and_bias_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    groups = group_modules(config)
    for layer in range(config.num_layers):
        for name in norm_names(config).values():
            size = config.head_dim if name.startswith("self_attn.") else config.hidden_size
            shapes[f"model.layers.{layer}.{name}.weight"] = (size,)
        for group in biased_groups(config):
            for module, (first, last) in groups[group].items():
                shapes[f"{module_path(layer, group, module)}.bias"] = (last - first,)
    return shapes


def norm_names(config: DecoderConfig) -> dict[str, str]:
    """The decoder's name of each norm of a layer, and the checkpoint's."""
    norms = {"input_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm"}
    return norms | ({"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"} if config.qk_norm else {})


def biased_groups(config: DecoderConfig) -> list[str]:
    """The merged projections that add a bias."""
    has_bias = {"qkv": config.qkv_bias, "o": config.output_bias, "gate_up": config.mlp_bias, "down": config.mlp_bias}
    return [group for group, has in has_bias.items() if has]


def group_modules(config: DecoderConfig) -> dict[str, dict[str, tuple[int, int]]]:
    """For each merged projection, the checkpoint modules in it and the output rows each owns."""
    parts = part_rows(config)
    split = {"qkv": ("q_proj", "k_proj", "v_proj"), "gate_up": ("gate_proj", "up_proj")}
    fused = {group: (f"{group}_proj",) for group in parts}
    names = fused if config.fused else fused | split
    return {
        group: dict(zip(names[group], rows if len(names[group]) > 1 else ((0, rows[-1][1]),), strict=True))
        for group, rows in parts.items()
    }


def part_rows(config: DecoderConfig) -> dict[str, tuple[tuple[int, int], ...]]:
    """For each merged projection, the output rows of its parts: q, k, v; gate, up; or the one part there is."""
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    ff, width = config.intermediate_size, config.hidden_size
    qkv, gate_up = ((0, q), (q, q + kv), (q + kv, q + 2 * kv)), ((0, ff), (ff, 2 * ff))
    return {"qkv": qkv, "o": ((0, width),), "gate_up": gate_up, "down": ((0, width),)}


def module_path(layer: int, group: str, module: str) -> str:
    """A checkpoint module's full name, such as model.layers.3.self_attn.q_proj."""
    return f"model.layers.{layer}.{GROUPS[group]}.{module}"


def _faults(config: DecoderConfig, stored: Mapping[str, StoredTensor]) -> Iterator[str]:
    expected, matrices = checkpoint_shapes(config), matrix_shapes(config)
    allowed = set(expected)
    for name, shape in expected.items():
        tensor = stored.get(name)
        if tensor is None:
            yield f"tensor {name} is missing"
        elif tensor.dtype not in PACKED_BYTES:
            yield from _shape_faults(name, tensor.shape, shape, config)
        elif name in matrices:
            describing, faults = _quantised(name, shape, stored, config)
            allowed |= describing
            yield from faults
        else:
            yield f"tensor {name} is quantised, but only the layers' matrices may be"
    if config.tie_word_embeddings and _HEAD in stored:
        yield from _tied_faults(stored)
        allowed.add(_HEAD)
    for name in sorted(stored.keys() - allowed):
        if not name.endswith("rotary_emb.inv_freq"):  # old files hold what is computed from config.json
            yield f"tensor {name} of {stored[name].file.name} is none that config.json asks for"


def _shape_faults(name: str, shape: tuple[int, ...], expected: tuple[int, ...], config: DecoderConfig) -> Iterator[str]:
    if shape == expected:
        return
    why = f" (vocab_size is {config.vocab_size})" if name in (_EMBEDDING, _HEAD) else ""
    yield f"tensor {name} has shape {list(shape)}, but by config.json it is {list(expected)}{why}"


def _quantised(
    name: str, shape: tuple[int, ...], stored: Mapping[str, StoredTensor], config: DecoderConfig
) -> tuple[set[str], list[str]]:
    """The tensors that describe a quantised matrix, and what is wrong with it."""
    state = stored.get(f"{name}.{STATE}")
    said = _state(state) if state is not None else None
    if state is not None and said is None:
        text = f"tensor {name}.{STATE} is not an object with a shape, so it describes nothing"
        return {each for each in stored if each.startswith(f"{name}.")}, [text]
    nested = _DESCRIBING_NESTED if said and "nested_blocksize" in said else ()
    describing = {f"{name}.{suffix}" for suffix in (*_DESCRIBING, *nested)}
    faults = [f"tensor {each} is missing" for each in sorted(describing - stored.keys())]
    if said is not None:
        faults += _shape_faults(name, tuple(said["shape"]), shape, config)
        if math.prod(stored[name].shape) != (math.prod(shape) + 1) // 2:
            faults.append(
                f"tensor {name} has {math.prod(stored[name].shape)} bytes, not two numbers of {shape} in each"
            )
    return describing, faults


def _state(tensor: StoredTensor) -> dict[str, Any] | None:
    """A quantised matrix's description; None if it cannot be read."""
    try:
        state = load_strict_json(tensor.read_bytes(most=_MAX_STATE_BYTES))
    except ValueError:
        return None
    shape = state.get("shape") if isinstance(state, dict) else None
    return state if isinstance(shape, list) and all(type(size) is int for size in shape) else None


def _tied_faults(stored: Mapping[str, StoredTensor]) -> Iterator[str]:
    """Programs differ in which of two different ones they take: transformers the head, vLLM the embedding."""
    head, embedding = stored[_HEAD], stored.get(_EMBEDDING)
    if embedding is not None and not _same(head, embedding):
        yield (
            f"tie_word_embeddings is true, but {_HEAD} is not {_EMBEDDING}; set it to false, or remove {_HEAD}, "
            "whichever the model was trained with"
        )


def _same(one: StoredTensor, other: StoredTensor) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    starts = range(0, one.end - one.start, _CHUNK)
    return all(one.read_bytes(start, _CHUNK) == other.read_bytes(start, _CHUNK) for start in starts)
