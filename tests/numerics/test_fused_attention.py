"""Attention over packed trees beside its definition, and its tiles beside who sees whom.

Float32 under Triton's interpreter. The control of each is the same comparison with one thing wrong.
"""

import os
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton has builds for Linux only")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("where there is a GPU the kernels are compiled; tests/gpu has them", allow_module_level=True)

from strop.microbatch.tree import Tree
from strop.ops import reference
from strop.ops.triton import attention as fused_attention
from strop.ops.triton import attention_plan
from strop.ops.triton.attention import packed_attention, tree_attention, tree_attention_backward
from strop.ops.triton.attention_plan import plan_attention
from strop.ops.triton.thin import LowRank, operand_of

BOUND, FAR = 1e-5, 1e-3

TREES = {
    "one token": ((1,), (-1,)),
    "samples": ((5, 1, 70, 9), (-1, -1, -1, -1)),
    "nested, beyond a tile": ((66, 4, 5, 70, 1, 8), (-1, 0, 1, 1, 3, 0)),
    "two roots": ((5, 2, 1, 4, 64, 3, 2), (-1, 0, 0, -1, 3, 4, -1)),
}
MANY = (70, *[60] * 4, 1), (-1, *[0] * 5)  # its prefix is seen by more queries than one program takes


@pytest.fixture(autouse=True)
def _no_plan_is_kept() -> Iterator[None]:
    torch.manual_seed(0)
    fused_attention._plan_on.cache_clear()
    yield
    fused_attention._plan_on.cache_clear()


def outputs(function, inputs: list[Tensor], cotangent: Tensor) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, cotangent)]


def worst(got: list[Tensor], want: list[Tensor]) -> float:
    """Absolute, because a sample of one token has no gradient of q and k; everything here is near 1."""
    return max(float((a - b).detach().abs().max()) for a, b in zip(got, want, strict=True))


def check(lengths: tuple[int, ...], parents: tuple[int, ...], heads: tuple[int, int], width: int, window) -> None:
    total, tree = sum(lengths), Tree.of(lengths, parents)
    qkv = [torch.randn(total, n, width) for n in (heads[0], heads[1], heads[1])]
    cotangent = torch.randn(total, heads[0], width)
    want = outputs(lambda q, k, v: reference.attention(q, k, v, lengths, window, parents), qkv, cotangent)

    def off(tree: Tree, window: int | None) -> float:
        return worst(outputs(lambda q, k, v: packed_attention(q, k, v, tree, window), qkv, cotangent), want)

    assert off(tree, window) < 10 * BOUND
    if len(lengths) > 1:
        chain = tuple(range(-1, len(lengths) - 1))
        wrong = [Tree.of(lengths, chain)] if parents != chain else []
        wrong += [Tree.of(lengths)] if max(parents) >= 0 else []
        assert min(off(other, window) for other in wrong) > FAR
    if window and max(lengths) > window:
        assert min(off(tree, window - 1), off(tree, window + 1)) > FAR


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("window", [None, 4])
def test_trees(tree: str, window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_plan, "_chunk", lambda tokens: 16)  # partial sums wherever a subtree has 32 tokens
    check(*TREES[tree], (2, 1), 16, window)


@pytest.mark.parametrize(("lengths", "parents"), [((5, 2), (-1, -1)), ((3, 2, 1), (-1, 0, 0))], ids=["flat", "tree"])
def test_a_window_that_hides_one_token_or_none(lengths: tuple[int, ...], parents: tuple[int, ...]) -> None:
    """The kernels look at the window only where the longest sample, of five tokens, is longer than it."""
    tree = Tree.of(lengths, parents)
    assert plan_attention(tree).longest == 5
    qkv = [torch.randn(sum(lengths), 1, 16) for _ in range(3)]
    cotangent = torch.randn(sum(lengths), 1, 16)
    found = {
        window: outputs(lambda q, k, v, window=window: packed_attention(q, k, v, tree, window), qkv, cotangent)
        for window in (4, 5, None)
    }
    want = outputs(lambda q, k, v: reference.attention(q, k, v, lengths, 4, parents), qkv, cotangent)
    assert worst(found[4], want) < 10 * BOUND
    assert worst(found[5], found[None]) == 0
    assert worst(found[4], found[None]) > FAR


@pytest.mark.parametrize(("heads", "width"), [((1, 1), 64), ((2, 1), 96), ((1, 1), 128), ((2, 2), 80), ((3, 1), 20)])
def test_head_widths(heads: tuple[int, int], width: int) -> None:
    check((9, 20, 3), (-1, 0, 0), heads, width, None)


@pytest.mark.parametrize("window", [None, 50])
def test_partial_sums(window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_plan, "_chunk", lambda tokens: 64)
    assert plan_attention(Tree.of(*MANY)).num_slots > 0
    check(*MANY, (1, 1), 16, window)


def test_terms_on_both_sides() -> None:
    """What the output is measured with, and the low-rank term that its gradient is still without."""
    lengths, parents = TREES["two roots"]
    heads, width, total = (2, 1), 24, sum(lengths)
    qkv, thin, grad, dh = (torch.randn(*s) for s in ((total, 96), (48, 16), (total, 48), (total, 16)))
    plan = plan_attention(Tree.of(lengths, parents)).to("cpu")
    out, lse_NT = tree_attention(qkv, plan, heads, None, thin)
    leaf = qkv.clone().requires_grad_()
    q, k, v = leaf.unflatten(1, (4, width)).split([2, 1, 1], 1)
    want = reference.attention(q, k, v, lengths, None, parents).flatten(1)
    assert worst([out.x_TI, operand_of(out, 0.5, False)[1]], [want, 0.5 * want @ thin]) < 10 * BOUND
    assert torch.allclose(out.parts.largest_ST.amax(0), want.abs().amax(1), rtol=1e-4)
    (want_dqkv,) = torch.autograd.grad(want, leaf, grad + dh @ thin.t(), retain_graph=True)
    (without,) = torch.autograd.grad(want, leaf, grad)
    overwritten = grad.clone()
    got = tree_attention_backward(overwritten, LowRank(dh, thin), qkv, out.x_TI, lse_NT, plan, heads, None)
    assert float((got - want_dqkv).norm() / want_dqkv.norm()) < BOUND
    assert float((got - without).norm() / want_dqkv.norm()) > FAR
    assert worst([overwritten], [grad + dh @ thin.t()]) < 10 * BOUND


def random_tree(random: np.random.Generator) -> Tree:
    """Up to twelve nodes of up to 150 tokens, in depth-first order."""
    lengths, parents, path = [], [], []
    for node in range(random.integers(1, 13)):
        path = path[: random.integers(0, len(path) + 1)]
        parents.append(path[-1] if path else -1)
        lengths.append(int(random.choice([1, 5, 63, 64, 65, 150])))
        path = [*path, node]
    return Tree.of(tuple(lengths), tuple(parents))


def visible(tree: Tree) -> np.ndarray:
    """The definition: a node's path, and there what comes before."""
    total = sum(tree.lengths)
    mask = np.zeros((total, total), np.int64)
    for node, path in enumerate(tree.paths):
        keys = np.concatenate([tree.starts[a] + np.arange(tree.lengths[a]) for a in path])
        for i in range(tree.lengths[node]):
            query = tree.starts[node] + i
            mask[query, keys[: tree.depths[node] + i + 1]] += 1
    return mask


def by_queries(plan: attention_plan.AttentionPlan, total: int) -> np.ndarray:
    """How often the tiles of queries meet each pair, read as the kernels read them."""
    mask = np.zeros((total, total), np.int64)
    for first, count, before, offset, ancestors in plan.queries.tolist():
        own = first - (before - ancestors)
        for row in range(count):
            last = before + row  # the query's place on its path
            keys = [*plan.path[offset : offset + ancestors].tolist(), *range(own, own + last + 1 - ancestors)]
            np.add.at(mask[first + row], keys, 1)
    return mask


def by_keys(plan: attention_plan.AttentionPlan, total: int) -> np.ndarray:
    mask = np.zeros((total, total), np.int64)
    for first, count, low, high, _ in plan.keys.tolist():
        for key in range(first, first + count):
            mask[max(key, low) : high, key] += 1
    return mask


@pytest.mark.parametrize("chunk", [None, 64])
@pytest.mark.parametrize("seed", range(12))
def test_tiles_meet_every_visible_pair_once(seed: int, chunk: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if chunk:
        monkeypatch.setattr(attention_plan, "_chunk", lambda tokens: chunk)
    tree = random_tree(np.random.default_rng(seed))
    plan, total, want = plan_attention(tree), sum(tree.lengths), visible(tree)
    assert (by_queries(plan, total) == want).all()
    assert (by_keys(plan, total) == want).all()
    assert plan.positions.tolist() == tree.positions().tolist()
    assert plan.queries[:, 1].max() <= attention_plan.QUERIES
    assert plan.keys[:, 1].max() <= attention_plan.KEYS
    wrong = replace(plan, keys=plan.keys[1:])
    assert (by_keys(wrong, total) != want).any()


@pytest.mark.parametrize("seed", range(6))
def test_each_partial_sum_is_read_once(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_plan, "_chunk", lambda tokens: 32)
    plan = plan_attention(random_tree(np.random.default_rng(seed)))
    tile_of = {slot: (first, count) for first, count, _, _, slot in plan.keys.tolist() if slot >= 0}
    assert sorted(tile_of) == list(range(plan.num_slots))
    summed = {s: (first, count) for first, count, slot, n in plan.sums.tolist() for s in range(slot, slot + n)}
    assert summed == tile_of
    alone = {first for first, _, _, _, slot in plan.keys.tolist() if slot < 0}
    assert not alone & {first for first, *_ in plan.sums.tolist()}


def test_tiles_without_tokens_do_nothing() -> None:
    lengths, parents = MANY
    total, heads, width = sum(lengths), (2, 1), 16
    qkv, grad, thin = torch.randn(total, 4 * width), torch.randn(total, 2 * width), torch.zeros(2 * width, 16)
    plan = plan_attention(Tree.of(lengths, parents)).to("cpu")
    pad = {name: torch.nn.functional.pad(getattr(plan, name), (0, 0, 0, 3)) for name in ("queries", "keys", "sums")}
    padded = replace(plan, **pad, path=torch.nn.functional.pad(plan.path, (0, 5)), num_slots=plan.num_slots + 2)
    nothing, both = LowRank(torch.zeros(total, 16), thin), []
    for each in (plan, padded):
        out, lse_NT = tree_attention(qkv, each, heads, None, thin)
        terms = (qkv, out.x_TI, lse_NT, each, heads, None)
        both.append((out.x_TI, lse_NT, tree_attention_backward(grad.clone(), nothing, *terms)))
    assert all(torch.equal(a, b) for a, b in zip(*both, strict=True))
