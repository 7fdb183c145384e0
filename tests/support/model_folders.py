"""A minimal honest model folder, written byte by byte, for tests that then spoil it."""

import json
import math
from pathlib import Path
from typing import Any

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 16,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
TENSORS = {"model.embed_tokens.weight": [16, 8], "model.norm.weight": [8]}
ITEM_BYTES = {"F32": 4, "BF16": 2, "I64": 8}


def write_model_folder(folder: Path) -> Path:
    """config.json, one weights file, tokenizer.json and tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", CONFIG)
    write_json(folder / "tokenizer.json", {"model": {"type": "BPE", "vocab": {}, "merges": []}})
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    write_safetensors(folder / "model.safetensors", TENSORS)
    return folder


def write_json(path: Path, value: Any) -> None:
    """A JSON file."""
    path.write_text(json.dumps(value), encoding="utf-8")


def edit_json(path: Path, **changes: Any) -> None:
    """Set keys of a JSON object; a file that is not there counts as empty."""
    old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    write_json(path, old | changes)


def make_header(shapes: dict[str, list[int]], dtype: str = "F32") -> dict[str, Any]:
    """The header of a file that holds tensors of these shapes one after the other."""
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * ITEM_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    return header


def write_safetensors(path: Path, shapes: dict[str, list[int]], dtype: str = "F32") -> None:
    """A weights file of zeros."""
    header = make_header(shapes, dtype)
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    write_raw_safetensors(path, header, bytes(end))


def write_raw_safetensors(path: Path, header: Any, data: bytes) -> None:
    """Whatever header over whatever data; a header of bytes is written as it is."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def write_shards(folder: Path, shard_of: dict[str, Any]) -> None:
    """Two shards and an index that says whatever `shard_of` says."""
    (folder / "model.safetensors").unlink()
    for name, shape in TENSORS.items():
        shard = "a.safetensors" if "embed" in name else "b.safetensors"
        write_safetensors(folder / shard, {name: shape})
    write_json(folder / "model.safetensors.index.json", {"weight_map": shard_of})
