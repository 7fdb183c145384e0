"""A decoder on NF4 weights is the plain decoder on the dequantised ones; a 4-bit checkpoint is read bit for bit."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import bitsandbytes_oracle as oracle
from strop.errors import ModelError, RecipeError
from strop.microbatch.pack import PackedInputs
from strop.model.lora import LoraAdapter, projections
from strop.model.pretrained.weights import load_decoder
from strop.ops.linear import Float8Weight, FrozenWeight
from strop.ops.nf4 import Nf4Weight, dequantise, quantise
from strop.recipe import LoraSection
from tiny_models import write_checkpoint
from tree_batches import batch_of

SIZES = {"hidden_size": 64, "head_dim": 16, "intermediate_size": 128}


def is_matrix(name: str) -> bool:
    return name.endswith("_proj.weight")


def change(folder: Path, out: Path, how) -> Path:
    """A copy of a checkpoint whose matrices went through `how`, which returns the tensors to store for each."""
    out.mkdir()
    (out / "config.json").write_text((folder / "config.json").read_text())
    tensors: dict[str, Tensor] = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        tensors |= how(name, tensor) if is_matrix(name) else {name: tensor}
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    return out


def rounded(folder: Path, out: Path) -> Path:
    """Ordinary weights, each what NF4 makes of it."""
    return change(folder, out, lambda name, x: {name: dequantise(quantise(x), torch.float32)})


def stored(name: str, weight: Tensor, double: bool = True) -> dict[str, Tensor]:
    """A matrix as transformers stores it for bitsandbytes."""
    packed, state = oracle.functional().quantize_4bit(weight, quant_type="nf4", compress_statistics=double)
    return {name: packed} | {f"{name}.{key}": value for key, value in state.as_dict(packed=True).items()}


def announce(folder: Path, **settings: object) -> Path:
    config = json.loads((folder / "config.json").read_text())
    kind = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    config["quantization_config"] = kind | {"bnb_4bit_quant_storage": "uint8"} | settings
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def adapter_of(folder: Path, dtype: torch.dtype, **held: bool) -> LoraAdapter:
    adapter = LoraAdapter(load_decoder(folder, dtype, **held), LoraSection(r=4), seed=0)
    adapter.flat.normal_(std=0.05, generator=torch.Generator().manual_seed(1))
    return adapter


def loss_and_gradient(adapter: LoraAdapter, every: int = 1) -> tuple[Tensor, Tensor]:
    adapter.flat_grad.zero_()
    loss = adapter.decoder.nll_sum(PackedInputs.of(batch_of(share=True, every=every), torch.device("cpu")))
    loss.backward()
    return loss.detach(), adapter.flat_grad.clone()


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("family", ["llama3", "phi3", "llama-bias", "qwen3"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_equals_the_dequantised_decoder(family: str, dtype: torch.dtype, bound: float, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", family, **SIZES)
    held = adapter_of(folder, dtype, nf4=True)
    assert held.decoder.precision == "nf4"
    assert {type(p.frozen) for p in projections(held.decoder).values()} == {Nf4Weight}
    assert type(held.decoder.head) is FrozenWeight
    got, want = (
        loss_and_gradient(adapter) for adapter in (held, adapter_of(rounded(folder, tmp_path / "rounded"), dtype))
    )
    assert distance(got[0], want[0]) < bound
    assert distance(got[1], want[1]) < bound
    unrounded = loss_and_gradient(adapter_of(folder, dtype))
    assert distance(unrounded[1], want[1]) > 1e-2
    assert held.decoder.num_base_parameters == adapter_of(folder, dtype).decoder.num_base_parameters


def test_checkpointing_changes_nothing(tmp_path: Path) -> None:
    adapter = adapter_of(write_checkpoint(tmp_path, "llama3", **SIZES), torch.float64, nf4=True)
    want = loss_and_gradient(adapter)
    adapter.decoder.gradient_checkpointing = True
    adapter.decoder.train()
    assert all(torch.equal(a, b) for a, b in zip(loss_and_gradient(adapter), want, strict=True))


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="tests/gpu has the compiled kernels")
@pytest.mark.parametrize(
    ("family", "recompute"), [("phi3", False), ("llama3", True)], ids=["fused, kept", "split, recomputed"]
)
def test_the_fused_layers_equal_the_plain_decoder(
    family: str, recompute: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the interpreter, the matrices made dense by the Triton kernel."""
    kernels = pytest.importorskip("strop.ops.triton.kernels", reason="Triton has builds for Linux only")
    from test_fused_decoder import TOLERANCE, fused

    adapter = adapter_of(write_checkpoint(tmp_path, family, num_hidden_layers=2, **SIZES), torch.float32, nf4=True)
    want, want_gradient = loss_and_gradient(adapter, every=3)
    monkeypatch.setattr("strop.ops.nf4.kernels_for", lambda x: kernels)
    adapter.decoder.gradient_checkpointing = recompute
    nll, gradient = fused(adapter, batch_of(share=True, every=3), padding="none")
    assert nll == pytest.approx(want.item(), rel=TOLERANCE)
    assert distance(gradient, want_gradient) < TOLERANCE
    down = projections(adapter.decoder)[0, "down"].frozen
    next(iter(down.buffers()))[:4] ^= 0x80  # eight of 8,192 numbers of one matrix
    assert distance(fused(adapter, batch_of(share=True, every=3), padding="none")[1], want_gradient) > 10 * TOLERANCE


def test_nf4_in_float8_is_the_rounded_matrix_in_float8(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", "llama3", **SIZES)
    held = load_decoder(folder, torch.bfloat16, float8=True, nf4=True)
    by_hand = change(folder, tmp_path / "rounded", lambda n, x: {n: dequantise(quantise(x.bfloat16()), torch.bfloat16)})
    want = load_decoder(by_hand, torch.bfloat16, float8=True)
    assert (held.precision, want.precision) == ("nf4 in float8", "float8")
    for ours, theirs in zip(projections(held).values(), projections(want).values(), strict=True):
        assert type(ours.frozen) is Float8Weight
        assert torch.equal(ours.frozen.weight.float(), theirs.frozen.weight.float())
    plain = projections(load_decoder(folder, torch.bfloat16, float8=True))[0, "o"].frozen.weight
    assert distance(projections(held)[0, "o"].frozen.weight.float(), plain.float()) > 0.05


def by_transformers(folder: Path, out: Path, double: bool) -> Path:
    """A checkpoint that transformers had bitsandbytes quantise, and saved."""
    import transformers

    kind = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=kind, dtype=torch.bfloat16, device_map="cpu"
    )
    model.save_pretrained(out)
    return out


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("family", ["llama3", "phi3"])
def test_a_checkpoint_of_bitsandbytes_is_held_as_it_is(family: str, double: bool, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", family, **SIZES)
    out = by_transformers(folder, tmp_path / "4bit", double)
    theirs = load_file(out / "model.safetensors")
    decoder = load_decoder(out, torch.bfloat16, nf4=True)
    for (layer, group), projection in projections(decoder).items():
        prefix = f"model.layers.{layer}.{'mlp' if group in ('gate_up', 'down') else 'self_attn'}"
        matrices = []
        for module in projection.modules_rows:
            name = f"{prefix}.{module}.weight"
            packed = theirs[name]
            state = {key.removeprefix(f"{name}."): x for key, x in theirs.items() if key.startswith(f"{name}.")}
            state = oracle.functional().QuantState.from_dict(state, device=torch.device("cpu"))
            matrices.append(oracle.functional().dequantize_4bit(packed, state))
        assert torch.equal(projection.frozen.dense(), torch.cat(matrices))
    with pytest.raises(RecipeError, match="load_in_4bit"):
        load_decoder(out, torch.float32)


def test_a_module_that_was_left_dense_stays_dense(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", "llama3", **SIZES)
    out = change(folder, tmp_path / "4bit", lambda n, x: {n: x} if "1.self_attn.k_proj" in n else stored(n, x))
    decoder = load_decoder(announce(out), torch.float32, nf4=True)
    k = load_file(folder / "model.safetensors")["model.layers.1.self_attn.k_proj.weight"]
    first, last = projections(decoder)[1, "qkv"].modules_rows["k_proj"]
    dense = projections(decoder)[1, "qkv"].frozen.dense()
    assert torch.equal(dense[first:last], k)
    assert not torch.equal(projections(decoder)[0, "qkv"].frozen.dense()[first:last], k)


SPOILT = {
    "other levels": ("quant_map", lambda x: x * 1.01, "levels"),
    "a scale too few": ("absmax", lambda x: x[:-1].clone(), "scales do not match"),
    "another 8-bit code": ("nested_quant_map", lambda x: x.flip(0), "another code"),
    "nested scales too few": ("nested_absmax", lambda x: torch.cat((x, x)), "scales do not match each other"),
    "other blocks": (
        "quant_state.bitsandbytes__nf4",
        lambda x: torch.tensor(list(bytes(x.tolist()).replace(b'"blocksize": 64', b'"blocksize":128')), dtype=x.dtype),
        "blocks of 128",
    ),
    "another shape": (
        "quant_state.bitsandbytes__nf4",
        lambda x: torch.tensor(list(bytes(x.tolist()).replace(b"[64, 64]", b"[32, 64]")), dtype=x.dtype),
        r"has shape \[32, 64\], but by config.json it is \[64, 64\]",
    ),
    "the mean of its scales is missing": (
        "quant_state.bitsandbytes__nf4",
        lambda x: torch.tensor(list(bytes(x.tolist()).replace(b"nested_offset", b"other__offset")), dtype=x.dtype),
        "the mean of its scales is missing",
    ),
    "no object": (
        "quant_state.bitsandbytes__nf4",
        lambda x: torch.tensor(list(b"[1]"), dtype=x.dtype),
        "not an object",
    ),
    "no JSON": ("quant_state.bitsandbytes__nf4", lambda x: x[:-1].clone(), "model.layers.0.self_attn.q_proj.weight"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_checkpoint_that_contradicts_itself_is_refused(case: str, tmp_path: Path) -> None:
    suffix, spoil, words = SPOILT[case]
    folder = write_checkpoint(tmp_path / "model", "llama3", **SIZES)
    out = announce(change(folder, tmp_path / "4bit", stored))
    tensors = load_file(out / "model.safetensors")
    name = f"model.layers.0.self_attn.q_proj.weight.{suffix}"
    tensors[name] = spoil(tensors[name]).contiguous()
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=words):
        load_decoder(out, torch.float32, nf4=True)


@pytest.mark.parametrize(
    "settings",
    [
        {"quant_method": "gptq"},
        {"bnb_4bit_quant_type": "fp4"},
        {"load_in_4bit": False},
        {"bnb_4bit_quant_storage": "bfloat16"},
    ],
    ids=str,
)
def test_other_quantised_checkpoints_are_refused(settings: dict[str, object], tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", "llama3", **SIZES)
    out = announce(change(folder, tmp_path / "4bit", stored), **settings)
    with pytest.raises(ModelError, match=f"NF4.*{next(iter(settings))}"):
        load_decoder(out, torch.float32, nf4=True)


def test_bytes_without_an_announcement_are_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", "llama3", **SIZES)
    with pytest.raises(ModelError, match="U8"):
        load_decoder(change(folder, tmp_path / "4bit", stored), torch.float32, nf4=True)
