"""Samples that share prefixes: loss and every LoRA gradient as if each had been computed by itself. Float64, 1e-12."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from strop.data.store import Sample
from strop.microbatch.pack import Microbatch, PackedInputs, pack
from strop.microbatch.tree import Tree
from strop.model.lora import LoraAdapter
from strop.ops import attention as ops_attention
from tiny_models import write_checkpoint
from training_doubles import adapter_with_b

BOUND, FAR = 1e-12, 1e-3
RANDOM = np.random.default_rng(0)
A, B, C, D, E = (RANDOM.integers(3, 128, 24).tolist() for _ in range(5))


def tails(*heads: list[int], longest: int = 7) -> list[list[int]]:
    """Each head with a tail of its own."""
    return [head + RANDOM.integers(3, 128, RANDOM.integers(2, longest + 1)).tolist() for head in heads]


TREES: dict[str, list[list[int]]] = {
    "one header": tails(A, A, A, A, A, A),
    "nested": tails(A, A + B, A + B, A + B + C, A + B + C, A + D, A + D, A),
    "two prefixes": tails(A, B, A, B, C, B),
    "prefix of another": [A, *tails(A, A, A + B), A + B, A[:20]],
    "identical": [*tails(A) * 3, *tails(A, A, B), A, A],
}
FAMILIES = ["llama3", "mistral-window", "phi3-window", "qwen2-window", "qwen3"]  # all with grouped heads


def samples(texts: Sequence[list[int]], what: str) -> list[Sample]:
    """Learned: everything, the last quarter, or every other token."""
    learned: dict[str, Callable[[int], np.ndarray]] = {
        "all": lambda n: np.ones(n, bool),
        "answers": lambda n: np.arange(n) >= 0.75 * n,
        "some": lambda n: np.random.default_rng(n).random(n) < 0.5,
    }
    return [Sample(np.array(text, np.int32), learned[what](len(text))) for text in texts]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = write_checkpoint(tmp_path_factory.mktemp(family), family)
        return made[family]

    return folder


Change = Callable[[PackedInputs], PackedInputs]


def loss_and_gradients(
    adapter: LoraAdapter, batches: list[Microbatch], change: Change = lambda inputs: inputs
) -> dict[str, torch.Tensor]:
    adapter.flat_grad.zero_()
    total = torch.zeros((), dtype=torch.float64)
    for batch in batches:
        nll = adapter.decoder.nll_sum(change(PackedInputs.of(batch, adapter.decoder.device)))
        nll.backward()
        total += nll.detach()
    keep = adapter.flat.clone()
    adapter.flat.copy_(adapter.flat_grad)
    gradients = {name: tensor.clone() for name, tensor in adapter.state_dict().items()}
    adapter.flat.copy_(keep)
    return {"loss": total, **gradients}


def errors(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> dict[str, float]:
    return {name: ((got[name] - want[name]).norm() / want[name].norm()).item() for name in want}


def separate(rows: list[Sample]) -> list[Microbatch]:
    return [batch for i, row in enumerate(rows) for batch in pack([row], [i], 10_000, share=False)]


def shared(rows: list[Sample], budget: int = 10_000, long_from: int | None = None) -> list[Microbatch]:
    batches = pack(rows, range(len(rows)), budget, long_from=long_from)
    assert sum(batch.num_tokens for batch in batches) < sum(len(row.input_ids) for row in rows), "nothing is shared"
    return batches


@pytest.mark.parametrize("what", ["all", "answers", "some"])
@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("family", FAMILIES)
def test_shared_equals_separate(family: str, tree: str, what: str, folders: Callable[[str], Path]) -> None:
    adapter, rows = adapter_with_b(folders(family)), samples(TREES[tree], what)
    want = loss_and_gradients(adapter, separate(rows))
    got = loss_and_gradients(adapter, shared(rows))
    assert max(errors(got, want).values()) < BOUND


@pytest.mark.parametrize("budget", [60, 100, 200])
def test_under_any_budget(budget: int, folders: Callable[[str], Path]) -> None:
    adapter, rows = (
        adapter_with_b(folders("llama3")),
        samples([text for tree in TREES.values() for text in tree], "some"),
    )
    want = loss_and_gradients(adapter, separate(rows))
    assert max(errors(loss_and_gradients(adapter, shared(rows, budget)), want).values()) < BOUND


def test_with_checkpointing(folders: Callable[[str], Path]) -> None:
    adapter, batches = adapter_with_b(folders("qwen3")), shared(samples(TREES["nested"], "all"))
    want = loss_and_gradients(adapter, batches)
    adapter.decoder.gradient_checkpointing = True
    adapter.decoder.train()
    got = loss_and_gradients(adapter, batches)
    assert all(torch.equal(got[name], want[name]) for name in want)


LONG = 16  # the tiny model's original_max_position_embeddings


def test_longrope_with_samples_of_both_classes(folders: Callable[[str], Path]) -> None:
    head, longer = A[:10], A[:10] + B[:8]
    texts = [
        *tails(head, head, head, head, longest=6),
        *tails(longer, longer, longer),
        longer[:LONG],
        longer[: LONG + 1],
    ]
    adapter, rows = adapter_with_b(folders("phi3-longrope")), samples(texts, "all")
    assert adapter.decoder.config.rope.long_from == LONG
    want = loss_and_gradients(adapter, separate(rows))
    batches = shared(rows, long_from=LONG)
    assert [batch.tree.parents.count(-1) for batch in batches] == [2], "one tree for each class"
    assert max(errors(loss_and_gradients(adapter, batches), want).values()) < BOUND
    # the control: classes that share turn a short sample's prefix as a long one's
    assert errors(loss_and_gradients(adapter, shared(rows)), want)["loss"] > FAR


def in_node(inputs: PackedInputs) -> PackedInputs:
    """Positions that begin again with each node."""
    flat = Tree.of(inputs.tree.lengths)
    return replace(inputs, positions_T=torch.from_numpy(flat.positions()))


def leaked(inputs: PackedInputs) -> PackedInputs:
    """The last node hangs on the one before it, its sibling."""
    parents = inputs.tree.parents
    assert parents[-1] == parents[-2] >= 0
    return replace(inputs, tree=Tree.of(inputs.tree.lengths, (*parents[:-1], len(parents) - 2)))


def cut_off(inputs: PackedInputs) -> PackedInputs:
    """The last node sees no ancestors."""
    packing = Tree.of(inputs.tree.lengths, (*inputs.tree.parents[:-1], -1))
    return replace(inputs, tree=packing)


def unweighted(inputs: PackedInputs) -> PackedInputs:
    return replace(inputs, weights_E=torch.ones_like(inputs.weights_E))


def one_label_each(inputs: PackedInputs) -> PackedInputs:
    """Where samples part, the first one's label only."""
    first = inputs.label_rows_E.diff(prepend=torch.tensor([-1])) > 0
    parts = {name: getattr(inputs, name)[first] for name in ("label_rows_E", "labels_E", "weights_E")}
    return replace(inputs, **parts)


@pytest.mark.parametrize("change", [in_node, leaked, cut_off, unweighted, one_label_each])
@pytest.mark.parametrize("family", ["llama3", "qwen3"])
def test_a_wrong_tree_is_far_off(family: str, change: Change, folders: Callable[[str], Path]) -> None:
    """The control: one thing of what the decoder reads is wrong."""
    adapter, rows = adapter_with_b(folders(family)), samples(TREES["one header"], "all")
    want = loss_and_gradients(adapter, separate(rows))
    got = errors(loss_and_gradients(adapter, shared(rows), change), want)
    assert got.pop("loss") > 1e6 * BOUND
    assert min(got.values()) > FAR


def test_dropping_the_prefixs_gradient_is_far_off(
    folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: the loss is right, and what the tails teach the prefix is lost."""
    adapter, rows = adapter_with_b(folders("llama3")), samples(TREES["nested"], "answers")
    want = loss_and_gradients(adapter, separate(rows))
    monkeypatch.setattr(
        ops_attention,
        "_along",
        lambda pieces, path: torch.cat([*(pieces[node].detach() for node in path[:-1]), pieces[path[-1]]]),
    )
    got = errors(loss_and_gradients(adapter, shared(rows)), want)
    assert got.pop("loss") < BOUND
    assert max(got.values()) > FAR


@pytest.mark.parametrize("family", ["mistral-window", "phi3-window", "qwen2-window"])
@pytest.mark.parametrize("wrong", [None, 5, 7])
def test_a_wrong_window_is_far_off(
    family: str, wrong: int | None, folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: a node that has ancestors sees all of them, or one position more or less than 6."""
    adapter, rows = adapter_with_b(folders(family)), samples(TREES["one header"], "answers")
    want = loss_and_gradients(adapter, separate(rows))
    one_node = ops_attention._one_node

    def widened(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None) -> torch.Tensor:
        return one_node(q, k, v, wrong if window and len(q) < len(k) else window)

    monkeypatch.setattr(ops_attention, "_one_node", widened)
    got = errors(loss_and_gradients(adapter, shared(rows)), want)
    assert max(got.values()) > FAR
