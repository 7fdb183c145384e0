"""A microbatch as one block of numbers: it reads back unchanged, padded or not, and padding belongs to no sample."""

from dataclasses import astuple, fields, replace

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="Triton has builds for Linux only")

from strop.data.store import Sample
from strop.fused.inputs import Capacity, FusedInputs, Padding, lay_out, read_inputs
from strop.microbatch.pack import Microbatch, pack
from strop.microbatch.tree import Tree
from strop.ops.triton import attention_plan


def batch_of(seed: int, count: int = 9) -> Microbatch:
    """Samples, some with shared prefixes or prefixes of others, and labels that several of them learn."""
    random = np.random.default_rng(seed)
    prefix = random.integers(3, 90, 70)
    rows = [prefix[: random.integers(2, 71)] for _ in range(count)]
    rows = [np.concatenate((row, random.integers(3, 90, random.integers(0, 90)))) for row in rows]
    samples = [Sample(row.astype(np.int32), random.random(len(row)) < 0.5) for row in rows]
    (batch,) = pack(samples, range(count), 100_000)
    return batch


def read(batch: Microbatch, padding: Padding) -> tuple[FusedInputs, Capacity]:
    block, capacity = lay_out(batch, padding)
    return read_inputs(block, capacity), capacity


def labelled(inputs: FusedInputs) -> list[tuple[int, int, float]]:
    """(position, label, weight) as the loss kernel reads them."""
    offsets = inputs.label_offsets.tolist()
    return [
        (position, int(inputs.labels_E[entry]), float(inputs.weights_E[entry]))
        for row, position in enumerate(inputs.learned_R.tolist())
        for entry in range(offsets[row], offsets[row + 1])
    ]


@pytest.mark.parametrize("padding", ["none", "tiles", "graph"])
@pytest.mark.parametrize("seed", range(4))
def test_a_block_reads_back_the_batch(seed: int, padding: Padding) -> None:
    batch = batch_of(seed)
    inputs, capacity = read(batch, padding)
    total, tokens = batch.num_tokens, capacity.tokens
    assert inputs.input_ids_T[:total].tolist() == batch.input_ids.tolist()
    assert inputs.sample_lengths_T[:total].tolist() == np.repeat(batch.tree.sample_lengths, batch.tree.lengths).tolist()
    positions = Tree.of(batch.tree.lengths, batch.tree.parents).positions()
    assert inputs.plan.positions[:total].tolist() == positions.tolist()
    learned = batch.learned[batch.label_rows].tolist()
    assert labelled(inputs) == list(zip(learned, batch.labels.tolist(), batch.weights.tolist(), strict=True))
    assert (inputs.learned_R[len(batch.learned) :] == tokens).all()
    assert (inputs.weights_E[len(batch.labels) :] == 0).all()
    wrong = labelled(replace(inputs, label_offsets=inputs.label_offsets - 1))
    assert wrong != labelled(inputs)
    if padding == "none":
        assert tokens == total


@pytest.mark.parametrize("seed", range(4))
def test_padding_is_separate_from_the_batch(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No query of the batch sees a key of the padding, and no query of the padding sees a key of the batch."""
    monkeypatch.setattr(attention_plan, "_chunk", lambda tokens: 32)
    batch = batch_of(seed)
    total = batch.num_tokens
    inputs, capacity = read(batch, "graph")
    exact, exact_capacity = read(batch, "none")
    assert capacity.tokens > total
    plan = inputs.plan
    assert [len(x) for x in (plan.queries, plan.path, plan.keys, plan.sums)] == list(astuple(capacity)[3:7])
    for name in ("queries", "keys"):
        kept = [row for row in getattr(plan, name).tolist() if row[1] and row[0] < total]
        rest = [row for row in getattr(plan, name).tolist() if row[1] and row[0] >= total]
        own = getattr(exact.plan, name).tolist()
        assert sorted(row[:4] for row in kept) == sorted(row[:4] for row in own)
        assert sum(row[1] for row in rest) == capacity.tokens - total
    assert all(row[2] >= total for row in plan.keys.tolist() if row[1] and row[0] >= total)
    assert plan.num_slots >= exact_capacity.slots


GRAPH = {"tokens": (1 / 32, 64), "learned": (1 / 8, 16), "queries": (1 / 8, 16), "keys": (1 / 8, 16)}
TILES = {"tokens": (0, 64), "learned": (0, 64)}


@pytest.mark.parametrize(("padding", "most"), [("graph", GRAPH), ("tiles", TILES)])
def test_rounding_up(padding: Padding, most: dict[str, tuple[float, int]]) -> None:
    """Monotone, idempotent, never smaller; numbers that cost time grow by at most their share or smallest step."""
    names = [field.name for field in fields(Capacity)]
    before = Capacity(*[0] * len(names))
    assert before.rounded(padding) == before
    assert replace(before, longest=2_047).rounded(padding).longest == 2_047  # Phi-3's window is not reached
    for count in [*range(1, 3000), *range(3000, 70_000, 17)]:
        rounded = Capacity(*[count] * len(names)).rounded(padding)
        assert rounded.rounded(padding) == rounded
        for name in names:
            value = getattr(rounded, name)
            assert value >= max(count, getattr(before, name))
            share, least = most.get(name, (1, 4096))
            assert value - count < max(least, share * count + 1)
        before = rounded


def test_similar_batches_share_a_graph() -> None:
    """The length of the ancestors' path hardly affects cost, and it differs from batch to batch."""
    capacity = Capacity(13_900, 3_050, 3_060, 270, 200, 270, 5, 21, 160)
    same = replace(capacity, tokens=13_950, labels=3_100, path=330, sums=7, slots=23, longest=171)
    assert capacity.rounded("graph") == same.rounded("graph")
    assert capacity.rounded("graph") != replace(capacity, tokens=14_400).rounded("graph")


def test_batches_of_one_capacity_have_blocks_of_one_shape() -> None:
    blocks = [lay_out(batch_of(seed), "graph") for seed in range(12)]
    sizes: dict[Capacity, set[int]] = {}
    for block, capacity in blocks:
        assert block.dtype == torch.int32
        sizes.setdefault(capacity, set()).add(len(block))
    assert all(len(found) == 1 for found in sizes.values())
    exact = {len(lay_out(batch_of(seed), "none")[0]) for seed in range(12)}
    assert len(exact) == 12


def test_views_share_the_blocks_memory() -> None:
    """A captured graph reads whatever was copied into the block."""
    (first, capacity), (second, _) = lay_out(batch_of(0), "graph"), lay_out(batch_of(0), "graph")
    tensor = torch.zeros(len(first), dtype=torch.int32)
    inputs = read_inputs(tensor, capacity)
    tensor.copy_(second)
    want, _ = read(batch_of(0), "graph")
    assert torch.equal(inputs.input_ids_T, want.input_ids_T)
    assert torch.equal(inputs.weights_E, want.weights_E)
    assert torch.equal(inputs.plan.keys, want.plan.keys)
