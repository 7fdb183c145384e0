from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strop.data.store import Sample
from strop.microbatch.order import Order
from strop.microbatch.pack import Microbatch, Microbatches, PackedInputs, labels_of, pack
from training_doubles import Rows


def sample(ids: list[int], learned: list[int]) -> Sample:
    return Sample(np.array(ids, np.int32), np.array(learned, bool))


@st.composite
def families(draw: st.DrawFn) -> list[Sample]:
    """Samples that extend one another: random tries, including prefixes, repetitions and unrelated samples."""
    texts: list[list[int]] = [[]]
    for _ in range(draw(st.integers(1, 25))):
        start = draw(st.sampled_from(texts))
        cut = draw(st.integers(0, len(start)))
        texts.append(start[:cut] + draw(st.lists(st.integers(0, 2), min_size=cut == 0, max_size=30)))
    seed = draw(st.integers(0, 999))
    random = np.random.default_rng(seed)
    return [sample(text, random.random(len(text)) < random.choice([0.2, 1.0])) for text in texts if text]


def paths(batch: Microbatch) -> list[list[int]]:
    """For each node, the places of the tokens from the root to the node's end."""
    starts = np.cumsum((0, *batch.tree.lengths))
    found: list[list[int]] = []
    for node, parent in enumerate(batch.tree.parents):
        assert parent < node
        found.append((found[parent] if parent >= 0 else []) + list(range(starts[node], starts[node + 1])))
    return found


def check(batch: Microbatch, samples: list[Sample]) -> None:
    """Every sample is the beginning of a path, and the labels are exactly the samples' labels, counted."""
    assert sum(batch.tree.lengths) == batch.num_tokens
    wanted: Counter[tuple[tuple[int, ...], int]] = Counter()  # (all tokens up to a position, the label there)
    by_tokens = {}
    for path in paths(batch):
        for end in range(1, len(path) + 1):
            by_tokens[tuple(batch.input_ids[path[:end]].tolist())] = path[end - 1]
    for i in batch.samples:
        ids = samples[i].input_ids.tolist()
        assert tuple(ids) in by_tokens
        for at in np.flatnonzero(samples[i].learned):
            if at > 0:
                wanted[tuple(ids[:at]), ids[at]] += 1
    got: Counter[tuple[tuple[int, ...], int]] = Counter()
    where = {place: path[: path.index(place) + 1] for path in paths(batch) for place in path}
    for row, label, weight in zip(batch.label_rows, batch.labels, batch.weights, strict=True):
        got[tuple(batch.input_ids[where[batch.learned[row]]].tolist()), int(label)] += int(weight)
    assert got == wanted
    assert batch.num_loss_tokens == wanted.total()
    assert batch.num_sample_tokens == sum(len(samples[i].input_ids) for i in batch.samples)
    assert (np.diff(batch.learned) > 0).all()
    assert (np.unique(batch.label_rows) == np.arange(len(batch.learned))).all()
    assert (np.diff(batch.label_rows) >= 0).all()
    assert len({*zip(batch.label_rows.tolist(), batch.labels.tolist(), strict=True)}) == len(batch.labels)


@settings(deadline=None)
@given(families(), st.integers(1, 300), st.booleans(), st.sampled_from([None, 20]))
def test_every_sample_and_label_can_be_rebuilt(
    samples: list[Sample], budget: int, share: bool, long_from: int | None
) -> None:
    batches = pack(samples, range(len(samples)), budget, share=share, long_from=long_from)
    assert sorted(i for batch in batches for i in batch.samples) == list(range(len(samples)))
    for batch in batches:
        assert batch.num_tokens <= budget or len(batch.samples) == 1
        check(batch, samples)
        if long_from is not None:
            lengths = np.array(batch.tree.sample_lengths)
            for node, parent in enumerate(batch.tree.parents):
                assert parent < 0 or (lengths[node] > long_from) == (lengths[parent] > long_from)
        if not share:
            assert set(batch.tree.parents) == {-1}
            assert (batch.weights == 1).all()
            assert (batch.label_rows == np.arange(len(batch.labels))).all()
    if not share:
        assert [i for batch in batches for i in batch.samples] == list(range(len(samples)))


@settings(deadline=None)
@given(families(), st.integers(1, 300), st.booleans())
def test_each_sample_knows_its_own_labels(samples: list[Sample], budget: int, share: bool) -> None:
    for batch in pack(samples, range(len(samples)), budget, share=share):
        chosen = [samples[i] for i in batch.samples]
        sample_M, label_M = labels_of(batch, chosen)
        for number, one in enumerate(chosen):
            learned = [int(one.input_ids[at]) for at in np.flatnonzero(one.learned) if at > 0]
            assert batch.labels[label_M[sample_M == number]].tolist() == learned
        assert np.bincount(label_M, minlength=len(batch.labels)).tolist() == batch.weights.tolist()


def test_inputs_say_where_a_token_is_in_its_sample() -> None:
    head = list(range(20))
    samples = [sample([*head, 50], [1] * 21), sample([*head, 51, 52], [1] * 22), sample([7], [0])]
    (batch,) = pack(samples, range(3), 100)
    inputs = PackedInputs.of(batch, torch.device("cpu"))
    assert inputs.positions_T.tolist() == [*range(20), 20, 20, 21, 0]
    assert inputs.sample_lengths_T.tolist() == [22] * 20 + [21, 22, 22, 1]
    assert inputs.input_ids_T.tolist() == [*head, 50, 51, 52, 7]
    assert (inputs.learned_R.tolist(), inputs.labels_E.tolist()) == (batch.learned.tolist(), batch.labels.tolist())
    assert inputs.weights_E.tolist() == [2] * 19 + [1, 1, 1]


def test_labels_stay_inside_their_sample() -> None:
    samples = [sample([5, 6, 7], [0, 1, 1]), sample([8, 9], [1, 1]), sample([4], [1])]
    (batch,) = pack(samples, [3, 1, 2], 100, share=False)
    assert batch.input_ids.tolist() == [5, 6, 7, 8, 9, 4]
    assert batch.tree.lengths == batch.tree.sample_lengths == (3, 2, 1)
    # position 0 predicts 6, 1 predicts 7, 3 predicts 9; nothing predicts a first token such as 8 or 4
    assert batch.learned.tolist() == [0, 1, 3]
    assert batch.labels.tolist() == [6, 7, 9]
    assert batch.num_loss_tokens == 3
    assert batch.samples == (3, 1, 2)


def test_unlearned_tokens_are_context_only() -> None:
    (batch,) = pack([sample([5, 6, 7, 8], [0, 0, 1, 0])], [0], 100)
    assert batch.learned.tolist() == [1]
    assert batch.labels.tolist() == [7]


def test_a_shared_position_counts_each_samples_own_labels() -> None:
    head = list(range(20))
    samples = [sample([*head, tail], [0] * 18 + [1, learns, 1]) for tail, learns in ((50, 1), (51, 0), (51, 1))]
    (batch,) = pack(samples, [7, 8, 9], 100)
    assert batch.tree.lengths == (20, 1, 1, 1)
    assert batch.samples == (7, 8, 9)
    # 17 predicts 18 for all three, 18 predicts 19 for two of them, and 19 predicts each sample's tail
    assert batch.learned.tolist() == [17, 18, 19]
    assert batch.label_rows.tolist() == [0, 1, 2, 2]
    assert batch.labels.tolist() == [18, 19, 50, 51]
    assert batch.weights.tolist() == [3, 2, 1, 2]
    assert batch.num_loss_tokens == 8
    assert batch.num_sample_tokens == 63


def test_the_budget_counts_computed_tokens() -> None:
    samples = [sample([*range(40), tail], [1] * 41) for tail in range(50, 60)]
    assert [len(batch.samples) for batch in pack(samples, range(10), 50)] == [10]
    assert [len(batch.samples) for batch in pack(samples, range(10), 50, share=False)] == [1] * 10


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("long_from", [None, 37])
def test_the_microbatches_of_a_step_are_its_samples_packed(share: bool, long_from: int | None) -> None:
    store, order = Rows(header=30), Order(20, 6, 1.0, 5, seed=3)
    microbatches = Microbatches(store, order, 80, share, long_from)  # type: ignore[arg-type]
    for step in range(5):
        indices = order.samples(step).tolist()
        want = pack([store[i] for i in indices], indices, 80, share=share, long_from=long_from)
        got = microbatches.of_step(step)
        assert [(g.samples, g.tree, g.input_ids.tolist()) for g in got] == [
            (w.samples, w.tree, w.input_ids.tolist()) for w in want
        ]
        assert sorted(i for batch in got for i in batch.samples) == sorted(indices)
    assert (microbatches.sharing() > 1.2) is share
    tokens = sum(len(store[i].input_ids) for step in range(5) for i in order.samples(step))
    computed = sum(batch.num_tokens for step in range(5) for batch in microbatches.of_step(step))
    assert microbatches.sharing() == tokens / computed
    assert f"{microbatches.sharing():.2f} tokens" in microbatches.explain(microbatches.sharing()) or not share


@pytest.mark.parametrize(("steps", "batch", "measured"), [(3, 6, 3), (40, 6, 16), (40, 500, 3), (40, 2000, 1)])
def test_sharing_is_measured_on_the_first_steps(steps: int, batch: int, measured: int) -> None:
    microbatches = Microbatches(Rows(), Order(20, batch, 1.0, steps, 0), 10_000, True, None)  # type: ignore[arg-type]
    assert len(microbatches.first_steps()) == measured
