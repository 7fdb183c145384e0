"""The Triton kernels against their definitions, run by Triton's interpreter on the CPU (see conftest.py).

The same kernels run compiled in tests/gpu. Float32 in, so the bound is float32's rounding.
"""

import os

import pytest
import torch

pytest.importorskip("triton", reason="Triton has builds for Linux only")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("where there is a GPU the kernels are compiled; tests/gpu has them", allow_module_level=True)

from strop.ops import reference
from strop.ops.triton import kernels

BOUND = 1e-5


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def gradient(function, x: torch.Tensor, cotangent: torch.Tensor) -> torch.Tensor:
    leaf = x.detach().requires_grad_()
    return torch.autograd.grad(function(leaf), leaf, cotangent)[0]


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    assert not got.isnan().any()
    return ((got - want).norm() / want.norm()).item()


@pytest.mark.parametrize("shape", [(1, 48), (7, 100), (3, 4, 24)])
def test_rms_norm(shape: tuple[int, ...]) -> None:
    x, gain, cotangent = torch.randn(shape), torch.rand(shape[-1]) + 0.5, torch.randn(shape)
    y, scale = kernels.rms_norm_forward(x, gain, 1e-5)
    dx = kernels.rms_norm_backward(cotangent, x, gain, scale)
    want = gradient(lambda x: reference.rms_norm(x, gain, 1e-5), x, cotangent)
    assert error(y, reference.rms_norm(x, gain, 1e-5)) < BOUND
    assert error(dx, want) < BOUND
    assert error(kernels.rms_norm_backward(cotangent, x, gain, scale * 1.01), want) > 100 * BOUND


@pytest.mark.parametrize("shape", [(1, 20), (3, 2100)])
def test_swiglu(shape: tuple[int, int]) -> None:
    x, cotangent = torch.randn(shape), torch.randn(shape[0], shape[1] // 2)
    want = gradient(reference.swiglu, x, cotangent)
    assert error(kernels.swiglu_forward(x), reference.swiglu(x)) < BOUND
    assert error(kernels.swiglu_backward(cotangent, x), want) < BOUND
    assert error(kernels.swiglu_backward(cotangent, x.roll(1, 0).roll(1, 1)), want) > 100 * BOUND


@pytest.mark.parametrize(("heads", "width", "half"), [(4, 24, 12), (3, 24, 8), (1, 16, 8)])
def test_rotary(heads: int, width: int, half: int) -> None:
    merged, angle = torch.randn(5, 2 * heads, width), torch.randn(5, half)
    x, cos, sin = merged[:, heads:], angle.cos(), angle.sin()  # rows that lie apart
    turned = kernels.rotary(x, cos, sin, 1.0)
    assert error(turned, reference.rotary(x, cos, sin)) < BOUND
    assert error(kernels.rotary(turned, cos, sin, -1.0), x) < BOUND
    assert error(kernels.rotary(turned, cos, sin, 1.0), x) > 100 * BOUND
