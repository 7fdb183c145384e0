"""A SmolLM2 GGUF file -> an ordinary model folder: bfloat16 safetensors, tokenizer, chat template.

transformers' `gguf_file=` is not used: it takes 30 s for SmolLM2-135M (it parses the metadata three times), cannot
save what it loaded, loses the tokenizer's splitting of digits and silently drops what it does not know, such as
Llama 3's `rope_freqs`. Here anything unknown in the file is an error. So far that admits Llama-shaped models with
SmolLM's tokenizer; for any other model use its safetensors folder, which is not quantised and so the better base
anyway.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from strop.errors import ModelError
from strop.model.config import read_config
from strop.model.pretrained.headers import StoredTensor
from strop.model.pretrained.tensors import check_tensors

CONVERTER_VERSION = 1
"""Part of the cache key: raise it when the converted files change."""

_TENSORS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_CONTROL, _USER_DEFINED = 3, 4  # token types of the format


def convert_gguf(file: Path, out_folder: Path, note: Callable[[str], None] = lambda line: None) -> Path:
    """Convert once; a folder that already exists is returned as it is.

    The folder is written under a temporary name and renamed once it is complete.

    Args:
        file: The .gguf file.
        out_folder: Where the model folder goes.
        note: Called with one line before the work begins.

    Returns:
        `out_folder`.

    Raises:
        ModelError: The `gguf` package is missing, or the file is damaged or its model is not supported.
    """
    if out_folder.is_dir():
        return out_folder
    reader = _open(file)
    metadata = _read_metadata(reader, file)
    config = _model_config(metadata, reader.tensors, file)
    _check_tensors(reader.tensors, config, file)
    note(f"converting {file.name} to {out_folder} (once, takes a few seconds)")
    out_folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out_folder.name}-", dir=out_folder.parent))
    try:
        _write_weights(work / "model.safetensors", reader.tensors, config, file)
        _write_json(work / "config.json", config)
        _write_tokenizer(work, metadata, config["max_position_embeddings"])
        _write_json(work / "generation_config.json", {k: v for k, v in config.items() if k.endswith("_token_id")})
        work.chmod(0o755)  # mkdtemp's 0700 would hide a shared cache from its other users
        try:
            work.rename(out_folder)
        except OSError:
            if not out_folder.is_dir():  # else another process was first, with the same content
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return out_folder


def _open(file: Path) -> Any:
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise ModelError(
            f"model.model_name_or_path: reading {file.name} needs the gguf package: pip install 'strop[gguf]'"
        ) from error
    try:
        return GGUFReader(file)
    except Exception as error:  # a damaged file surfaces as ValueError, IndexError, UnicodeDecodeError, ...
        raise ModelError(f"{file} is not a readable GGUF file ({error}); download it again") from error


def _read_metadata(reader: Any, file: Path) -> dict[str, Any]:
    """The metadata as Python values, if it describes a model that this module converts faithfully."""
    try:
        metadata = {name: field.contents() for name, field in reader.fields.items()}
    except Exception as error:
        raise ModelError(f"{file}: the metadata cannot be read ({error}); download it again") from error
    wanted = {"general.architecture": "llama", "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm"}
    faults = [
        f"{key} is {metadata.get(key)!r}; only {value!r} can be converted"
        for key, value in wanted.items()
        if metadata.get(key) != value
    ]
    if metadata.get("llama.rope.scaling.type", "none") != "none":
        faults.append("llama.rope.scaling is set; stretched positions cannot be converted")
    if faults:
        raise ModelError(
            f"{file}: strop converts only GGUF files of the SmolLM2 family.\n  "
            + "\n  ".join(faults)
            + "\nSet model.model_name_or_path to the model's safetensors folder or hub id instead."
        )
    return metadata


def _model_config(metadata: Mapping[str, Any], tensors: list[Any], file: Path) -> dict[str, Any]:
    names = {tensor.name for tensor in tensors}
    if missing := {"token_embd.weight", "output_norm.weight"} - names:
        raise ModelError(f"{file}: tensor {min(missing)} is missing; the file is damaged or has only a vocabulary")
    try:
        heads = int(metadata["llama.attention.head_count"])
        width = int(metadata["llama.embedding_length"])
        config = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "dtype": "bfloat16",
            "vocab_size": len(metadata["tokenizer.ggml.tokens"]),
            "hidden_size": width,
            "intermediate_size": int(metadata["llama.feed_forward_length"]),
            "num_hidden_layers": int(metadata["llama.block_count"]),
            "num_attention_heads": heads,
            "num_key_value_heads": int(metadata.get("llama.attention.head_count_kv", heads)),
            "head_dim": int(metadata.get("llama.attention.key_length", width // heads)),
            "max_position_embeddings": int(metadata["llama.context_length"]),
            "rms_norm_eps": _shortest(metadata["llama.attention.layer_norm_rms_epsilon"]),
            "rope_theta": _shortest(metadata.get("llama.rope.freq_base", 10000.0)),
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": "output.weight" not in names,
        }
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ModelError(f"{file}: the metadata is incomplete or damaged: {error!r}") from error
    ids = {"bos": "bos", "eos": "eos", "pad": "padding"}
    found = {f"{short}_token_id": metadata.get(f"tokenizer.ggml.{name}_token_id") for short, name in ids.items()}
    return config | {key: int(value) for key, value in found.items() if value is not None}


def _check_tensors(tensors: list[Any], config: Mapping[str, Any], file: Path) -> None:
    """Before hundreds of megabytes are written: is each tensor what the metadata say it is?"""
    shapes = {_checkpoint_name(tensor.name, file): _shape(tensor) for tensor in tensors}
    try:
        check_tensors(
            read_config(config), {name: StoredTensor(file, "BF16", shape, 0, 0) for name, shape in shapes.items()}
        )
    except ModelError as error:
        raise ModelError(f"{file}: with its metadata as config.json: {error}") from None


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in reversed(tensor.shape))


def _shortest(value: float) -> float:
    """Undo the rounding of GGUF's float32: 9.999999747378752e-06 was 1e-05."""
    return float(str(np.float32(value)))


def _write_weights(path: Path, tensors: list[Any], config: Mapping[str, Any], file: Path) -> None:
    """One safetensors file, written a tensor at a time, so that memory never holds the whole model."""
    named = [(_checkpoint_name(tensor.name, file), tensor) for tensor in tensors]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in named:
        shape = list(_shape(tensor))
        start, end = end, end + 2 * int(tensor.n_elements)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in named:
            _write_tensor(out, tensor, _heads_to_unpermute(name, config), file)


def _checkpoint_name(name: str, file: Path) -> str:
    if name in _TENSORS:
        return _TENSORS[name]
    block, _, rest = name.removeprefix("blk.").partition(".")
    module = _LAYER_TENSORS.get(rest.removesuffix(".weight"))
    if not name.startswith("blk.") or not block.isdecimal() or module is None or not rest.endswith(".weight"):
        raise ModelError(f"{file}: tensor {name} is unknown; use the model's safetensors folder instead")
    return f"model.layers.{block}.{module}.weight"


def _heads_to_unpermute(name: str, config: Mapping[str, Any]) -> int:
    """Heads of a projection whose rotary channels llama.cpp stores in its own order; 0 for other tensors."""
    if name.endswith("q_proj.weight"):
        return int(config["num_attention_heads"])
    return int(config["num_key_value_heads"]) if name.endswith("k_proj.weight") else 0


def _write_tensor(out: BinaryIO, tensor: Any, heads: int, file: Path) -> None:
    from gguf import dequantize

    try:
        weight = dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError as error:
        raise ModelError(f"{file}: {tensor.name} has type {tensor.tensor_type.name}, which gguf cannot read") from error
    if heads:
        # llama.cpp rotates neighbours (0,1),(2,3)...; Llama checkpoints rotate halves (0,h/2),(1,h/2+1)...
        rows, columns = weight.shape
        weight = weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)
    rounded = torch.from_numpy(weight.astype("float32", copy=True)).to(torch.bfloat16)
    out.write(rounded.view(torch.uint8).numpy().data)


def _write_tokenizer(folder: Path, metadata: Mapping[str, Any], max_length: int) -> None:
    """A fast tokenizer with SmolLM's own splitting, digits one by one, which the GGUF only names."""
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": index, "content": token, **plain, "special": kind == _CONTROL}
        for index, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (_CONTROL, _USER_DEFINED)
    ]
    bytes_to_text = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    split = [{"type": "Digits", "individual_digits": True}, bytes_to_text]
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": "",
        "end_of_word_suffix": "",
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": {token: index for index, token in enumerate(tokens)},
        "merges": [merge.split(" ", 1) for merge in metadata["tokenizer.ggml.merges"]],
    }
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": split},
        "post_processor": None,
        "decoder": bytes_to_text,
        "model": model,
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_length}
    for role, key in {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}.items():
        if (index := metadata.get(f"tokenizer.ggml.{key}_token_id")) is not None:
            settings[f"{role}_token"] = tokens[index]
    _write_json(folder / "tokenizer_config.json", settings)
    if template := metadata.get("tokenizer.chat_template"):
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
