"""Ops that quantise what they make: float8 values and a scale for each row, beside the same op's float32 values."""

import os

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton has builds for Linux only")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("where there is a GPU the kernels are compiled; tests/gpu has them", allow_module_level=True)

from float8_interpreter import round_as_hardware
from strop.ops.linear import FLOAT8_MAX, Operand, quantise_rows
from strop.ops.triton.norm import Stream, advance, norm_operand
from strop.ops.triton.swiglu import swiglu, swiglu_backward
from strop.ops.triton.thin import Blocks, LowRank, measure, operand_of

ROWS, WIDTH, RANK = 70, 150, 16
BLOCKS = Blocks(RANK, (0, 0), RANK)
ROUNDING = 2**-4
"""e4m3 has three bits behind the point, so rounding moves a number by at most 2^-4 of it."""

SMALLEST = 2**-9
"""The distance between its numbers near zero."""


@pytest.fixture(autouse=True)
def _rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    round_as_hardware(monkeypatch)


def rows_of_all_sizes(width: int) -> Tensor:
    """Rows from 1e-9 to 1e6, and two of zeros."""
    x = torch.randn(ROWS, width) * torch.logspace(-9, 6, ROWS)[:, None]
    x[3] = x[-1] = 0
    return x


def excess(operand: Operand, want: Tensor) -> float:
    """By what factor the worst element is further off than rounding alone explains."""
    assert operand.scale_T is not None
    values = operand.values.float()
    assert values.isfinite().all()
    allowed = torch.maximum(ROUNDING * want.abs(), 0.5 * SMALLEST * operand.scale_T[:, None]).clamp(min=1e-37)
    return float(((values * operand.scale_T[:, None] - want).abs() / allowed).max())


def check(operand: Operand, want: Tensor) -> None:
    """`want` is the float32 kernel's or torch's; where its last bit differs, a value may round to the other side."""
    assert operand.values.dtype == torch.float8_e4m3fn
    scale = want.abs().amax(1).clamp(min=1e-30) / FLOAT8_MAX
    assert operand.scale_T is not None
    assert torch.allclose(operand.scale_T, scale, rtol=1e-5, atol=0)
    assert excess(operand, want) < 1 + 1e-3
    assert (operand.values[want.abs().amax(1) > 0].float().abs().amax(1) == FLOAT8_MAX).all()
    assert excess(Operand(operand.values, operand.scale_T * 1.2), want) > 2  # the controls: a scale that is off
    assert excess(Operand(operand.values, operand.scale_T.roll(1)), want) > 2


def test_a_tensor_from_elsewhere() -> None:
    x = rows_of_all_sizes(WIDTH)
    operand, _ = operand_of(measure(x, torch.randn(WIDTH, RANK)), 1.0, True)
    check(operand, x)
    assert torch.equal(operand.scale_T, x.abs().amax(1).clamp(min=1e-30) / FLOAT8_MAX)  # type: ignore[arg-type]
    assert (operand.values[3].float() == 0).all()


def test_torchs_own() -> None:
    x = rows_of_all_sizes(WIDTH)
    check(quantise_rows(x), x)


def test_the_normed_stream() -> None:
    x, gain, thin = rows_of_all_sizes(WIDTH), torch.rand(WIDTH) + 0.5, torch.randn(WIDTH, RANK)
    measured = advance(Stream(x, None, None), gain, thin)
    exact, h, factor = norm_operand(measured, gain, 1e-5, 0.5, False)
    operand, h_too, factor_too = norm_operand(measured, gain, 1e-5, 0.5, True)
    check(operand, exact.values)
    assert torch.equal(h, h_too)
    assert torch.equal(factor, factor_too)


def test_swiglu() -> None:
    both, h = rows_of_all_sizes(2 * WIDTH).clamp(-100, 100), torch.randn(ROWS, RANK)
    h[3] = h[-1] = 0
    a = swiglu(both, LowRank(h, torch.randn(2 * WIDTH, RANK) * 1e-3), BLOCKS, torch.randn(WIDTH, RANK))
    check(operand_of(a, 0.5, True)[0], a.x_TI)


def test_swiglus_gradient() -> None:
    both, grad = torch.randn(ROWS, 2 * WIDTH), rows_of_all_sizes(WIDTH)
    h, dh = torch.randn(ROWS, RANK), torch.randn(ROWS, RANK)
    dh[3] = dh[-1] = 0
    pending, back = LowRank(h, torch.randn(2 * WIDTH, RANK)), LowRank(dh, torch.randn(WIDTH, RANK))
    got = swiglu_backward(grad, back, both, pending, BLOCKS).measured
    check(operand_of(got, 0.5, True)[0], got.x_TI)
