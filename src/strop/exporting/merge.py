"""Merges base and adapter into one checkpoint in the base's own layout, one tensor at a time.

W + scaling B A is computed in float32 and rounded once. Only one tensor is in memory at a time, never the model.
"""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from strop.errors import StropError
from strop.exporting.adapter import CONFIG_FILE
from strop.exporting.layout import Factors, read_factors
from strop.exporting.staged import write_json
from strop.model.pretrained.folder import ModelFolder
from strop.model.pretrained.tensors import group_modules, module_path
from strop.model.pretrained.weights import CheckpointReader
from strop.ops.nf4 import Nf4, dequantise

SHARD_BYTES = 5 * 10**9
_PREFIX = "base_model.model."


class MergedModel:
    """The tensors of a base checkpoint with an adapter merged in; usable while the checkpoint is open.

    Attributes:
        names: Names of all tensors, as in the base.
        base: The base's folder.
    """

    def __init__(self, read: CheckpointReader, base: ModelFolder, factors: Factors, scaling: float, nf4: bool) -> None:
        self._read, self._factors, self._scaling, self._nf4 = read, factors, scaling, nf4
        self.base = base
        self.names = read.names()
        config = base.config
        self._matrices = {
            f"{module_path(layer, group, module)}.weight"
            for layer in range(config.num_layers)
            for group, modules in group_modules(config).items()
            for module in modules
        }
        if lost := sorted(factors.keys() - {name.removesuffix(".weight") for name in self.names}):
            raise StropError(
                f"the adapter adapts {lost[0]}, which the base does not have; was it trained on this base?"
            )

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        stored = self.base.holds_nf4 and name in self._matrices
        return tuple((self._read.matrix(name) if stored else self._read(name)).shape)

    def __getitem__(self, name: str) -> Tensor:
        """A tensor in float32, with the adapter merged in."""
        matrix = self._read.matrix(name) if self._nf4 and name in self._matrices else self._read(name)
        tensor = dequantise(matrix, torch.float32) if isinstance(matrix, Nf4) else matrix
        if (pair := self._factors.get(name.removesuffix(".weight"))) is None or not name.endswith(".weight"):
            return tensor
        a_RI, b_OR = (factor.float() for factor in pair)
        return torch.addmm(tensor, b_OR, a_RI, alpha=self._scaling)


@contextmanager
def merged_model(base: ModelFolder, adapter: Path, nf4: bool) -> Iterator[MergedModel]:
    """Open a base model folder and a PEFT adapter folder as one merged model.

    Args:
        base: The base's folder.
        adapter: A PEFT adapter folder of the same layout.
        nf4: Merge onto the weights as NF4 rounds them, which is what the adapter of a 4-bit run was trained on.

    Raises:
        ModelError: A tensor of the base is missing or damaged.
        StropError: The adapter belongs to another base.
    """
    config = json.loads((adapter / CONFIG_FILE).read_text(encoding="utf-8"))
    scaling = config["lora_alpha"] / (math.sqrt(config["r"]) if config["use_rslora"] else config["r"])
    factors = {name.removeprefix(_PREFIX): pair for name, pair in read_factors(adapter).items()}
    with CheckpointReader(base, torch.float32, torch.device("cpu")) as read:
        yield MergedModel(read, base, factors, scaling, nf4)


def write_merged(model: MergedModel, folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Write config.json and the weights as bfloat16 safetensors; several shards get an index."""
    shapes = {name: model.shape(name) for name in model.names}
    shards = plan_shards(shapes, shard_bytes)
    total = 0
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = "model.safetensors"
        if len(shards) > 1:
            file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        total += _write_shard(folder / file, model, {name: shapes[name] for name in names})
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(folder / "model.safetensors.index.json", index)
    dropped = ("quantization_config", "torch_dtype")
    config = {key: value for key, value in model.base.settings.items() if key not in dropped}
    write_json(folder / "config.json", config | {"dtype": "bfloat16"})


def plan_shards(shapes: Mapping[str, tuple[int, ...]], shard_bytes: int) -> list[list[str]]:
    """Assign tensors to files, in order, filling each file as far as `shard_bytes` allows in bfloat16."""
    shards: list[list[str]] = [[]]
    room = shard_bytes
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        if shards[-1] and size > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(name)
        room -= size
    return shards


def _write_shard(path: Path, model: MergedModel, shapes: Mapping[str, tuple[int, ...]]) -> int:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for name in shapes:
            out.write(model[name].to(torch.bfloat16).contiguous().view(torch.uint8).numpy().data)
    return end
