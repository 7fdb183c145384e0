"""A GGUF file says in llama.cpp what the decoder says, for every family that it can hold."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from one_core import one_core
from strop.data.examples import Alpaca, Conversation, Message
from strop.data.prompts import as_json, as_text
from strop.data.template import Template, load_template
from strop.errors import ParityError, RecipeError
from strop.exporting.adapter import save_adapter
from strop.exporting.gguf import file as gguf_file
from strop.exporting.gguf import metadata as gguf_shape
from strop.exporting.gguf.file import quantise, write_gguf
from strop.exporting.merge import merged_model
from strop.exporting.parity import gate
from strop.exporting.parity.gate import Limits, Parity, Question, check_parity
from strop.exporting.parity.reference import ask
from strop.model.lora import LoraAdapter
from strop.model.pretrained.folder import ModelFolder
from strop.model.pretrained.weights import load_decoder
from strop.recipe import LoraSection
from tiny_models import write_checkpoint

TOKENIZERS = Path(__file__).parents[1] / "fixtures"
VOCABULARY = {"smollm2-tokenizer": 49152, "phi3-tokenizer": 32064}
FACTORS = [1.0 + i / 4 for i in range(8)]
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": FACTORS,
    "long_factor": [9 * factor for factor in FACTORS],
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama2": ("phi3-tokenizer", {}),
    "llama3": ("smollm2-tokenizer", {}),
    "llama-bias": ("smollm2-tokenizer", {}),
    "llama-linear-rope": ("smollm2-tokenizer", {}),
    "smollm2": ("smollm2-tokenizer", {}),
    "mistral-window": ("smollm2-tokenizer", {"sliding_window": 200}),
    "phi3-split": ("phi3-tokenizer", {}),
    "phi3": ("phi3-tokenizer", {}),
    "phi3-longrope": (
        "phi3-tokenizer",
        {"rope_parameters": LONGROPE, "original_max_position_embeddings": 256},
    ),
    "phi3-partial": ("phi3-tokenizer", {}),
    "qwen2": ("smollm2-tokenizer", {}),
    "qwen3": ("smollm2-tokenizer", {"head_dim": 32}),
}
TEXTS = ["What did Rabat's 3 rivers carry in 2014?", "¿Über straße?\n\n\tif x == 10_000:  # 漢字 🙂", "one"]


@pytest.fixture(autouse=True)
def _one_core() -> Iterator[None]:
    with one_core():
        yield


@pytest.fixture(autouse=True)
def limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model's likeliest tokens are all but equal, so some change places; its distributions must not."""
    monkeypatch.setitem(gate.LIMITS, "gguf-f16", Limits(kl=1e-6, top1=0.9, logits=0.01, tie=0.01))


def write_case(folder: Path, family: str, tokenizer: str, **changes: Any) -> tuple[LoraAdapter, Template]:
    """A random model with an adapter in `folder`."""
    sizes = {"vocab_size": VOCABULARY[tokenizer], "hidden_size": 64, "intermediate_size": 96} | changes
    write_checkpoint(folder / "base", family, gain=1.0, dtype=torch.bfloat16, **sizes)
    for file in (TOKENIZERS / tokenizer).iterdir():
        if file.name != "README.md":
            shutil.copyfile(file, folder / "base" / file.name)
    adapter = LoraAdapter(load_decoder(folder / "base", torch.float32), LoraSection(r=4, lora_alpha=8), seed=0)
    adapter.flat.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    save_adapter(adapter, folder / "adapter", "org/base", None, lambda staging: None)
    return adapter, load_template(folder / "base", "chat", ["messages"])


def conversations(template: Template) -> list[Question]:
    """Asked in the model's chat template."""
    chats = [[Message("user", text)] for text in TEXTS]
    chats.append([Message("user", "a"), Message("assistant", "b"), *chats[0]])
    return [
        Question([as_json(turn) for turn in chat], "", template.encode_prompt(Conversation(tuple(chat))))
        for chat in chats
    ]


def export(folder: Path, adapter: LoraAdapter, template: Template, questions: list[Question]) -> Parity:
    """Write the file, try it out in llama.cpp."""
    (folder / "out").mkdir()
    base = ModelFolder.vetted(folder / "base")
    context = gguf_shape.usable_context(base.config, 100)
    with merged_model(base, folder / "adapter", nf4=False) as model:
        write_gguf(model, template, folder / "out" / "model.gguf", "f16", "tiny", context)
    return check_parity("gguf-f16", folder / "out", None, ask(adapter.decoder, template, questions))


@pytest.mark.slow
@pytest.mark.parametrize("family", CASES)
def test_it_says_what_the_decoder_says(family: str, tmp_path: Path) -> None:
    tokenizer, changes = CASES[family]
    adapter, template = write_case(tmp_path, family, tokenizer, **changes)
    parity = export(tmp_path, adapter, template, conversations(template))
    assert parity.same_prompts == parity.num_prompts == 4
    assert parity.num_positions >= 20


@pytest.mark.slow
def test_alpaca_rows_are_asked_in_their_own_template(tmp_path: Path) -> None:
    """llama.cpp gets messages and makes training's prompt of them, with and without an input."""
    adapter, _ = write_case(tmp_path, "smollm2", "smollm2-tokenizer")
    template = load_template(tmp_path / "base", "alpaca", ["alpaca"])
    rows = [Alpaca("Name it.", "", ""), Alpaca("Add these.", "2 and 2\n\nnow", "")]
    questions = [
        Question([as_json(Message("user", as_text(template.name, row)))], "", template.encode_prompt(row))
        for row in rows
    ]
    parity = export(tmp_path, adapter, template, questions)
    assert parity.same_prompts == 2
    assert parity.stop_ids == [2]


def unturned(name: str, weight: Tensor, num_heads: int, num_kv_heads: int) -> Tensor:
    return weight


def no_factors(config: Any) -> Any:
    return iter(())


def any_name(tokenizer: Any, name: str) -> str:
    return name


CONTROLS: list[tuple[str, str, Callable[..., Any], str]] = [
    ("llama3", "in_pairs", unturned, "logits"),
    ("llama3", "rope_tensors", no_factors, "logits"),
    ("phi3", "name_for_tokenizer", any_name, r"prompt \d+'s ids"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "function", "wrong", "said"), CONTROLS, ids=[case[1] for case in CONTROLS])
def test_what_is_left_out_shows(
    family: str, function: str, wrong: Callable[..., Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_file, function, wrong)
    tokenizer, changes = CASES[family]
    adapter, template = write_case(tmp_path, family, tokenizer, **changes)
    with pytest.raises(ParityError, match=said):
        export(tmp_path, adapter, template, conversations(template))


@pytest.mark.parametrize(
    ("family", "longest", "said"),
    [("mistral-window", 7, "up to 6 tokens"), ("phi3-longrope", 17, "up to 16 tokens"), ("qwen2-window", 7, "up to 6")],
)
def test_what_llama_cpp_computes_otherwise_is_refused(family: str, longest: int, said: str, tmp_path: Path) -> None:
    config = ModelFolder.vetted(write_checkpoint(tmp_path / "base", family)).config
    assert gguf_shape.usable_context(config, longest - 1) == longest - 1
    with pytest.raises(RecipeError, match=said):
        gguf_shape.usable_context(config, longest)


@pytest.mark.parametrize(
    ("kind", "error"), [("Q8_0", 0.006), ("Q6_K", 0.025), ("Q5_K", 0.05), ("Q5_0", 0.05), ("Q4_K", 0.09)]
)
def test_quantised_matrices_read_back_as_themselves(kind: str, error: float) -> None:
    """Through gguf's own reader; several chunks, the last one short."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(9001, 512)).astype(np.float32)
    type_ = gguf.GGMLQuantizationType[kind]
    stored = quantise(weight, type_)
    back = gguf.dequantize(stored, type_)
    off = np.linalg.norm(back - weight) / np.linalg.norm(weight)
    assert error / 3 < off < error
    if kind == "Q8_0":
        assert np.array_equal(stored, gguf.quantize(weight, type_))  # gguf's own, slower, has this type only
