"""Time from shapes, held against the published figures."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from strop.forecast.published import FIGURES, GPU, PHI3_MINI, Figure
from strop.forecast.speed import Speed, limit_of
from strop.forecast.workload import Load, Shape
from strop.gpus import GPUS
from strop.model.config import read_config
from strop.recipe import LoraSection

PHI3 = Shape(read_config(PHI3_MINI), LoraSection())
COUNTS = cast(Shape, SimpleNamespace(layer_weights=10**9, head_weights=10**8))


def samples_per_second(figure: Figure, shape: Shape = PHI3, gpu: str = GPU, **changes: bool) -> float:
    settings = {"fused": True, "checkpointing": figure.checkpointing, **changes}
    speed = Speed.of(shape, GPUS[gpu], figure.precision, **settings)
    count, layers = figure.microbatches, shape.config.num_layers
    load = Load(
        round(figure.tokens / count), round(figure.learned / count), layers * figure.pairs / count, 0, figure.samples
    )
    return figure.samples / (count * speed.seconds(load))


@pytest.mark.parametrize("figure", FIGURES.values(), ids=FIGURES.keys())
def test_the_published_speeds(figure: Figure) -> None:
    # Five numbers solved for six lines; NF4's, with weights made dense and activations recomputed, is a prediction.
    error = 0.05 if figure.precision == "nf4" else 0.02
    assert samples_per_second(figure) == pytest.approx(figure.samples_per_second, rel=error)


def test_smollm2s_published_speed_within_its_range() -> None:
    # 300 steps of 8 samples in 3.3 s (bfloat16) and 3.7 s (float8); the model was fitted to another shape.
    config = {"model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
              "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
              "tie_word_embeddings": True}  # fmt: skip
    shape = Shape(read_config(config), LoraSection())
    for precision, seconds in (("bfloat16", 3.3), ("float8", 3.7)):
        figure = Figure(precision, 8, 0, 0, 1, 1000, 200, 9e4, 0)
        assert 0.7 < 8 / samples_per_second(figure, shape) * 300 / seconds < 1.25


def test_what_makes_a_step_longer() -> None:
    figure = FIGURES["census 128, float8"]
    usual = samples_per_second(figure)
    assert 0.6 < samples_per_second(figure, checkpointing=True) / usual < 0.8  # "about a third slower"
    assert samples_per_second(figure, gpu="H100") < usual < samples_per_second(figure, gpu="B200")
    bfloat16 = FIGURES["census 128, bfloat16"]
    assert samples_per_second(bfloat16, fused=False) < 0.7 * samples_per_second(bfloat16)
    assert samples_per_second(bfloat16, gpu="L4", fused=False) < samples_per_second(bfloat16, gpu="L40S", fused=False)


LLAMA3_8B = Shape(
    read_config(
        {"model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
         "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "rope_theta": 500000.0}
    ),
    LoraSection(),
)  # fmt: skip


@pytest.mark.parametrize("tokens", [100, 200, 500])
def test_twice_the_bandwidth_is_faster_for_a_large_model(tokens: int) -> None:
    """An A10 has twice an L4's, and about its products; 8B weights leave room for a few hundred tokens."""
    load = Load(tokens, tokens // 4, 32 * tokens * 50, tokens, 1)
    l4, a10 = (Speed.of(LLAMA3_8B, GPUS[gpu], "bfloat16", False, False).seconds(load) for gpu in ("L4", "A10"))
    assert a10 < 0.93 * l4


def test_no_microbatch_is_faster_than_its_weights_are_read() -> None:
    for gpu in ("L4", "A10", "L40S", "A100-80GB", "H200"):
        speed = Speed.of(LLAMA3_8B, GPUS[gpu], "bfloat16", False, False)
        read = 2 * 2 * (LLAMA3_8B.layer_weights + LLAMA3_8B.head_weights) / GPUS[gpu].bandwidth
        assert speed.seconds(Load(1, 1, 32, 1, 1)) >= read


def test_a_small_plain_microbatch_takes_as_long_as_its_launches() -> None:
    speed = Speed.of(PHI3, GPUS["H200"], "bfloat16", fused=False, checkpointing=False)
    assert speed.seconds(Load(10, 5, 500, 10, 1)) == speed.launch


@pytest.mark.parametrize(
    ("device", "precision", "in_layers", "in_head"),
    [
        ("NVIDIA H200", "float8", 1978.9, 989.4),
        ("NVIDIA H200", "nf4", 989.4, 989.4),
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 312, 312),
        ("Tesla T4", "nf4", 8.1, 8.1),
    ],
)
def test_the_least_time_is_four_operations_a_weight_at_the_published_rate(
    device: str, precision: str, in_layers: float, in_head: float
) -> None:
    found: Any = limit_of(COUNTS, device, precision)
    assert found.seconds_per_token == pytest.approx(4e9 / (1e12 * in_layers))
    assert found.seconds_per_learned_token == pytest.approx(4e8 / (1e12 * in_head))


@pytest.mark.parametrize(("device", "precision"), [("cpu", "float32"), ("NVIDIA A100-SXM4-80GB", "float8")])
def test_what_is_not_published_has_none(device: str, precision: str) -> None:
    assert limit_of(COUNTS, device, precision) is None
