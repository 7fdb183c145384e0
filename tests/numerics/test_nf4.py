"""NF4 and the 8-bit code under it are bitsandbytes', bit for bit; the Triton kernel has the plain form's bits."""

import os

import pytest
import torch
from torch import Tensor

import bitsandbytes_oracle as oracle
from strop.ops import nf4, reference
from strop.ops.blockwise import dequantise_blockwise, dynamic_code, quantise_blockwise
from strop.ops.linear import Operand
from strop.ops.nf4 import (
    BLOCK,
    Nested,
    Nf4,
    Nf4Weight,
    Scratch,
    dequantise,
    dequantise_into,
    levels,
    magnitudes,
    quantise,
)

CPU = torch.device("cpu")
SHAPES = [(96, 128), (48, 80), (320, 256), (33, 50), (1, 64), (3, 5)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def matrix(shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers, an outlier, a block of zeros, and rows of other sizes."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(shape[1])) * 0.02
    weight[0] *= 30
    weight.view(-1)[1:60] *= 0 if weight.numel() > 64 else 1
    weight.view(-1)[64:128] = 0
    return weight.to(dtype)


def loaded(packed: Tensor, state: object, shape: tuple[int, int]) -> Nf4:
    nested = Nested(state.state2.absmax, state.offset, state.state2.code) if state.nested else None  # type: ignore[attr-defined]
    return Nf4(packed.view(-1), state.absmax, nested, shape)  # type: ignore[attr-defined]


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_quantised_as_bitsandbytes_does(shape: tuple[int, int], dtype: torch.dtype, double: bool) -> None:
    weight = matrix(shape, dtype)
    ours, (packed, state) = quantise(weight, double), oracle.quantise_nf4(weight, double)
    assert torch.equal(ours.packed, packed.view(-1))
    assert torch.equal(ours.absmax_B, state.absmax)
    if double:
        assert ours.nested is not None
        assert torch.equal(ours.nested.absmax_G.clamp(min=1e-38), state.state2.absmax)
        assert torch.equal(ours.nested.offset, state.offset)
    assert torch.equal(dequantise(ours, dtype), oracle.dequantise_nf4(packed, state))


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_what_bitsandbytes_stored_is_read_as_it_reads_it(
    shape: tuple[int, int], dtype: torch.dtype, double: bool
) -> None:
    packed, state = oracle.functional().quantize_4bit(
        matrix(shape, dtype), quant_type="nf4", compress_statistics=double
    )
    assert torch.equal(dequantise(loaded(packed, state, shape), dtype), oracle.dequantise_nf4(packed, state))


def test_a_level_that_is_moved_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = matrix((320, 256))
    packed, state = oracle.quantise_nf4(weight, False)
    monkeypatch.setattr(nf4, "LEVELS", (*nf4.LEVELS[:9], 0.1610, *nf4.LEVELS[10:]))
    nf4.levels.cache_clear()
    try:
        ours = quantise(weight, False)
        assert not torch.equal(dequantise(ours, torch.float32), oracle.dequantise_nf4(packed, state))
        monkeypatch.setattr(nf4, "LEVELS", (*nf4.LEVELS[:9], 0.1700, *nf4.LEVELS[10:]))
        nf4.levels.cache_clear()
        assert not torch.equal(quantise(weight, False).packed, packed.view(-1))
    finally:
        nf4.levels.cache_clear()


@pytest.mark.parametrize("signed", [True, False])
def test_the_8_bit_code_is_bitsandbytes(signed: bool) -> None:
    code = oracle.functional().create_dynamic_map(signed)
    assert torch.equal(dynamic_code(signed, CPU), code)
    x = torch.randn(2560) * torch.rand(2560) ** 6
    x = x if signed else x.abs()
    codes, absmax = quantise_blockwise(x, signed)
    want, want_absmax = oracle.quantise_blockwise(x, code, 256)
    assert torch.equal(codes, want)
    assert torch.equal(absmax, want_absmax)
    back = torch.ops.bitsandbytes.dequantize_blockwise(codes, absmax, code, 256, torch.float32)
    assert torch.equal(dequantise_blockwise(codes, absmax, code), back)
    lookup, _ = torch.ops.bitsandbytes.quantize_blockwise(x, code.clone(), 256)
    ours, rough = ((dequantise_blockwise(q, absmax, code) - x).abs() for q in (codes, lookup))
    assert (ours <= rough * (1 + 1e-6)).all()  # the CPU library's choice is never nearer
    assert (ours < rough).any()


def test_the_definition() -> None:
    weight = matrix((96, 128), torch.float64)
    rounded = dequantise(quantise(weight, double=False), torch.float64)
    assert torch.allclose(rounded, reference.nf4(weight.float()).double(), rtol=1e-6, atol=0)
    twice = dequantise(quantise(weight), torch.float64)
    assert 1e-4 < (twice - rounded).norm() / rounded.norm() < 1e-2
    assert 0.05 < (rounded - weight).norm() / weight.norm() < 0.15
    assert (rounded.view(-1)[64:128] == 0).all()


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="tests/gpu has the compiled kernel")
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_kernel_has_the_plain_forms_bits(shape: tuple[int, int], double: bool) -> None:
    """In float32: the interpreter cuts bfloat16 off instead of rounding it."""
    kernels = pytest.importorskip("strop.ops.triton.kernels", reason="Triton has builds for Linux only")
    packed = quantise(matrix(shape), double)
    out = torch.full((shape[0] + 1, shape[1]), 7.0)
    kernels.nf4_dequantise(*packed[:3], levels(out.device), BLOCK, out[:-1])
    assert torch.equal(out[:-1], dequantise(packed, torch.float32))
    assert (out[-1] == 7).all()  # nothing behind the matrix is touched
    wrong = packed._replace(absmax_B=packed.absmax_B.roll(1))
    kernels.nf4_dequantise(*wrong[:3], levels(out.device), BLOCK, out[:-1])
    assert len(packed.absmax_B) == 1 or not torch.equal(out[:-1], dequantise(packed, torch.float32))


def test_a_weight_is_the_product_with_the_rounded_matrix() -> None:
    q, k, dense = matrix((96, 128)), matrix((32, 128)), torch.randn(16, 128)
    scratch = Scratch(torch.float32, CPU)
    frozen, other = (Nf4Weight(p, scratch) for p in ([quantise(q), quantise(k, False), dense], [quantise(q + 1)]))
    want = torch.cat((dequantise(quantise(q), torch.float32), dequantise(quantise(k, False), torch.float32), dense))
    x, grad = torch.randn(7, 128), torch.randn(7, 144)
    assert frozen.shape == (144, 128)
    assert torch.equal(frozen.product(Operand(x)), x @ want.t())
    other.product(Operand(x))  # overwrites the memory that both share
    assert torch.equal(frozen.product_back(Operand(grad)), grad @ want)
    assert not torch.equal(frozen.product(Operand(x)), x @ torch.cat((q, k, dense)).t())
    held = sum(buffer.numel() * buffer.element_size() for buffer in frozen.buffers())
    assert held < 0.6 * 128 * 128 + 4 * dense.numel()


def test_magnitudes_are_a_hundredth_off_at_most_once_they_are_quantised_too() -> None:
    plain, double = quantise(matrix((320, 256)), False), quantise(matrix((320, 256)))
    assert double.nested is not None
    error = (magnitudes(double) - plain.absmax_B).abs()
    assert (error <= 0.01 * double.nested.absmax_G.max()).all()
    out = torch.empty(320, 256)
    dequantise_into(double._replace(nested=double.nested._replace(offset=double.nested.offset * 1.1)), out)
    assert not torch.equal(out, dequantise(double, torch.float32))
