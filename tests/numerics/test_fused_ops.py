"""The fused ops beside a few lines of plain PyTorch each, forward and backward, in float32 under Triton's interpreter.

Sizes are odd on purpose: rows that fill no tile, widths that fill no chunk, ranks whose padding is zeros. The control
of each is the same comparison with one thing wrong.
"""

import os

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton has builds for Linux only")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("where there is a GPU the kernels are compiled; tests/gpu has them", allow_module_level=True)

from strop.ops import reference
from strop.ops.linear import FrozenWeight
from strop.ops.triton.copy_blocks import Block, copy_blocks, tiles_of
from strop.ops.triton.cross_entropy import fused_linear_cross_entropy
from strop.ops.triton.norm import Stream, advance, norm_backward, norm_operand
from strop.ops.triton.rotary import finish_qkv, turn_back
from strop.ops.triton.swiglu import swiglu, swiglu_backward
from strop.ops.triton.thin import Blocks, LowRank, measure, operand_of, sum_up

BOUND, FAR = 1e-5, 1e-3
SCALING = 0.7
RANKS = {4: 16, 16: 16, 40: 64}  # LoRA's rank, and the width of its block of columns


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def error(got: Tensor, want: Tensor) -> float:
    assert got.isfinite().all()
    return float((got - want).norm() / want.norm())


def thin(rows: int, rank: int) -> Tensor:
    """A thin matrix, padded with zeros."""
    return torch.nn.functional.pad(torch.randn(rows, rank) / rank**0.5, (0, RANKS[rank] - rank))


def low_rank(rows: int, width: int, rank: int) -> LowRank:
    return LowRank(torch.randn(rows, RANKS[rank]), thin(width, rank))


def added(x: Tensor, term: LowRank) -> Tensor:
    return x + term.h_TR @ term.thin_OR.t()


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize(("rows", "width"), [(1, 48), (70, 530)])
def test_norm(rows: int, width: int, rank: int) -> None:
    """Terms pending on the stream, the norm, and its backward with the terms pending there."""
    x, block, gain = torch.randn(rows, width), torch.randn(rows, width), torch.rand(width) + 0.5
    term, w = low_rank(rows, width, rank), thin(width, rank)
    stream = added(x + block, term)
    measured = advance(Stream(x, block.clone(), term), gain, w)
    operand, h, factor = norm_operand(measured, gain, 1e-5, SCALING, False)
    normed = reference.rms_norm(stream, gain, 1e-5)
    pairs = [(measured.x_TD, stream), (operand.values, normed), (h, SCALING * normed @ w)]
    assert max(error(*pair) for pair in pairs) < BOUND
    assert error(operand.values, reference.rms_norm(stream, gain, 1e-2)) > FAR
    assert error(measured.x_TD, x + block) > FAR

    again = advance(Stream(stream, None, None), gain, w)  # as a recomputed layer begins
    assert torch.equal(again.x_TD, stream)
    assert error(norm_operand(again, gain, 1e-5, SCALING, False)[1], h) < BOUND

    grad, residual, next_w = torch.randn(rows, width), torch.randn(rows, width), thin(width, rank)
    back = low_rank(rows, width, rank)
    leaf = stream.clone().requires_grad_()
    (want,) = torch.autograd.grad(reference.rms_norm(leaf, gain, 1e-5), leaf, added(grad, back))
    got = norm_backward(grad, back, stream, factor, gain, residual, next_w)
    _, dh = operand_of(got, SCALING, False)
    assert error(got.x_TI, want + residual) < BOUND
    assert error(dh, SCALING * (want + residual) @ next_w) < BOUND
    assert error(got.x_TI, want) > FAR
    (without,) = torch.autograd.grad(reference.rms_norm(leaf, gain, 1e-5), leaf, grad)
    assert error(got.x_TI, without + residual) > FAR


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize(("rows", "width"), [(1, 48), (70, 530)])
def test_measure(rows: int, width: int, rank: int) -> None:
    x, w = torch.randn(rows, width), thin(width, rank)
    measured = measure(x, w)
    operand, h = operand_of(measured, SCALING, False)
    assert torch.equal(operand.values, x)
    assert error(h, SCALING * x @ w) < BOUND
    assert error(h, x @ w) > FAR
    assert torch.equal(measured.parts.largest_ST.amax(0), x.abs().amax(1))
    assert torch.equal(sum_up(measured.parts, SCALING, True, x.dtype).scale_T, x.abs().amax(1) / 448)


def split_blocks(rank: int, parts: int, split: bool) -> Blocks:
    """The blocks of a projection of `parts` parts, each with columns of its own or all with the same."""
    width = RANKS[rank]
    starts = tuple(i * width if split else 0 for i in range(parts))
    return Blocks(width, starts, width * (1 << (parts - 1).bit_length() if split else 1))


def blocked(thin_OR: Tensor, heights: list[int], blocks: Blocks) -> Tensor:
    """B with all of h's columns: the rows of each part in its own block, zeros elsewhere."""
    pieces = []
    for rows, start in zip(thin_OR.split(heights), blocks.starts, strict=True):
        piece = torch.zeros(len(rows), blocks.rank)
        piece[:, start : start + blocks.width] = rows
        pieces.append(piece)
    return torch.cat(pieces)


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize(("rows", "width"), [(1, 48), (133, 100), (5, 530)])
def test_swiglu(rows: int, width: int, rank: int, split: bool) -> None:
    blocks = split_blocks(rank, 2, split)
    both, term = torch.randn(rows, 2 * width), LowRank(torch.randn(rows, blocks.rank), thin(2 * width, rank))
    wide = blocked(term.thin_OR, [width, width], blocks)
    out_w = thin(width, rank)
    leaf, w_leaf = both.clone().requires_grad_(), wide.clone().requires_grad_()
    a = reference.swiglu(leaf + term.h_TR @ w_leaf.t())
    operand, h = operand_of(swiglu(both, term, blocks, out_w), SCALING, False)
    assert error(operand.values, a.detach()) < BOUND
    assert error(h, SCALING * a.detach() @ out_w) < BOUND
    assert error(operand.values, reference.swiglu(both)) > FAR

    grad, back = torch.randn(rows, width), LowRank(torch.randn(rows, out_w.shape[1]), out_w)
    want, want_w = torch.autograd.grad(a, (leaf, w_leaf), added(grad, back))
    got = swiglu_backward(grad, back, both, term, blocks)
    operand, dh = operand_of(got.measured, SCALING, False)
    assert operand.values.data_ptr() == both.data_ptr()
    want_blocks = [
        part[:, start : start + blocks.width] for part, start in zip(want_w.chunk(2), blocks.starts, strict=True)
    ]
    pairs = [
        (operand.values, want),
        (dh, SCALING * want @ wide),
        (got.thin_2FB, torch.cat(want_blocks)),
        (got.out_thin_FR, a.detach().t() @ back.h_TR),
    ]
    assert max(error(*pair) for pair in pairs) < BOUND
    for cotangent, pending in ((grad, term.h_TR), (added(grad, back), 0 * term.h_TR)):  # either term forgotten
        (wrong,) = torch.autograd.grad(reference.swiglu(leaf + pending @ wide.t()), leaf, cotangent)
        assert error(operand.values, wrong) > FAR
    assert error(operand.values, want.roll(width, 1)) > FAR


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize(
    ("heads", "width", "half"), [((4, 4), 24, 12), ((6, 2), 32, 12), ((9, 1), 20, 10)], ids=["all", "partial", "odd"]
)
@pytest.mark.parametrize(("rows", "rank"), [(1, 4), (70, 16), (9, 40)])
def test_rotary(rows: int, rank: int, heads: tuple[int, int], width: int, half: int, split: bool) -> None:
    blocks = split_blocks(rank, 3, split)
    counts = [heads[0], heads[1], heads[1]]
    angle, turned = torch.randn(rows, half), (heads[0] + heads[1]) * width
    heights = [n * width for n in counts]
    term = LowRank(torch.randn(rows, blocks.rank), thin(sum(heights), rank))
    wide = blocked(term.thin_OR, heights, blocks)
    tables = angle.cos(), angle.sin()

    def plain(x: Tensor, sin: Tensor = tables[1]) -> Tensor:
        y = reference.rotary(x[:, :turned].unflatten(1, (-1, width)), tables[0], sin).flatten(1)
        return torch.cat((y, x[:, turned:]), 1)

    qkv = torch.randn(rows, sum(counts) * width)
    got = qkv.clone()
    finish_qkv(got, term, blocks, *tables, heads)
    assert error(got, plain(added(qkv, LowRank(term.h_TR, wide)))) < BOUND
    assert error(got, plain(added(qkv, LowRank(term.h_TR, wide)), -tables[1])) > FAR
    assert error(got, plain(qkv)) > FAR

    leaf, grad = qkv.clone().requires_grad_(), torch.randn_like(qkv)
    (want,) = torch.autograd.grad(plain(leaf), leaf, grad)
    back = turn_back(grad.clone(), term.thin_OR, blocks, *tables, heads)
    _, dh = operand_of(back, SCALING, False)
    assert error(back.x_TI, want) < BOUND
    assert error(dh, SCALING * want @ wide) < BOUND
    assert torch.allclose(back.parts.largest_ST.amax(0), want.abs().amax(1), rtol=1e-5)
    assert error(back.x_TI, plain(grad)) > FAR  # turned on instead of back


@pytest.mark.parametrize("chunk", [1000, 8])
def test_cross_entropy(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to four labels a row, weights, and rows without a label."""
    rows, vocab = 29, 4100  # two blocks of logits
    monkeypatch.setattr("strop.ops.triton.cross_entropy.LOGITS_BYTES", vocab * 4 * chunk)
    hidden, head = torch.randn(rows, 40, requires_grad=True), torch.randn(vocab, 40) / 4
    row = torch.arange(rows).repeat_interleave(torch.randint(0, 5, (rows,)))
    labels = (torch.randint(0, vocab, (rows,))[row] + torch.arange(len(row)) * 700) % vocab
    weights = torch.randint(1, 6, (len(row),)).float()
    offsets = torch.searchsorted(row, torch.arange(rows + 1)).int()
    assert (offsets.diff() == 0).any()

    def fused(labels: Tensor, weights: Tensor, offsets: Tensor = offsets) -> tuple[Tensor, Tensor]:
        padding = torch.full((7,), 5, dtype=torch.int32)
        labels, weights = torch.cat((labels.int(), padding)), torch.cat((weights, torch.zeros(7)))
        loss = fused_linear_cross_entropy(hidden, FrozenWeight(head), offsets, labels, weights)
        return loss.detach(), torch.autograd.grad(loss * 0.3, hidden)[0]

    loss = reference.linear_cross_entropy(hidden, head, row, labels, weights)
    want, got = (loss.detach(), torch.autograd.grad(loss * 0.3, hidden)[0]), fused(labels, weights)
    assert max(map(error, got, want)) < BOUND
    assert got[1][offsets.diff() == 0].abs().max() == 0
    for wrong in (fused(labels.roll(1), weights), fused(labels, weights.roll(1)), fused(labels, weights * 0 + 1)):
        assert error(wrong[1], want[1]) > FAR
    learned = torch.where(offsets.diff() == 0, 1, 0).cumsum(0).int()  # padding rows take labels
    assert error(fused(labels, weights, offsets + torch.nn.functional.pad(learned, (1, 0)))[1], want[1]) > FAR


def test_copied_blocks() -> None:
    """Two blocks of three columns: one transposed and longer than a tile, one as it stands; and back."""
    outer = torch.randn(1000)
    blocks = [Block(150, 5, 4, 0, 1, 150), Block(20, 700, 16, 500, 3, 1)]
    tiles, inner = tiles_of(blocks, torch.device("cpu")), torch.full((1200,), 7.0)
    copy_blocks(inner, outer, tiles, 3, out=False)
    long, short = inner[5:605].view(150, 4), inner[700:1020].view(20, 16)
    assert torch.equal(long[:, :3], outer[:450].view(3, 150).t())
    assert torch.equal(short[:, :3], outer[500:560].view(20, 3))
    assert (long[:, 3] == 7).all()
    assert (inner == 7).sum() == 1200 - 510
    back = torch.zeros(1000)
    copy_blocks(inner, back, tiles, 3, out=True)
    copied = torch.cat((torch.arange(450), torch.arange(500, 560)))
    assert torch.equal(back[copied], outer[copied])
    assert back.count_nonzero() == 510
