"""The decoder against transformers, and LoRA against PEFT on transformers: logits and every gradient."""

from pathlib import Path

import numpy as np
import peft
import pytest
import torch

from strop.data.store import Sample
from strop.microbatch.pack import PackedInputs, pack
from strop.microbatch.tree import Tree
from strop.model.decoder import Decoder
from strop.model.lora import LoraAdapter
from strop.model.pretrained.weights import load_decoder
from strop.recipe import LoraSection
from tiny_models import FAMILIES, load_oracle, write_checkpoint

LENGTHS = (7, 1, 23, 12)  # 23 is past the long-rope and window limits of the tiny models
FP64, FP32 = 1e-10, 2e-5


def tokens(seed: int = 1) -> torch.Tensor:
    return torch.randint(3, 128, (sum(LENGTHS),), generator=torch.Generator().manual_seed(seed))


def packed_logits(decoder: Decoder, ids: torch.Tensor) -> torch.Tensor:
    return decoder.logits(decoder.packed_hidden_states(ids, Tree.of(LENGTHS)))


def separate_logits(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    return torch.cat([model(sample[None]).logits[0] for sample in ids.split(LENGTHS)])


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_transformers(family: str, tmp_path: Path) -> None:
    folder, ids = write_checkpoint(tmp_path, family), tokens()
    for dtype, bound in ((torch.float64, FP64), (torch.float32, FP32)):
        with torch.no_grad():
            want = separate_logits(load_oracle(folder, dtype), ids)
            got = packed_logits(load_decoder(folder, dtype), ids)
        assert (got - want).abs().max().item() < bound * max(1.0, want.abs().max().item())


@pytest.mark.parametrize(
    ("family", "switch", "wrong"),
    [
        ("mistral-window", "sliding_window", None),
        ("llama3", "rope_parameters", {"rope_type": "default", "rope_theta": 10000.0}),
        ("phi3-longrope", "original_max_position_embeddings", 400),
        ("qwen2-window", "max_window_layers", 2),
        ("llama2", "rms_norm_eps", 1e-2),
    ],
)
def test_a_wrong_switch_is_seen(family: str, switch: str, wrong: object, tmp_path: Path) -> None:
    """The control: the same weights under a config with one switch wrong must miss by orders of magnitude."""
    right, ids = write_checkpoint(tmp_path / "right", family), tokens()
    other = write_checkpoint(tmp_path / "wrong", family, **{switch: wrong})
    with torch.no_grad():
        want = separate_logits(load_oracle(right, torch.float64), ids)
        got = packed_logits(load_decoder(other, torch.float64), ids)
    assert (got - want).abs().max().item() > 1e4 * FP64


def test_sharded_checkpoints_read_the_same(tmp_path: Path) -> None:
    whole = write_checkpoint(tmp_path / "whole", "qwen3")
    shards = write_checkpoint(tmp_path / "shards", "qwen3", max_shard_size="100KB")
    assert len(list(shards.glob("*.safetensors"))) > 1
    with torch.no_grad():
        outputs = [packed_logits(load_decoder(folder, torch.float32), tokens()) for folder in (whole, shards)]
    assert torch.equal(*outputs)


def oracle_with_lora(folder: Path, adapter: LoraAdapter) -> torch.nn.Module:
    """PEFT's LoRA on transformers with the same A, and B away from zero in both."""
    section = adapter.section
    config = peft.LoraConfig(
        r=section.r,
        lora_alpha=section.lora_alpha,
        use_rslora=section.use_rslora,
        target_modules=adapter.target_modules,
        task_type="CAUSAL_LM",
    )
    model = peft.get_peft_model(load_oracle(folder, torch.float64), config).double()
    generator = torch.Generator().manual_seed(3)
    for name, tensor in adapter.state_dict().items():
        if "lora_B" in name:
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
        module, leaf = name.removesuffix(".weight").rsplit(".", 1)
        getattr(model.get_submodule(module), leaf)["default"].weight.data.copy_(tensor)
    return model


def nll(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for out, sample in zip(logits.split(LENGTHS), ids.split(LENGTHS), strict=True):
        total = total + torch.nn.functional.cross_entropy(out[:-1], sample[1:], reduction="sum")
    return total


def lora_gradients(
    decoder: Decoder, adapter: LoraAdapter, ids: torch.Tensor, scale: float = 1.0
) -> dict[str, torch.Tensor]:
    adapter.flat_grad.zero_()
    samples = [Sample(part.int().numpy(), np.ones(len(part), bool)) for part in ids.split(LENGTHS)]
    (batch,) = pack(samples, range(len(samples)), sum(LENGTHS), share=False)
    (decoder.nll_sum(PackedInputs.of(batch, decoder.device)) * scale).backward()
    keep = adapter.flat.clone()
    adapter.flat.copy_(adapter.flat_grad)
    gradients = {name: tensor.clone() for name, tensor in adapter.state_dict().items()}
    adapter.flat.copy_(keep)
    return gradients


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    "family",
    ["llama3", "llama-bias", "smollm2", "mistral-window", "phi3-longrope", "phi3-window", "qwen2", "qwen3"],
)
def test_lora_gradients_equal_peft(family: str, checkpointing: bool, tmp_path: Path) -> None:
    folder, ids = write_checkpoint(tmp_path, family), tokens()
    decoder = load_decoder(folder, torch.float64)
    decoder.gradient_checkpointing = checkpointing
    adapter = LoraAdapter(decoder, LoraSection(r=4, lora_alpha=8), seed=0)
    oracle = oracle_with_lora(folder, adapter)
    logits = separate_logits(oracle, ids)
    nll(logits, ids).backward()
    assert (packed_logits(decoder, ids) - logits).abs().max().item() < FP64 * 100

    want = {
        name.replace(".default", ""): parameter.grad for name, parameter in oracle.named_parameters() if "lora_" in name
    }
    got = lora_gradients(decoder, adapter, ids)
    assert got.keys() == want.keys()
    errors = {name: ((got[name] - want[name]).norm() / want[name].norm()).item() for name in want}
    assert max(errors.values()) < FP64, max(errors, key=errors.get)
    wrong = lora_gradients(decoder, adapter, ids, scale=1.001)
    assert all((wrong[name] - want[name]).norm() > 1e6 * FP64 * want[name].norm() for name in want)


@pytest.mark.parametrize(
    "section",
    [
        LoraSection(r=4, target_modules=["q_proj", "v_proj"]),
        LoraSection(r=4, target_modules=["down_proj"], use_rslora=True),
        LoraSection(r=4, target_modules="all-linear", lora_alpha=3),
    ],
)
def test_any_targets_and_rslora(section: LoraSection, tmp_path: Path) -> None:
    folder, ids = write_checkpoint(tmp_path, "llama3"), tokens()
    decoder = load_decoder(folder, torch.float64)
    adapter = LoraAdapter(decoder, section, seed=0)
    logits = separate_logits(oracle_with_lora(folder, adapter), ids)
    with torch.no_grad():
        assert (packed_logits(decoder, ids) - logits).abs().max().item() < FP64 * 100
        adapter.enable(False)
        base = separate_logits(load_oracle(folder, torch.float64), ids)
        assert (packed_logits(decoder, ids) - base).abs().max().item() < FP64 * 100
        assert (base - logits).abs().max().item() > 0.1
