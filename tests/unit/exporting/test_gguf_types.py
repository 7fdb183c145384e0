"""What becomes of a tensor in a GGUF file: its name, its type, and the order of its rows."""

from types import SimpleNamespace
from typing import Any

import gguf
import pytest
import torch

from strop.exporting.gguf.file import FILE_TYPES, gguf_name, in_pairs, tensor_type


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("model.layers.11.self_attn.q_proj.bias", "blk.11.attn_q.bias"),
        ("model.layers.0.post_attention_layernorm.weight", "blk.0.ffn_norm.weight"),
        ("lm_head.weight", "output.weight"),
    ],
)
def test_names_are_llama_cpps(name: str, wanted: str) -> None:
    assert gguf_name(name) == wanted


@pytest.mark.parametrize(("name", "heads"), [("blk.0.attn_q.weight", 4), ("blk.0.attn_k.bias", 2)])
def test_halves_of_a_head_become_neighbours(name: str, heads: int) -> None:
    """Head by head: row i of a head's first half, then row i of its second half."""
    width = 6
    rows = torch.arange(heads * width)
    weight = rows[:, None].expand(-1, 3) if name.endswith("weight") else rows
    wanted = [head * width + i + half * width // 2 for head in range(heads) for i in range(3) for half in (0, 1)]
    got = in_pairs(name, weight, 4, 2)
    assert got.shape == weight.shape
    assert (got[:, 0] if got.ndim == 2 else got).tolist() == wanted


@pytest.mark.parametrize("name", ["blk.0.attn_v.weight", "blk.0.attn_output.weight", "output.weight"])
def test_other_tensors_keep_their_order(name: str) -> None:
    weight = torch.arange(12.0).view(6, 2)
    assert torch.equal(in_pairs(name, weight, 2, 2), weight)


def kind(quantisation: str, name: str, shape: tuple[int, ...], layers: int = 32, tied: bool = False) -> Any:
    config = SimpleNamespace(num_layers=layers, tie_word_embeddings=tied)
    return tensor_type(quantisation, name, shape, config).name  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("quantisation", "name", "shape", "wanted"),
    [
        ("q4_k_m", "blk.0.attn_norm.weight", (512,), "F32"),
        ("f16", "blk.0.attn_q.weight", (512, 512), "F16"),
        ("q8_0", "blk.0.attn_q.weight", (512, 512), "Q8_0"),
        ("q8_0", "blk.0.attn_q.weight", (512, 40), "F16"),  # no whole block of 32
        ("q4_k_m", "blk.0.attn_q.weight", (300, 512), "Q4_K"),
        ("q4_k_m", "blk.0.attn_q.weight", (512, 288), "Q5_0"),  # whole blocks of 32, not of 256
        ("q4_k_m", "blk.0.attn_qkv.weight", (512, 512), "Q5_K"),
        ("q4_k_m", "blk.0.attn_qkv.weight", (512, 288), "Q5_1"),
        ("q4_k_m", "output.weight", (512, 512), "Q6_K"),
        ("q4_k_m", "output.weight", (512, 288), "Q8_0"),
        ("q4_k_m", "token_embd.weight", (512, 512), "Q4_K"),
    ],
)
def test_types_follow_llama_cpps_quantiser(quantisation: str, name: str, shape: tuple[int, ...], wanted: str) -> None:
    assert kind(quantisation, name, shape) == wanted
    assert hasattr(gguf.GGMLQuantizationType, wanted)


def test_file_types_are_llama_cpps() -> None:
    theirs = {"f16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0", "q4_k_m": "MOSTLY_Q4_K_M"}
    assert {name: gguf.LlamaFileType[theirs[name]].value for name in theirs} == FILE_TYPES


def test_a_tied_embedding_is_the_output() -> None:
    assert kind("q4_k_m", "token_embd.weight", (512, 512), tied=True) == "Q6_K"


@pytest.mark.parametrize("layers", [8, 30, 32, 80])
def test_half_of_the_v_and_down_matrices_get_six_bits(layers: int) -> None:
    """`use_more_bits` of llama.cpp: the first and the last eighth, and every third layer between."""
    for part in ("attn_v", "ffn_down"):
        more = [i for i in range(layers) if kind("q4_k_m", f"blk.{i}.{part}.weight", (512, 512), layers) == "Q6_K"]
        wanted = [i for i in range(layers) if i < layers // 8 or i >= 7 * layers // 8 or (i - layers // 8) % 3 == 2]
        assert more == wanted
    if layers == 32:  # as llama-quantize prints for a model of 32 layers
        assert wanted == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
