"""Every fused op on a GPU: its time, the time of the plain ops that it replaces, and that of its bytes at copy rate.

    python benchmarks/bench_ops.py [--tokens 16384] [--length 150] [--precision float8 bfloat16]

Phi-3-mini's shapes and LoRA r=16, random data; times are the best of four runs of ten (the first run also
compiles). "plain" is what a layer in plain PyTorch does instead (`model.decoder`, bfloat16, not compiled), including
its low-rank term; for attention it is FlashAttention 2 as torch ships it. Bytes count each tensor once, or twice if a
float8 operand needs its rows' scales first.
"""

import argparse
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from strop.microbatch.tree import Tree
from strop.ops.elementwise import rms_norm, rotary, swiglu
from strop.ops.linear import quantise_rows
from strop.ops.triton.attention import tree_attention, tree_attention_backward
from strop.ops.triton.attention_plan import plan_attention
from strop.ops.triton.norm import Stream, advance, norm_backward, norm_operand
from strop.ops.triton.rotary import finish_qkv, turn_back
from strop.ops.triton.swiglu import swiglu as fused_swiglu
from strop.ops.triton.swiglu import swiglu_backward
from strop.ops.triton.thin import Blocks, LowRank, measure, operand_of

WIDTH, FF, HEADS, HEAD, RANK = 3072, 8192, 32, 96, 16
Call = Callable[[], object]


def microseconds(call: Call, count: int = 10) -> float:
    best = float("inf")
    for _ in range(4):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(count):
            call()
        end.record()
        torch.cuda.synchronize()
        best = min(best, start.elapsed_time(end) * 1e3 / count)
    return best


def random(*shape: int) -> Tensor:
    return torch.randn(shape, device="cuda").bfloat16() * 0.1


def low_rank(tokens: int, width: int, rank: int = RANK, modules: int = 1) -> LowRank:
    """The term of adjacent modules; each row of W belongs to one of them."""
    return LowRank(random(tokens, rank * modules), random(width, rank))


def dense(term: LowRank) -> Tensor:
    """What plain PyTorch adds: h W^T with the first module's columns, which take as long as each row's own."""
    return term.h_TR[:, :RANK] @ term.thin_OR.t()


def backward_of(op: Callable[..., Tensor], *inputs: Tensor) -> Call:
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = op(*leaves)
    grad = torch.randn_like(out)
    return lambda: torch.autograd.grad(out, leaves, grad, retain_graph=True)


def cases(tokens: int, length: int, float8: bool) -> dict[str, tuple[Call, Call, int]]:
    """Name -> the fused op, the plain ops that it replaces, and the bytes per token that it has to move."""
    quantised = 1 if float8 else 2
    again = 2 if float8 else 1  # passes over the tensor that an operand is made from
    x, block, gain, grad = random(tokens, WIDTH), random(tokens, WIDTH), random(WIDTH), random(tokens, WIDTH)
    gate_up, da = random(tokens, 2 * FF), random(tokens, FF)
    spent = gate_up.clone()  # each call overwrites it; the values do not affect the time
    qkv, angle = random(tokens, 3 * WIDTH), torch.rand(tokens, HEAD // 2, device="cuda")
    cos, sin = angle.cos().bfloat16(), angle.sin().bfloat16()
    o, gate_term, down_term, qkv_term = (
        low_rank(tokens, width, modules=count) for width, count in ((WIDTH, 1), (2 * FF, 2), (FF, 1), (3 * WIDTH, 4))
    )
    thin_x, thin_f = random(WIDTH, 2 * RANK), random(FF, RANK)
    gu, blocks3 = Blocks(RANK, (0, 16), 2 * RANK), Blocks(RANK, (0, 16, 32), 4 * RANK)
    heads, factor = (HEADS, HEADS), torch.rand(tokens, device="cuda") + 0.5

    def stream_norm(x: Tensor, block: Tensor) -> Tensor:
        return rms_norm(x + (block + dense(o)), gain, 1e-5)

    def activation(gate_up: Tensor) -> Tensor:
        return swiglu(gate_up + dense(gate_term))

    def turn(qkv: Tensor) -> Tensor:
        q, k, v = (qkv + dense(qkv_term)).view(tokens, 3, HEADS, HEAD).unbind(1)
        return torch.cat((rotary(q, cos, sin), rotary(k, cos, sin), v))

    def operand(x: Tensor) -> object:
        return quantise_rows(x) if float8 else x

    norm_term, thin_16 = low_rank(tokens, WIDTH, 2 * RANK), random(WIDTH, RANK)
    width, ff = 2 * WIDTH, 2 * FF  # bytes of a row in bfloat16
    return {
        "stream, norm, operand": (
            lambda: norm_operand(advance(Stream(x, block, o), gain, thin_x), gain, 1e-5, 1.0, float8),
            lambda: operand(stream_norm(x, block)),
            3 * width + width + quantised * WIDTH,
        ),
        "norm, backward": (
            lambda: norm_backward(grad, norm_term, x, factor, gain, block, thin_16),
            backward_of(stream_norm, x, block),
            2 * width + 4 * width,
        ),
        "swiglu, operand": (
            lambda: operand_of(fused_swiglu(gate_up, gate_term, gu, thin_f), 1.0, float8),
            lambda: operand(activation(gate_up)),
            2 * ff + ff + (ff + FF if float8 else 0),
        ),
        "swiglu, backward": (
            lambda: operand_of(swiglu_backward(da, down_term, spent, gate_term, gu).measured, 1.0, float8),
            backward_of(activation, gate_up),
            3 * ff + 2 * ff + (2 * ff + 2 * FF if float8 else 0),
        ),
        "q, k, v turned": (
            lambda: finish_qkv(qkv, qkv_term, blocks3, cos, sin, heads),
            lambda: turn(qkv),
            6 * width,
        ),
        "q, k, v turned back": (
            lambda: turn_back(qkv, qkv_term.thin_OR, blocks3, cos, sin, heads),
            backward_of(turn, qkv),
            5 * width,
        ),
        **attention_cases(tokens, length),
        "operand of any other tensor": (
            lambda: operand_of(measure(x, thin_x), 1.0, float8),
            lambda: operand(x),
            again * width + quantised * WIDTH,
        ),
    }  # fmt: skip


def attention_cases(tokens: int, length: int) -> dict[str, tuple[Call, Call, int]]:
    lengths = (length,) * (tokens // length) + ((tokens % length,) if tokens % length else ())
    plan = plan_attention(Tree.of(lengths)).to("cuda")
    qkv, grad, thin = random(tokens, 3 * WIDTH), random(tokens, WIDTH), random(WIDTH, RANK)
    nothing = LowRank(torch.zeros(tokens, RANK, device="cuda").bfloat16(), thin)
    out, lse = tree_attention(qkv, plan, (HEADS, HEADS), None, thin)
    offsets = torch.tensor([0, *lengths], device="cuda").cumsum(0).int()

    def flash(qkv: Tensor) -> Tensor:
        q, k, v = qkv.view(tokens, 3, HEADS, HEAD).unbind(1)
        return varlen_attn(q, k, v, offsets, offsets, length, length, window_size=(-1, 0))

    return {
        "attention": (
            lambda: tree_attention(qkv, plan, (HEADS, HEADS), None, thin),
            lambda: flash(qkv),
            8 * WIDTH,
        ),
        "attention, backward": (
            lambda: tree_attention_backward(grad, nothing, qkv, out.x_TI, lse, plan, (HEADS, HEADS), None),
            backward_of(flash, qkv),
            16 * WIDTH,
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--length", type=int, default=150, help="tokens a sample, for attention")
    parser.add_argument("--precision", nargs="+", default=["float8", "bfloat16"], choices=["float8", "bfloat16"])
    options = parser.parse_args()
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    rate = 2 * source.numel() / microseconds(lambda: target.copy_(source))
    print(f"{torch.cuda.get_device_name()}, {options.tokens:,} tokens, copy rate {rate / 1e6:.2f} TB/s")
    for precision in options.precision:
        print(f"{precision:38} {'us':>8} {'plain':>8} {'bytes':>8}")
        for name, (fused, other, size) in cases(options.tokens, options.length, precision == "float8").items():
            times = microseconds(fused), microseconds(other), options.tokens * size / rate
            print(f"{name:38} {times[0]:8.0f} {times[1]:8.0f} {times[2]:8.0f}", flush=True)


if __name__ == "__main__":
    main()
