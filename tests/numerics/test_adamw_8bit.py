"""8-bit AdamW is bitsandbytes' update; what it must not touch it does not; the kernel has the plain form's numbers."""

import os

import pytest
import torch
from torch import Tensor

import bitsandbytes_oracle as oracle
from strop.ops import adamw_8bit as module
from strop.ops import reference
from strop.ops.adamw_8bit import AdamWSettings, Moments, adamw_8bit

SETTINGS, RATE = AdamWSettings(0.9, 0.999, 1e-8, 0.01), 1e-2
GO, SKIP = torch.tensor(False), torch.tensor(True)
COUNT = 5000
"""Nineteen blocks and a part of one."""


def gradients(steps: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    sizes = torch.logspace(-8, 1, COUNT)
    return [torch.randn(COUNT, generator=generator) * sizes for _ in range(steps)]


def run(steps: int, settings: AdamWSettings = SETTINGS) -> tuple[Tensor, Moments]:
    parameter = torch.randn(COUNT, generator=torch.Generator().manual_seed(0))
    moments = Moments.zeros(parameter)
    for grad in gradients(steps):
        adamw_8bit(parameter, grad, moments, settings, RATE, GO)
    return parameter, moments


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch):
    """bitsandbytes' own CPU update, with its exact quantisation in place of its CPU library's table."""
    import bitsandbytes.backends.cpu.ops as ops

    def quantise(x: Tensor, code: Tensor, absmax: Tensor, out: Tensor, block: int) -> None:
        for target, value in zip((out, absmax), oracle.quantise_blockwise(x, code, block), strict=True):
            target.copy_(value)

    monkeypatch.setattr(ops, "_quant_blockwise_fp32_direct", quantise)

    def update(steps: int) -> tuple[Tensor, list[Tensor]]:
        parameter = torch.randn(COUNT, generator=torch.Generator().manual_seed(0))
        codes = [torch.zeros(COUNT, dtype=torch.uint8) for _ in range(2)]
        absmax = [torch.zeros(-(-COUNT // 256)) for _ in range(2)]
        maps = [oracle.functional().create_dynamic_map(signed) for signed in (True, False)]
        beta1, beta2, eps, decay = SETTINGS
        for step, grad in enumerate(gradients(steps), 1):
            ops._optimizer_update_8bit_blockwise_cpu(
                "adam", grad, parameter, *codes, beta1, beta2, 0.0, 0.0, eps, step, RATE, *maps, *absmax, decay, 1.0
            )
        return parameter, [codes[0], absmax[0], codes[1], absmax[1]]

    return update


def test_one_update_is_bitsandbytes(theirs) -> None:
    parameter, moments = run(1)
    want, state = theirs(1)
    assert torch.allclose(parameter, want, rtol=1e-6, atol=1e-7)
    for ours, wanted in zip(moments[:4], state, strict=True):
        assert torch.equal(ours, wanted)
    assert moments.step == 1


def test_twenty_updates_stay_with_bitsandbytes(theirs) -> None:
    parameter, moments = run(20)
    want, state = theirs(20)
    moved = (want - run(0)[0]).norm()
    assert (parameter - want).norm() < 1e-3 * moved  # a number on a midpoint may go to the other side
    assert (moments.mean_N != state[0]).float().mean() < 1e-3
    assert (moments.square_N != state[2]).float().mean() < 1e-3
    for wrong in ({"beta1": 0.89}, {"beta2": 0.99}, {"weight_decay": 0.1}, {"eps": 1e-5}):
        off = run(20, SETTINGS._replace(**wrong))[0]
        assert (off - want).norm() > 5 * (parameter - want).norm()


def test_the_definition() -> None:
    """Of a few steps: float64 and the nearest entry by search."""
    parameter = torch.randn(COUNT, generator=torch.Generator().manual_seed(0))
    want = reference.adamw_8bit(parameter.double(), [g.double() for g in gradients(3)], *SETTINGS, RATE)
    assert (run(3)[0] - want).norm() < 1e-3 * (parameter - want).norm()


def test_where_it_is_told_to_skip_nothing_changes() -> None:
    parameter, moments = run(2)
    before = [x.clone() for x in (parameter, *moments)]
    adamw_8bit(parameter, torch.full((COUNT,), float("nan")), moments, SETTINGS, RATE, SKIP)
    assert all(torch.equal(a, b) for a, b in zip(before, (parameter, *moments), strict=True))
    adamw_8bit(parameter, gradients(1)[0], moments, SETTINGS, RATE, GO)
    assert all(not torch.equal(a, b) for a, b in zip(before, (parameter, *moments), strict=True))


def test_pieces_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(3)
    monkeypatch.setattr(module, "_PIECE", 512)
    for a, b in zip((whole[0], *whole[1]), (lambda r: (r[0], *r[1]))(run(3)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="tests/gpu has the compiled kernel")
def test_the_kernel_has_the_plain_forms_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = pytest.importorskip("strop.ops.triton.kernels", reason="Triton has builds for Linux only")
    want, want_moments = run(4)
    monkeypatch.setattr(module, "kernels_for", lambda x: kernels)
    parameter, moments = run(4)
    assert torch.allclose(parameter, want, rtol=1e-5, atol=1e-6)
    assert torch.allclose(moments.mean_absmax_B, want_moments.mean_absmax_B, rtol=1e-5)
    assert torch.allclose(moments.square_absmax_B, want_moments.square_absmax_B, rtol=1e-5)
    assert (moments.mean_N != want_moments.mean_N).float().mean() < 1e-3
    assert (moments.square_N != want_moments.square_N).float().mean() < 1e-3
    before = [x.clone() for x in (parameter, *moments)]
    adamw_8bit(parameter, gradients(1)[0], moments, SETTINGS, RATE, SKIP)
    assert all(torch.equal(a, b) for a, b in zip(before, (parameter, *moments), strict=True))
    assert not torch.allclose(run(4, SETTINGS._replace(beta2=0.99))[0], want, rtol=1e-3, atol=1e-4)
