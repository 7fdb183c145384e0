"""safetensors -> a frozen `Decoder` in the chosen precision, whichever layout the checkpoint has.

q, k, v and gate, up become one matrix each in memory, so that a layer is four matrix products; fused checkpoints
are stored that way already. Nothing of this reaches disk: adapters keep the checkpoint's own module names.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from strop.errors import ModelError
from strop.model.decoder import Decoder, Layer, Projection
from strop.model.families import DecoderConfig, read_config
from strop.model.vet import vet_model_folder
from strop.ops.frozen_linear import Float8Weight, FrozenWeight

_MAX_FLOAT8_ERROR = 0.04

GROUPS = {"qkv": "self_attn", "o": "self_attn", "gate_up": "mlp", "down": "mlp"}
"""The four merged projections of a layer, and the block of the checkpoint's names each belongs to."""


def load_decoder(folder: Path, dtype: torch.dtype, device: torch.device | str = "cpu", float8: bool = False) -> Decoder:
    """Vet a model folder and load it.

    Args:
        folder: An ordinary Hugging Face model folder with safetensors weights, sharded or not.
        dtype: Type of the weights in memory: float32, bfloat16 or float64.
        device: Where they go; read there directly, one tensor at a time.
        float8: Hold the layers' matrices in float8; see `freeze`.

    Raises:
        ModelError: The folder is unsafe, damaged, of an unsupported family, or lacks a tensor.
    """
    config = read_config(vet_model_folder(folder))
    with _Checkpoint(folder, dtype, torch.device(device)) as read:
        return build_decoder(config, read, float8)


def build_decoder(config: DecoderConfig, read: Callable[[str], Tensor], float8: bool = False) -> Decoder:
    """The decoder of `config`, its tensors asked for by their checkpoint names."""
    layers = [_build_layer(index, config, read, float8) for index in range(config.num_layers)]
    embedding = FrozenWeight(read("model.embed_tokens.weight"))
    head = embedding if config.tie_word_embeddings else FrozenWeight(read("lm_head.weight"))
    return Decoder(config, embedding, head, read("model.norm.weight"), layers)


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


def freeze(weight_OI: Tensor, float8: bool) -> FrozenWeight:
    """A matrix as it is held: in its own type, or in float8 where that is asked for and comes close enough.

    Rounding to e4m3 moves an entry by 2.6% whatever the scale, unless single entries of a row stand so far out that
    the others drop below float8's range. A matrix that is off by more than 4% stays as it is, which two such rows in a
    thousand suffice for, and so does one whose sides are no multiples of 16, which the GPU's products cannot read.
    """
    if not float8 or any(side % 16 for side in weight_OI.shape):
        return FrozenWeight(weight_OI)
    frozen = Float8Weight(weight_OI)
    return frozen if frozen.error(weight_OI) <= _MAX_FLOAT8_ERROR else FrozenWeight(weight_OI)


def _build_layer(index: int, config: DecoderConfig, read: Callable[[str], Tensor], float8: bool) -> Layer:
    prefix = f"model.layers.{index}"
    norms = {
        "input_norm": read(f"{prefix}.input_layernorm.weight"),
        "post_attention_norm": read(f"{prefix}.post_attention_layernorm.weight"),
    }
    if config.qk_norm:
        norms |= {name: read(f"{prefix}.self_attn.{name}.weight") for name in ("q_norm", "k_norm")}
    has_bias = {
        "qkv": config.qkv_bias,
        "o": config.output_bias,
        "gate_up": config.mlp_bias,
        "down": config.mlp_bias,
    }
    projections = {}
    for group, modules in group_modules(config).items():
        paths = [module_path(index, group, module) for module in modules]
        frozen = freeze(_merge([read(f"{path}.weight") for path in paths]), float8)
        bias = _merge([read(f"{path}.bias") for path in paths]) if has_bias[group] else None
        projections[group] = Projection(frozen, bias, modules)
    return Layer(index, config, norms, projections)


def _merge(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class _Checkpoint:
    """Reads tensors by name from one file or from the shards that an index names."""

    def __init__(self, folder: Path, dtype: torch.dtype, device: torch.device) -> None:
        self._folder, self._dtype, self._device = folder, dtype, device
        index = folder / "model.safetensors.index.json"
        self._shard_of: dict[str, str] | None = None
        if index.exists():
            self._shard_of = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        self._open: dict[str, Any] = {}

    def __enter__(self) -> "_Checkpoint":
        return self

    def __exit__(self, *exc: object) -> None:
        for handle in self._open.values():
            handle.__exit__(None, None, None)

    def __call__(self, name: str) -> Tensor:
        file = "model.safetensors" if self._shard_of is None else self._shard_of.get(name, "")
        if file and file not in self._open:
            handle = safe_open(self._folder / file, framework="pt", device=str(self._device))
            self._open[file] = handle.__enter__()
        if not file or name not in self._open[file].keys():  # noqa: SIM118 (not a dict)
            raise ModelError(f"{self._folder}: tensor {name} is missing; the checkpoint does not match its config.json")
        tensor: Tensor = self._open[file].get_tensor(name)
        return tensor.to(self._dtype)
