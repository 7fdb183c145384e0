"""Random config.json files of every family, and what strop and transformers make of each."""

import contextlib
import io
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from strop.errors import ModelError
from strop.microbatch.tree import Tree
from strop.model.config import read_config
from strop.model.pretrained.weights import load_decoder
from tiny_models import load_oracle

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "phi3")
LENGTHS = (40, 16, 17, 5)  # longer than every window and original length below, on both sides of a border, and short
BOUND = 1e-10

Settings = dict[str, Any]

WILD: tuple[Any, ...] = (
    *(0, -1, 10**9, 10**400, 0.5, -2.5, 1e39, float("nan"), float("inf"), "x", "", "8", [], [8], {}, {"a": 1}),
)
"""Values that no size can have."""

SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim"),
)


@dataclass(frozen=True)
class Outcome:
    """What came of one config: refused, refused there, equal or wrong; and a message or how far off."""

    kind: str
    detail: str = ""


def draw(seed: int) -> Settings:
    """A tiny config.json: a sound one with up to three keys changed to what real and broken files hold."""
    rng = random.Random(seed)
    family = FAMILIES[seed % len(FAMILIES)]
    config = _sound(rng, family)
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        rng.choice(_CHANGES)(rng, config)
    return config


def _sound(rng: random.Random, family: str) -> Settings:
    heads = rng.choice((1, 2, 3, 4, 6, 8))
    head_dim = rng.choice((4, 6, 8, 16))
    config: Settings = {
        "model_type": family,
        "vocab_size": rng.randrange(33, 98),
        "hidden_size": heads * head_dim,
        "intermediate_size": rng.randrange(3, 60),
        "num_hidden_layers": rng.choice((1, 2, 3)),
        "num_attention_heads": heads,
        "num_key_value_heads": rng.choice([n for n in (1, 2, 3, 4, 6, 8) if heads % n == 0]),
        "head_dim": head_dim,
        "max_position_embeddings": rng.choice((16, 64, 512)),
        "rms_norm_eps": rng.choice((1e-5, 1e-6, 1e-3)),
        "pad_token_id": None,
        "tie_word_embeddings": rng.random() < 0.3,
    }
    _rope(rng, config)
    return config


def _rope(rng: random.Random, config: Settings) -> None:
    """One way or the other to say one kind or the other."""
    for key in ("rope_parameters", "rope_scaling", "rope_theta", "original_max_position_embeddings"):
        config.pop(key, None)
    theta = rng.choice((100.0, 10000.0, 500000))
    pairs = max(1, config["head_dim"] // 2 if isinstance(config.get("head_dim"), int) else 4)
    kinds: list[Settings] = [
        {"rope_type": "default"},
        {"rope_type": "linear", "factor": rng.choice((2, 4.0))},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": rng.choice((4.0, 2)),
            "original_max_position_embeddings": rng.choice((16, 64)),
        },
        {
            "rope_type": "longrope",
            "short_factor": [1.0 + 0.1 * i for i in range(pairs)],
            "long_factor": [1.0 + i for i in range(pairs)],
        },
    ]
    if config["model_type"] == "phi3":
        kinds = [kinds[0], kinds[3]]
    parameters = rng.choice(kinds)
    if parameters["rope_type"] == "longrope":
        if rng.random() < 0.8:
            config["original_max_position_embeddings"] = rng.choice((16, 8))
        if rng.random() < 0.4:
            parameters["factor"] = rng.choice((2.0, 4, 0.5))
        if rng.random() < 0.3:
            parameters["attention_factor"] = rng.choice((1.25, 2))
    if rng.random() < 0.5:
        config["rope_parameters"] = parameters | {"rope_theta": theta}
        return
    config["rope_theta"] = theta
    name = rng.choice(("rope_scaling", "rope_parameters"))
    if rng.random() < 0.4:
        parameters["type"] = parameters.pop("rope_type")
    if parameters.get("rope_type", parameters.get("type")) != "default":
        config[name] = parameters


Change = Callable[[random.Random, Settings], None]


def _sets(key: str, *values: Any) -> Change:
    def change(rng: random.Random, config: Settings) -> None:
        config[key] = rng.choice(values)

    return change


def _drops(*keys: str) -> Change:
    def change(rng: random.Random, config: Settings) -> None:
        config.pop(rng.choice(keys), None)

    return change


def _in_rope(rng: random.Random, config: Settings) -> None:
    name = rng.choice(("rope_parameters", "rope_scaling"))
    held = config[name] = dict(config.get(name) or {})
    key, value = rng.choice(
        [
            ("rope_type", "yarn"),
            ("rope_type", "dynamic"),
            ("rope_type", None),
            ("type", "su"),
            ("factor", 0),
            ("factor", 3.0),
            ("factor", None),
            ("partial_rotary_factor", 0.5),
            ("partial_rotary_factor", 1.0),
            ("rope_theta", 77.0),
            ("rope_theta", None),
            ("original_max_position_embeddings", 16),
            ("original_max_position_embeddings", None),
            ("short_factor", [1.0]),
            ("long_factor", None),
            ("attention_factor", 3),
            ("attention_factor", "1"),
            ("high_freq_factor", 1.0),
            ("full_attention", {"rope_type": "default"}),
        ]
    )
    held[key] = value


def _layer_types(rng: random.Random, config: Settings) -> None:
    layers = config.get("num_hidden_layers")
    layers = layers if isinstance(layers, int) and 0 < layers < 9 else 2
    config["layer_types"] = [rng.choice(("full_attention", "sliding_attention")) for _ in range(layers)]
    if rng.random() < 0.5:
        config["layer_types"] = [config["layer_types"][0]] * layers
    if rng.random() < 0.1:
        config["layer_types"] += ["chunked_attention"]


def _windows(rng: random.Random, config: Settings) -> None:
    config["sliding_window"] = rng.choice((1, 3, 8, 4096, None))
    config["use_sliding_window"] = rng.random() < 0.7
    config["max_window_layers"] = rng.choice((0, 1, 2, 28))


def _both_ropes(rng: random.Random, config: Settings) -> None:
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": 50.0}
    config["rope_scaling"] = rng.choice((None, {}, {"rope_type": "linear", "factor": 2.0}, config["rope_parameters"]))


def _many_heads(rng: random.Random, config: Settings) -> None:
    config.update(num_attention_heads=32, head_dim=2, hidden_size=64, num_key_value_heads=32)
    _rope(rng, config)
    config.pop("num_key_value_heads")


def _stretched_by_default(rng: random.Random, config: Settings) -> None:
    """LongRoPE whose stretch follows from the family's default of max_position_embeddings."""
    pairs = config["head_dim"] // 2 if isinstance(config.get("head_dim"), int) else 4
    factors = {"short_factor": [1.0] * pairs, "long_factor": [1.5 + i for i in range(pairs)]}
    for key in ("rope_parameters", "max_position_embeddings"):
        config.pop(key, None)
    config.update(rope_scaling={"type": "longrope"} | factors, original_max_position_embeddings=rng.choice((8, 16)))


_CHANGES: tuple[Change, ...] = (
    _drops("num_key_value_heads"),
    _drops("head_dim"),
    _drops("rms_norm_eps", "max_position_embeddings", "tie_word_embeddings"),
    _drops("rope_theta", "original_max_position_embeddings"),
    _sets("num_key_value_heads", None, 1, 2, 3),
    _sets("head_dim", None, 4, 6, 10, 16, 5, 7),
    _sets("hidden_size", 30, 24, 50),
    _sets("vocab_size", 40),
    _sets("attention_bias", True, False),
    _sets("mlp_bias", True, False),
    _sets("hidden_act", "silu", "swish", "gelu", "relu", None),
    _sets("attention_dropout", 0.0, 0.1, 0, None),
    _sets("resid_pdrop", 0.0, 0.1),
    _sets("rms_norm_eps", 0.1, 1, 0, None),
    _sets("partial_rotary_factor", 0.5, 1.0, 0.75, 0.25, None, 1, 2),
    _sets("rope_theta", 17.0, 10000, None, "x"),
    _sets("original_max_position_embeddings", 16, 8, 64, None),
    _sets("max_position_embeddings", 16, 8, 64),
    _sets("tie_word_embeddings", True, False, None),
    _sets("is_causal", False, True, None),
    _sets("attention_chunk_size", 4, None),
    _sets("per_layer_config", {"0": {"hidden_size": 8}}, None),
    _sets("text_config", {"hidden_size": 8}),
    _sets("default_rope_type", "axial"),
    _sets("attribute_map", {"hidden_size": "width"}),
    _sets("kv_sharing_modes", ["reuse"]),
    _sets("pretraining_tp", 2),
    _sets("logit_scale", 2.0),
    _sets("final_logit_softcapping", 5.0),
    _sets("temperature", 0.5),
    _sets("pad_token_id", 0, -1, 10**6),
    _sets("use_cache", False),
    _sets("max_window_layers", 0, 1, 3),
    _windows,
    _windows,
    _layer_types,
    _both_ropes,
    _in_rope,
    _in_rope,
    _many_heads,
    _stretched_by_default,
    _rope,
)


def judge(config: Settings, folder: Path) -> Outcome:
    """Refused by strop, else refused by transformers, else the logits of both compared in float64.

    Raises:
        Exception: Whatever strop raises that is no ModelError: a fault.
    """
    try:
        read_config(json.loads(json.dumps(config)))
    except ModelError as error:
        return Outcome("refused", str(error))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    try:
        want = _transformers_logits(folder)
    except Exception as error:  # it has no one type for what it refuses
        return Outcome("refused there", f"{type(error).__name__}: {error}")
    with torch.no_grad():
        decoder = load_decoder(folder, torch.float64)
        got = decoder.logits(decoder.packed_hidden_states(tokens(config), Tree.of(LENGTHS)))
    error = (got - want).abs().max().item() / max(1.0, want.abs().max().item())
    return Outcome("equal" if error < BOUND else "wrong", f"off by {error:.3g}")


def tokens(config: Settings) -> Tensor:
    """The ids of LENGTHS samples, in the vocabulary."""
    return torch.randint(0, config["vocab_size"], (sum(LENGTHS),), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def _transformers_logits(folder: Path) -> Tensor:
    """Writes random weights that fit transformers' own reading of the config, and returns its logits."""
    config = transformers.AutoConfig.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    draw = torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=draw)
        tensors[name] = 1 + 0.2 * noise if "norm" in name else 2 * noise / parameter.shape[-1] ** 0.5
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with contextlib.redirect_stderr(io.StringIO()):
        oracle = load_oracle(folder, torch.float64)
    ids = tokens(json.loads((folder / "config.json").read_text()))
    return torch.cat([oracle(sample[None]).logits[0] for sample in ids.split(LENGTHS)])
