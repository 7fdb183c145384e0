"""Every op against its definition in `ops.reference`: value and every gradient, in float64.

The control of each is the same comparison with one thing wrong; it must miss by far more than the bound.
"""

import numpy as np
import pytest
import torch

from strop.microbatch.keys import token_keys
from strop.microbatch.tree import Tree
from strop.ops import reference
from strop.ops.attention import attention
from strop.ops.dropout import dropout
from strop.ops.elementwise import rms_norm, rotary, swiglu
from strop.ops.linear import FrozenWeight, frozen_linear, lora_linear
from strop.ops.linear_cross_entropy import linear_cross_entropy

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
def test_attention_of_samples(lengths: tuple[int, ...], window: int | None, heads: tuple[int, int]) -> None:
    tokens = sum(lengths)
    q, k, v = randn(tokens, heads[0], 16), randn(tokens, heads[1], 16), randn(tokens, heads[1], 16)
    want = gradients(reference.attention(q, k, v, lengths, window), [q, k, v])
    got = gradients(attention(q, k, v, Tree.of(lengths), window), [q, k, v])
    # q and k of a one-token sample have gradient zero, so compare absolutely against the value's scale
    assert max((a - b).abs().max().item() for a, b in zip(got, want, strict=True)) < BOUND
    if len(lengths) > 1:
        leaky = gradients(attention(q, k, v, Tree.of((tokens,)), window), [q, k, v])
        assert worst(leaky, want) > 1e-2


TREES = {
    "one prefix": ((7, 3, 1, 9), (-1, 0, 0, 0)),
    "nested, and a sample that ends on the way": ((6, 4, 5, 2, 3, 8), (-1, 0, 1, 1, 3, 0)),
    "two roots": ((5, 2, 1, 4, 4, 3, 2), (-1, 0, 0, -1, 3, 4, -1)),
}


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("heads", [(4, 4), (6, 2)])
def test_attention_of_a_tree(tree: str, window: int | None, heads: tuple[int, int]) -> None:
    lengths, parents = TREES[tree]
    tokens, tree = sum(lengths), Tree.of(lengths, parents)
    q, k, v = randn(tokens, heads[0], 16), randn(tokens, heads[1], 16), randn(tokens, heads[1], 16)
    want = gradients(reference.attention(q, k, v, lengths, window, parents), [q, k, v])
    assert worst(gradients(attention(q, k, v, tree, window), [q, k, v]), want) < BOUND
    assert worst(gradients(attention(q, k, v, Tree.of(lengths), window), [q, k, v]), want) > 1e-2
    chain = Tree.of(lengths, tuple(range(-1, len(lengths) - 1)))  # siblings see each other
    assert worst(gradients(attention(q, k, v, chain, window), [q, k, v]), want) > 1e-2


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("window", [None, 4])
def test_a_tree_is_its_samples_one_by_one(tree: str, window: int | None) -> None:
    """The definition with parents against the definition without: every path from a root, by itself."""
    lengths, parents = TREES[tree]
    q, k, v = (randn(sum(lengths), 2, 16, grad=False) for _ in range(3))
    got = reference.attention(q, k, v, lengths, window, parents).split(lengths)
    tree = Tree.of(lengths, parents)
    for node, path in enumerate(tree.paths):
        one = [torch.cat([x.split(lengths)[above] for above in path]) for x in (q, k, v)]
        sample = reference.attention(*one, (len(one[0]),), window)
        assert (sample[-lengths[node] :] - got[node]).abs().max() < BOUND
        assert (
            torch.from_numpy(tree.positions()).split(lengths)[node].tolist()
            == list(range(len(sample)))[-lengths[node] :]
        )


@pytest.mark.parametrize("tree", TREES)
def test_ends_of_subtrees_say_who_sees_whom(tree: str) -> None:
    lengths, parents = TREES[tree]
    tree, total = Tree.of(lengths, parents), sum(lengths)
    node = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    place = torch.arange(total)
    by_ends = (place[:, None] >= place) & (place[:, None] < torch.tensor(tree.ends)[node])
    by_paths = [[k <= q and node[k] in tree.paths[node[q]] for k in range(total)] for q in range(total)]
    assert by_ends.tolist() == by_paths


def test_nodes_out_of_order_are_refused() -> None:
    for parents in [(0, -1), (-1, 2, 0), (-1, -1, 0), (-1, 0, 0, 1)]:
        with pytest.raises(ValueError, match="is not on the path to the node before it"):
            Tree.of((3,) * len(parents), parents)


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


def test_dropout_is_its_definition() -> None:
    x, samples, positions = randn(6, 40), [0, 0, 3, 3, 3, 2**31 + 5], [0, 1, 0, 1, 2, 0]
    keys = torch.from_numpy(token_keys(np.array(samples), np.array(positions)))
    for seed in (0, 7, 2**32 - 1):
        want = reference.dropout(x, samples, positions, seed, 0.3)
        assert worst(gradients(dropout(x, keys, seed, 0.3), [x]), gradients(want, [x])) < BOUND
        assert 0.1 < (want == 0).double().mean() < 0.5
    assert worst(gradients(dropout(x, keys.roll(1), 7, 0.3), [x]), gradients(dropout(x, keys, 7, 0.3), [x])) > 0.1


def test_dropout_draws_as_if_at_random() -> None:
    """Each share within five standard deviations: of all, of each row and column, and of pairs of neighbours."""
    keys = torch.from_numpy(token_keys(np.arange(512) // 16, np.arange(512) % 16))
    zeroed = torch.stack([dropout(torch.ones(512, 256), keys, seed, 0.3) == 0 for seed in range(64)]).double()
    for each, count in ((zeroed, 64 * 512 * 256), (zeroed.mean((0, 2)), 64 * 256), (zeroed.mean((0, 1)), 64 * 512)):
        assert (each.mean() if count > 10**6 else each).sub(0.3).abs().max() < 5 * (0.21 / count) ** 0.5
    for other in (zeroed.roll(1, 0), zeroed.roll(1, 1), zeroed.roll(1, 2)):
        assert abs((zeroed * other).mean() - 0.09) < 5 * 0.25 / (64 * 512 * 256) ** 0.5


def test_lora_dropout_keeps_the_mean_and_the_base() -> None:
    x, weight, a, b = randn(8, 40), randn(48, 40, grad=False), randn(12, 40), randn(40, 4)
    base = torch.nn.functional.linear(x, weight)
    full = reference.lora_linear(x, weight, None, a, b, ROWS, 1.0) - base
    keys = torch.from_numpy(token_keys(np.zeros(8, np.int64), np.arange(8)))

    def drawn(step: int) -> torch.Tensor:
        def drop(module: int, x: torch.Tensor) -> torch.Tensor:
            return dropout(x, keys, 3 * step + module, 0.3)

        return lora_linear(x, FrozenWeight(weight), None, a, b, ROWS, 1.0, drop) - base

    draws = [drawn(step) for step in range(4000)]
    mean = torch.stack([d.detach() for d in draws]).mean(0)
    assert ((mean - full).norm() / full.norm()).item() < 0.03
    assert not torch.allclose(draws[0], draws[1])


@pytest.mark.parametrize("several", [False, True])
def test_linear_cross_entropy(several: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, head = randn(29, 40), randn(101, 40, grad=False)
    rows = torch.arange(29)
    if several:  # up to four labels a row, each with a weight
        rows = rows.repeat_interleave(torch.randint(1, 5, (29,)))
    labels = (torch.randint(0, 101, (29,))[rows] + torch.arange(len(rows))) % 101  # no row has one twice
    weights = torch.randint(1, 6, (len(rows),)).float() if several else torch.ones(len(rows))
    want = gradients(reference.linear_cross_entropy(hidden, head, rows, labels, weights), [hidden])

    def fast(rows: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> float:
        return worst(gradients(linear_cross_entropy(hidden, FrozenWeight(head), rows, labels, weights), [hidden]), want)

    assert fast(rows, labels, weights) < BOUND
    monkeypatch.setattr("strop.ops.linear_cross_entropy.LOGITS_BYTES", 101 * 4 * 8)  # four chunks of eight rows
    assert fast(rows, labels, weights) < BOUND
    assert fast(rows, labels.roll(1), weights) > 1e-2
    assert fast(rows, labels, weights.roll(1)) > 1e-2 or not several
    assert fast(rows.flip(0), labels, weights) > 1e-2


def test_one_label_a_row_is_pytorchs_cross_entropy() -> None:
    hidden, head, labels = randn(9, 40), randn(101, 40, grad=False), torch.randint(0, 101, (9,))
    want = torch.nn.functional.cross_entropy(hidden @ head.T, labels, reduction="sum")
    got = reference.linear_cross_entropy(hidden, head, torch.arange(9), labels, torch.ones(9))
    assert ((got - want) / want).abs().item() < BOUND
