"""Every op against its definition in `ops.reference`: value and every gradient, in float64.

The control of each is the same comparison with one thing wrong; it must miss by far more than the bound.
"""

import pytest
import torch

from strop.ops import reference
from strop.ops.attention import Packing, attention
from strop.ops.frozen_linear import FrozenWeight, frozen_linear
from strop.ops.linear_cross_entropy import linear_cross_entropy
from strop.ops.lora_linear import lora_linear
from strop.ops.rms_norm import rms_norm
from strop.ops.rotary import rotary
from strop.ops.swiglu import swiglu

BOUND = 1e-12
ROWS = ((0, 24), (24, 32), (40, 48))  # three modules; output rows 32..39 belong to none


def randn(*shape: int, grad: bool = True) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=grad)


def gradients(output: torch.Tensor, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """The output and its gradients against a fixed random cotangent."""
    generator = torch.Generator().manual_seed(7)
    cotangent = torch.randn(output.shape, dtype=output.dtype, generator=generator)
    return [output.detach(), *torch.autograd.grad(output, inputs, cotangent)]


def worst(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    """Largest relative Frobenius error over the pairs."""
    return max(((x - y).norm() / y.norm()).item() for x, y in zip(a, b, strict=True))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("tokens", [1, 37])
def test_rms_norm(tokens: int) -> None:
    x, gain = randn(tokens, 48), randn(48, grad=False)
    want = gradients(reference.rms_norm(x, gain, 1e-5), [x])
    assert worst(gradients(rms_norm(x, gain, 1e-5), [x]), want) < BOUND
    assert worst(gradients(rms_norm(x, gain, 1e-2), [x]), want) > 1e-4


@pytest.mark.parametrize("half", [8, 12])  # all of 24 channels turned; two thirds of them
def test_rotary(half: int) -> None:
    x, angle = randn(19, 3, 24), randn(19, half, grad=False)
    want = gradients(reference.rotary(x, angle.cos(), angle.sin()), [x])
    assert worst(gradients(rotary(x, angle.cos(), angle.sin()), [x]), want) < BOUND
    assert worst(gradients(rotary(x, angle.cos(), -angle.sin()), [x]), want) > 1e-2


def test_swiglu() -> None:
    x = randn(23, 64)
    want = gradients(reference.swiglu(x), [x])
    assert worst(gradients(swiglu(x), [x]), want) < BOUND
    assert worst(gradients(swiglu(x.roll(32, 1)), [x]), want) > 1e-1


@pytest.mark.parametrize("lengths", [(1,), (5, 1, 17, 9)])
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("heads", [(4, 4), (6, 2)])
def test_attention(lengths: tuple[int, ...], window: int | None, heads: tuple[int, int]) -> None:
    tokens = sum(lengths)
    q, k, v = randn(tokens, heads[0], 16), randn(tokens, heads[1], 16), randn(tokens, heads[1], 16)
    want = gradients(reference.attention(q, k, v, lengths, window), [q, k, v])
    got = gradients(attention(q, k, v, Packing.of(lengths), window), [q, k, v])
    # q and k of a one-token sample have gradient zero, so compare absolutely against the value's scale
    assert max((a - b).abs().max().item() for a, b in zip(got, want, strict=True)) < BOUND
    if len(lengths) > 1:
        leaky = gradients(attention(q, k, v, Packing.of((tokens,)), window), [q, k, v])
        assert worst(leaky, want) > 1e-2


@pytest.mark.parametrize("bias", [False, True])
def test_frozen_linear(bias: bool) -> None:
    x, weight = randn(11, 40), randn(48, 40, grad=False)
    bias_O = randn(48, grad=False) if bias else None
    want = gradients(torch.nn.functional.linear(x, weight, bias_O), [x])
    assert worst(gradients(frozen_linear(x, FrozenWeight(weight), bias_O), [x]), want) < BOUND


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1], ((0, 48),)])
@pytest.mark.parametrize("bias", [False, True])
def test_lora_linear(rows: tuple[tuple[int, int], ...], bias: bool) -> None:
    rank, covered = 4, sum(last - first for first, last in rows)
    x, weight = randn(11, 40), randn(48, 40, grad=False)
    a, b = randn(rank * len(rows), 40), randn(covered, rank)
    bias_O = randn(48, grad=False) if bias else None
    want = gradients(reference.lora_linear(x, weight, bias_O, a, b, rows, 0.5), [x, a, b])
    got = gradients(lora_linear(x, FrozenWeight(weight), bias_O, a, b, rows, 0.5), [x, a, b])
    assert worst(got, want) < BOUND
    assert worst(gradients(lora_linear(x, FrozenWeight(weight), bias_O, a, b, rows, 0.6), [x, a, b]), want) > 1e-3


def test_lora_dropout_keeps_the_mean_and_the_base() -> None:
    x, weight, a, b = randn(8, 40), randn(48, 40, grad=False), randn(12, 40), randn(40, 4)
    base = torch.nn.functional.linear(x, weight)
    full = reference.lora_linear(x, weight, None, a, b, ROWS, 1.0) - base
    draws = [lora_linear(x, FrozenWeight(weight), None, a, b, ROWS, 1.0, dropout=0.3) - base for _ in range(4000)]
    mean = torch.stack([d.detach() for d in draws]).mean(0)
    assert ((mean - full).norm() / full.norm()).item() < 0.03
    assert not torch.allclose(draws[0], draws[1])


def test_linear_cross_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, head = randn(29, 40), randn(101, 40, grad=False)
    labels = torch.randint(0, 101, (29,))
    want = gradients(reference.linear_cross_entropy(hidden, head, labels), [hidden])
    assert worst(gradients(linear_cross_entropy(hidden, FrozenWeight(head), labels), [hidden]), want) < BOUND
    monkeypatch.setattr("strop.ops.linear_cross_entropy._LOGITS_BYTES", 101 * 4 * 8)  # four chunks of eight rows
    assert worst(gradients(linear_cross_entropy(hidden, FrozenWeight(head), labels), [hidden]), want) < BOUND
    shifted = linear_cross_entropy(hidden, FrozenWeight(head), labels.roll(1))
    assert worst(gradients(shifted, [hidden]), want) > 1e-2


def test_ignored_labels_count_nothing_in_the_reference() -> None:
    hidden, head = randn(9, 40), randn(101, 40, grad=False)
    labels = torch.randint(0, 101, (9,))
    masked = labels.clone()
    masked[4:] = reference.IGNORE_INDEX
    part = reference.linear_cross_entropy(hidden[:4], head, labels[:4])
    assert torch.equal(reference.linear_cross_entropy(hidden, head, masked), part)
