"""Triton kernels of the element-wise ops: one pass over memory each, where PyTorch's own kernels make three to six.

Used for float32 and narrower types on a GPU; everywhere else the ops compute the same in plain PyTorch. All
arithmetic is in float32. Imported only on a GPU, because torch's CPU builds come without Triton.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from strop.ops.blockwise import BLOCK as MOMENT_BLOCK
from strop.ops.blockwise import dynamic_code, midpoints

_BLOCK = 1024

_BLOCKS = 64
"""Blocks of 64 numbers per program: 14 instructions per number, against 23 with 16 blocks (compiled for an H200)."""

_MOMENT_BLOCKS = 2
"""Blocks of 256 moments per program."""


@triton.jit
def _rms_norm_forward(x, gain, y, scale, eps, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    value = tl.load(x + row * width + column, inside, 0.0).to(tl.float32)
    factor = tl.rsqrt(tl.sum(value * value) / width + eps)
    weight = tl.load(gain + column, inside, 0.0)
    # The norm is rounded to the model's type before the gain is applied, as in the models' own code.
    tl.store(y + row * width + column, (value * factor).to(weight.dtype) * weight, inside)
    tl.store(scale + row, factor)


@triton.jit
def _rms_norm_backward(grad, x, gain, scale, dx, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    place = row * width + column
    factor = tl.load(scale + row)
    normed = tl.load(x + place, inside, 0.0).to(tl.float32) * factor
    weighted = tl.load(grad + place, inside, 0.0).to(tl.float32) * tl.load(gain + column, inside, 0.0).to(tl.float32)
    projection = tl.sum(weighted * normed) / width
    tl.store(dx + place, factor * (weighted - normed * projection), inside)


@triton.jit
def _swiglu_forward(gate_up, out, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    gate = tl.load(gate_up + row * 2 * width + column, inside, 0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * width + width + column, inside, 0.0).to(tl.float32)
    tl.store(out + row * width + column, gate * tl.sigmoid(gate) * up, inside)


@triton.jit
def _swiglu_backward(grad, gate_up, dgate_up, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    left, right = row * 2 * width + column, row * 2 * width + width + column
    g = tl.load(grad + row * width + column, inside, 0.0).to(tl.float32)
    gate = tl.load(gate_up + left, inside, 0.0).to(tl.float32)
    up = tl.load(gate_up + right, inside, 0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    tl.store(dgate_up + left, g * up * sigmoid * (1 + gate * (1 - sigmoid)), inside)
    tl.store(dgate_up + right, g * gate * sigmoid, inside)


@triton.jit
def _rotary(x, cos, sin, out, row_stride, heads, width, half, sign, HEADS: tl.constexpr, HALF: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    head, channel = tl.arange(0, HEADS)[:, None], tl.arange(0, HALF)[None, :]
    inside = (head < heads) & (channel < half)
    c = tl.load(cos + row * half + channel, channel < half, 0.0).to(tl.float32)
    s = tl.load(sin + row * half + channel, channel < half, 0.0).to(tl.float32) * sign
    read = x + row * row_stride + head * width + channel
    write = out + row * heads * width + head * width + channel
    first = tl.load(read, inside, 0.0).to(tl.float32)
    second = tl.load(read + half, inside, 0.0).to(tl.float32)
    tl.store(write, first * c - second * s, inside)
    tl.store(write + half, second * c + first * s, inside)


def rms_norm_forward(x_TD: Tensor, gain_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The normed rows and each row's factor, (..., 1) in float32."""
    x_TD = x_TD.contiguous()
    y_TD = torch.empty_like(x_TD)
    scale_T1 = torch.empty((*x_TD.shape[:-1], 1), dtype=torch.float32, device=x_TD.device)
    width = x_TD.shape[-1]
    _rms_norm_forward[(scale_T1.numel(),)](x_TD, gain_D, y_TD, scale_T1, eps, width, triton.next_power_of_2(width))
    return y_TD, scale_T1


def rms_norm_backward(grad_TD: Tensor, x_TD: Tensor, gain_D: Tensor, scale_T1: Tensor) -> Tensor:
    """The gradient of the norm's input."""
    grad_TD, x_TD = grad_TD.contiguous(), x_TD.contiguous()
    dx_TD, width = torch.empty_like(x_TD), x_TD.shape[-1]
    block = triton.next_power_of_2(width)
    _rms_norm_backward[(scale_T1.numel(),)](grad_TD, x_TD, gain_D, scale_T1, dx_TD, width, block)
    return dx_TD


def swiglu_forward(gate_up_T2F: Tensor) -> Tensor:
    """silu(gate) * up."""
    rows, width = gate_up_T2F.shape[0], gate_up_T2F.shape[1] // 2
    out_TF = gate_up_T2F.new_empty((rows, width))
    _swiglu_forward[(rows, triton.cdiv(width, _BLOCK))](gate_up_T2F.contiguous(), out_TF, width, _BLOCK)
    return out_TF


def swiglu_backward(grad_TF: Tensor, gate_up_T2F: Tensor) -> Tensor:
    """The gradient of gate and up, side by side."""
    rows, width = grad_TF.shape
    out_T2F = torch.empty_like(gate_up_T2F)
    grid = (rows, triton.cdiv(width, _BLOCK))
    _swiglu_backward[grid](grad_TF.contiguous(), gate_up_T2F, out_T2F, width, _BLOCK)
    return out_T2F


def rotary(x_TNH: Tensor, cos_TR: Tensor, sin_TR: Tensor, sign: float) -> Tensor:
    """X rotated by the angle, or back by it if sign is -1. Rows of x may be strided, as slices of q, k, v are."""
    rows, heads, width = x_TNH.shape
    if x_TNH.stride()[1:] != (width, 1):
        x_TNH = x_TNH.contiguous()
    half = cos_TR.shape[-1]
    out_TNH = torch.empty((rows, heads, width), dtype=x_TNH.dtype, device=x_TNH.device)
    blocks = (triton.next_power_of_2(heads), triton.next_power_of_2(half))
    stride = x_TNH.stride(0)
    _rotary[(rows,)](x_TNH, cos_TR, sin_TR, out_TNH, stride, heads, width, half, sign, *blocks)
    if 2 * half < width:
        out_TNH[..., 2 * half :] = x_TNH[..., 2 * half :]
    return out_TNH


@triton.jit
def _nf4_dequantise(
    packed, absmax, levels, nested_absmax, offset, code, out, count,
    BLOCK: tl.constexpr, BLOCKS: tl.constexpr, NESTED: tl.constexpr,
):  # fmt: skip
    """Some blocks of 64 numbers, one per row; a thread reads 4 bytes and writes 8 numbers, 16 bytes in bfloat16."""
    first = tl.program_id(0).to(tl.int64) * BLOCKS
    left = (count - first * BLOCK).to(tl.int32)  # from here on 32 bits are enough for every index
    row, byte, column = tl.arange(0, BLOCKS), tl.arange(0, BLOCK // 2)[None, :], tl.arange(0, BLOCK)[None, :]
    real = row * BLOCK < left
    if NESTED > 0:
        scale = tl.load(code + tl.load(absmax + first + row, real, 0).to(tl.int32))
        scale = scale * tl.load(nested_absmax + (first + row) // NESTED, real, 0.0) + tl.load(offset)
    else:
        scale = tl.load(absmax + first + row, real, 0.0)
    place = row[:, None] * (BLOCK // 2) + byte
    two = tl.load(packed + first * (BLOCK // 2) + place, place < (left + 1) // 2, 0).to(tl.int32)
    upper, lower = tl.load(levels + (two >> 4)), tl.load(levels + (two & 15))
    value = tl.reshape(tl.join(upper, lower), [BLOCKS, BLOCK]) * scale[:, None]
    place = row[:, None] * BLOCK + column
    tl.store(out + first * BLOCK + place, value.to(out.dtype.element_ty), place < left)


@triton.jit
def _nearest(value, midpoints):
    """How many of the 255 midpoints lie below each value: the place of the nearest entry of the code."""
    place = tl.zeros(value.shape, tl.int32)
    for bit in tl.static_range(8):
        higher = place + (128 >> bit)
        place = tl.where(tl.load(midpoints + higher - 1) < value, higher, place)
    return place


@triton.jit
def _moment(codes, absmax, code, place, block, inside, real):
    return tl.load(code + tl.load(codes + place, inside, 0)) * tl.load(absmax + block, real, 0.0)[:, None]


@triton.jit
def _store_moment(value, codes, absmax, midpoints, place, block, inside, real):
    largest = tl.max(tl.abs(value), 1)
    scaled = value * tl.div_rn(1.0, tl.maximum(largest, 2.0**-126))[:, None]  # a smaller one would be float64
    tl.store(codes + place, _nearest(scaled, midpoints).to(tl.uint8), inside)
    tl.store(absmax + block, largest, real)


@triton.jit
def _adamw_8bit(
    parameter, grad, mean, mean_absmax, square, square_absmax, signed, unsigned, signed_mid, unsigned_mid, rates, skip,
    count, beta1, beta2, rest1, rest2, eps, keep, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    if tl.load(skip) == 0:
        block = tl.program_id(0) * BLOCKS + tl.arange(0, BLOCKS)  # adapters have less than 2^31 numbers
        place = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
        inside, real = place < count, block * BLOCK < count
        g = tl.load(grad + place, inside, 0.0)
        m = _moment(mean, mean_absmax, signed, place, block, inside, real) * beta1 + g * rest1
        v = _moment(square, square_absmax, unsigned, place, block, inside, real) * beta2 + g * g * rest2
        m, v = tl.where(inside, m, 0.0), tl.where(inside, v, 0.0)
        rate, root = tl.load(rates), tl.load(rates + 1)
        step = tl.div_rn(m, tl.div_rn(tl.sqrt_rn(v), root) + eps)
        tl.store(parameter + place, tl.load(parameter + place, inside, 0.0) * keep - rate * step, inside)
        _store_moment(m, mean, mean_absmax, signed_mid, place, block, inside, real)
        _store_moment(v, square, square_absmax, unsigned_mid, place, block, inside, real)


def nf4_dequantise(
    packed: Tensor,
    absmax_B: Tensor,
    nested: tuple[Tensor, Tensor, Tensor] | None,
    levels: Tensor,
    block: int,
    out: Tensor,
) -> None:
    """See `ops.nf4.dequantise_into`; no multiplication is fused with an addition, so the bits are bitsandbytes'."""
    count = out.numel()
    _nf4_dequantise[(triton.cdiv(count, block * _BLOCKS),)](
        packed, absmax_B, levels, *(nested or (None, None, None)), out, count,
        BLOCK=block, BLOCKS=_BLOCKS, NESTED=MOMENT_BLOCK if nested else 0, enable_fp_fusion=False,
    )  # fmt: skip


def adamw_8bit(
    parameter_N: Tensor,
    grad_N: Tensor,
    moments: tuple[Tensor, Tensor, Tensor, Tensor],
    betas: tuple[float, float],
    eps: float,
    rates: Tensor,
    keep: float,
    skip: Tensor,
) -> None:
    """See `ops.adamw_8bit`; one pass, with only parameters and gradients in float32. `rates`: rate and root."""
    device, count = parameter_N.device, len(parameter_N)
    tables = [table(signed, device) for table in (dynamic_code, midpoints) for signed in (True, False)]
    beta1, beta2 = betas
    _adamw_8bit[(triton.cdiv(count, MOMENT_BLOCK * _MOMENT_BLOCKS),)](
        parameter_N, grad_N, *moments, *tables, rates, skip.to(torch.uint8), count,
        beta1, beta2, 1 - beta1, 1 - beta2, eps, keep,
        BLOCK=MOMENT_BLOCK, BLOCKS=_MOMENT_BLOCKS, enable_fp_fusion=False,
    )  # fmt: skip
