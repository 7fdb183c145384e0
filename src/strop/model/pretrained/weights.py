"""safetensors -> a frozen `Decoder` in the chosen precision, whichever layout the checkpoint has.

q, k, v and gate, up become one matrix each in memory, so that a layer is four matrix products; fused checkpoints
are stored that way already. Nothing of this reaches disk: adapters keep the checkpoint's own module names.
"""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from strop.errors import ModelError
from strop.model.config import DecoderConfig
from strop.model.decoder import Decoder, Layer, Projection
from strop.model.pretrained.folder import ModelFolder
from strop.model.pretrained.headers import load_strict_json
from strop.model.pretrained.tensors import STATE, biased_groups, group_modules, module_path, norm_names
from strop.ops.blockwise import BLOCK as NESTED_BLOCK
from strop.ops.blockwise import dynamic_code
from strop.ops.linear import Float8Weight, FrozenWeight
from strop.ops.nf4 import BLOCK, LEVELS, Nested, Nf4, Nf4Weight, Scratch, dequantise, quantise, sizes


def stored_nf4(read: Callable[[str], Tensor], name: str) -> Nf4:
    """A quantised matrix as it is stored, bit for bit.

    Args:
        read: Reads a tensor of the checkpoint by name.
        name: The name of the matrix, which ends in .weight.

    Raises:
        ValueError: The tensors contradict each other or are not in the format that all of bitsandbytes writes.
    """
    state = load_strict_json(bytes(read(f"{name}.{STATE}").tolist()))
    _must(isinstance(state, dict), "its description is not an object")
    _must(state.get("blocksize") == BLOCK, f"blocks of {state.get('blocksize')}, not {BLOCK}")
    shape = state.get("shape")
    _must(
        isinstance(shape, list) and len(shape) == 2 and all(type(n) is int and n > 0 for n in shape),
        "its shape is missing or invalid",
    )
    count_bytes, count_blocks, count_nested = sizes(math.prod(shape))
    packed, absmax_B = read(name), read(f"{name}.absmax")
    levels = torch.tensor(LEVELS, device=packed.device)
    _must(_agree(read(f"{name}.quant_map"), levels), "its levels are not NF4's")
    _must(packed.dtype == torch.uint8 and packed.numel() == count_bytes, "its bytes do not match its shape")
    _must(absmax_B.numel() == count_blocks, "its scales do not match its shape")
    if "nested_blocksize" not in state:
        _must(absmax_B.is_floating_point(), "its scales are not numbers")
        return Nf4(packed.view(-1), absmax_B.float(), None, tuple(shape))
    absmax_G, code = read(f"{name}.nested_absmax").float(), read(f"{name}.nested_quant_map").float()
    _must(state["nested_blocksize"] == NESTED_BLOCK, f"scales in blocks of {state['nested_blocksize']}")
    _must(_agree(code, dynamic_code(True, code.device)), "its scales use another code")
    _must(absmax_B.dtype == torch.uint8 and absmax_G.numel() == count_nested, "its scales do not match each other")
    _must(isinstance(state.get("nested_offset"), float), "the mean of its scales is missing")
    offset = torch.tensor(state["nested_offset"], dtype=torch.float32, device=packed.device)
    return Nf4(packed.view(-1), absmax_B, Nested(absmax_G, offset, code), tuple(shape))


def _agree(stored: Tensor, ours: Tensor) -> bool:
    """Equal up to the last bits: the writer may have used another version of torch's linspace."""
    return stored.shape == ours.shape and torch.allclose(stored.float(), ours, rtol=1e-5, atol=1e-7)


def _must(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(f"not an NF4 matrix that strop can read: {otherwise}")


_MAX_FLOAT8_ERROR = 0.04


ReadMatrix = Callable[[str], Nf4 | Tensor]
"""Reads a matrix in NF4 by its checkpoint name; a dense one if the 4-bit checkpoint left it dense."""


def load_decoder(
    folder: ModelFolder | Path,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    float8: bool = False,
    nf4: bool = False,
) -> Decoder:
    """Load a model from its folder.

    Args:
        folder: An ordinary Hugging Face model folder with safetensors weights, sharded or not, or one that
            bitsandbytes has quantised to NF4. A bare path is vetted first.
        dtype: Type of the weights in memory: float32, bfloat16 or float64.
        device: Where they go; tensors are read there directly, one at a time.
        float8: Keep the layers' matrices in float8; see `freeze`.
        nf4: Round the layers' matrices to NF4, and keep them in it unless `float8` is set too; see `freeze_nf4`.

    Raises:
        ModelError: The folder is unsafe, damaged, of an unsupported family, or lacks a tensor.
        RecipeError: It has NF4 weights and `nf4` is not set.
    """
    model = folder if isinstance(folder, ModelFolder) else ModelFolder.vetted(folder)
    model.refuse_nf4_unless(nf4)
    with CheckpointReader(model, dtype, torch.device(device)) as read:
        return build_decoder(model.config, read, float8, read.matrix if nf4 else None)


def build_decoder(
    config: DecoderConfig, read: Callable[[str], Tensor], float8: bool = False, read_nf4: ReadMatrix | None = None
) -> Decoder:
    """The decoder of `config`, with tensors read by their checkpoint names, its matrices by `read_nf4` if given."""
    embedding = FrozenWeight(read("model.embed_tokens.weight"))
    scratch = Scratch(embedding.weight.dtype, embedding.weight.device)

    def frozen(names: list[str]) -> FrozenWeight:
        if read_nf4:
            return freeze_nf4([read_nf4(name) for name in names], float8, scratch)
        return freeze(_merge([read(name) for name in names]), float8)

    layers = [_build_layer(index, config, read, frozen) for index in range(config.num_layers)]
    head = embedding if config.tie_word_embeddings else FrozenWeight(read("lm_head.weight"))
    return Decoder(config, embedding, head, read("model.norm.weight"), layers)


def freeze(weight_OI: Tensor, float8: bool) -> FrozenWeight:
    """Freeze a matrix in its own type, or in float8 if that is asked for and close enough.

    Rounding to e4m3 moves an entry by 2.6% whatever the scale, unless a few entries of a row are so large that the
    others drop below float8's range. A matrix that is off by more than 4% keeps its type (two such rows in a thousand
    are enough), and so does one whose sides are not multiples of 16, which the GPU's products cannot read.
    """
    if not float8 or any(side % 16 for side in weight_OI.shape):
        return FrozenWeight(weight_OI)
    frozen = Float8Weight(weight_OI)
    return frozen if frozen.error(weight_OI) <= _MAX_FLOAT8_ERROR else FrozenWeight(weight_OI)


def freeze_nf4(parts: Sequence[Nf4 | Tensor], float8: bool, scratch: Scratch) -> FrozenWeight:
    """Freeze a matrix that was rounded to NF4 part by part: in NF4, or the rounded one in float8 as `freeze` does."""
    if not float8:
        return Nf4Weight(parts, scratch)
    dtype = scratch.dtype
    frozen = freeze(_merge([dequantise(part, dtype) if isinstance(part, Nf4) else part for part in parts]), float8)
    frozen.kind = f"nf4 in {frozen.kind}" if frozen.kind else None
    return frozen


def _build_layer(
    index: int, config: DecoderConfig, read: Callable[[str], Tensor], frozen: Callable[[list[str]], FrozenWeight]
) -> Layer:
    prefix = f"model.layers.{index}"
    norms = {name: read(f"{prefix}.{stored}.weight") for name, stored in norm_names(config).items()}
    biased = biased_groups(config)
    projections = {}
    for group, modules in group_modules(config).items():
        paths = [module_path(index, group, module) for module in modules]
        bias = _merge([read(f"{path}.bias") for path in paths]) if group in biased else None
        projections[group] = Projection(frozen([f"{path}.weight" for path in paths]), bias, modules)
    return Layer(index, config, norms, projections)


def _merge(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class CheckpointReader:
    """Reads tensors by name from one file or from the shards that an index names; a context manager.

    Args:
        model: The model's folder.
        dtype: Type of what is read.
        device: Where it goes.
    """

    def __init__(self, model: ModelFolder, dtype: torch.dtype, device: torch.device) -> None:
        self._folder, self._dtype, self._device, self._quantised = model.path, dtype, device, model.holds_nf4
        index = self._folder / "model.safetensors.index.json"
        self._shard_of: dict[str, str] | None = None
        if index.exists():
            self._shard_of = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        self._open: dict[str, Any] = {}

    def __enter__(self) -> "CheckpointReader":
        return self

    def __exit__(self, *exc: object) -> None:
        for handle in self._open.values():
            handle.__exit__(None, None, None)

    def names(self) -> list[str]:
        """Every tensor of the checkpoint, in the files' order, except those that describe a quantised matrix."""
        files = sorted(set(self._shard_of.values())) if self._shard_of else ["model.safetensors"]
        return [name for file in files for name in self._names_in(file) if ".weight." not in name]

    def __call__(self, name: str) -> Tensor:
        """A tensor that is not quantised."""
        tensor = self._stored(name)
        if not tensor.is_floating_point():
            raise ModelError(f"{self._folder}: tensor {name} is quantised, but only the layers' matrices may be")
        return tensor.to(self._dtype)

    def matrix(self, name: str) -> Nf4 | Tensor:
        """A layer's matrix in NF4: as it is stored, or rounded here if the checkpoint is not quantised."""
        if not self._quantised:
            return quantise(self(name))
        if self._holder(f"{name}.{STATE}") is None:
            return self(name)
        try:
            return stored_nf4(self._stored, name)
        except ValueError as error:
            raise ModelError(f"{self._folder}: tensor {name}: {error}; download the checkpoint again") from None

    def _stored(self, name: str) -> Tensor:
        holder = self._holder(name)
        if holder is None:
            raise ModelError(f"{self._folder}: tensor {name} is missing; the checkpoint does not match its config.json")
        return holder.get_tensor(name)  # type: ignore[no-any-return]

    def _holder(self, name: str) -> Any | None:
        """The open file that a tensor is in."""
        file = "model.safetensors" if self._shard_of is None else self._shard_of.get(name, "")
        return self._opened(file) if file and name in self._names_in(file) else None

    def _names_in(self, file: str) -> list[str]:
        return list(self._opened(file).keys())

    def _opened(self, file: str) -> Any:
        if file not in self._open:
            handle = safe_open(self._folder / file, framework="pt", device=str(self._device))
            self._open[file] = handle.__enter__()
        return self._open[file]
