from types import SimpleNamespace
from typing import Any, cast

import pytest

from strop.forecast.limit import limit_of
from strop.forecast.shape import Shape

SHAPE = cast(Shape, SimpleNamespace(layer_weights=10**9, head_weights=10**8))


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
    found: Any = limit_of(SHAPE, device, precision)
    assert found.seconds_per_token == pytest.approx(4e9 / (1e12 * in_layers))
    assert found.seconds_per_learned_token == pytest.approx(4e8 / (1e12 * in_head))


@pytest.mark.parametrize(("device", "precision"), [("cpu", "float32"), ("NVIDIA A100-SXM4-80GB", "float8")])
def test_what_is_not_published_has_none(device: str, precision: str) -> None:
    assert limit_of(SHAPE, device, precision) is None
