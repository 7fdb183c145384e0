"""The loss of each row, from packed passes in which rows share prefixes, against every row by itself."""

import numpy as np
import pytest
import torch

from strop.data.store import Sample
from strop.evaluation import held_out_loss as loss
from strop.evaluation.held_out_loss import held_out_loss, row_losses, token_losses
from strop.microbatch.pack import Microbatch, labels_of, pack
from strop.microbatch.tree import Tree
from strop.model.decoder import Decoder
from strop.model.pretrained.weights import load_decoder
from tiny_models import write_checkpoint


class Rows(list[Sample]):
    """A store in memory."""


def rows(count: int = 40) -> Rows:
    """Samples that often share a prefix or are wholly alike, some with two learned stretches."""
    rng = np.random.default_rng(0)
    headers = [rng.integers(3, 120, size) for size in (0, 12, 30)]
    bodies = [rng.integers(3, 120, size) for size in (3, 9, 17, 18, 40)]
    made = Rows()
    for i in range(count):
        ids = np.concatenate([headers[i % 3], bodies[i % 5], rng.integers(3, 120, i % 4)]).astype(np.int32)
        learned = rng.random(len(ids)) < 0.4
        learned[-1] = True
        made.append(Sample(ids, learned))
    return made


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return load_decoder(write_checkpoint(tmp_path_factory.mktemp("model"), "llama3"), torch.float64)


def one_by_one(decoder: Decoder, store: Rows) -> list[float]:
    losses = []
    for sample in store:
        [batch] = pack([sample], [0], 1000)
        with torch.no_grad():
            losses.append(held_out_loss(decoder, Rows([sample]), 1000).nll * batch.num_loss_tokens)
    return losses


@pytest.mark.parametrize("max_tokens", [60, 400])
def test_each_row_has_the_loss_that_it_has_alone(max_tokens: int, decoder: Decoder) -> None:
    store = rows()
    sums = row_losses(decoder, store, max_tokens)
    np.testing.assert_allclose(sums.nll_N, one_by_one(decoder, store), rtol=1e-10)
    together = held_out_loss(decoder, store, max_tokens)
    assert sums.nll == pytest.approx(together.nll, rel=1e-12)
    assert sums.tokens_N.sum() == together.num_loss_tokens


def test_missed_tokens_are_those_that_are_not_the_likeliest(decoder: Decoder) -> None:
    store = rows()
    for sample in store[::3]:  # a row of which some tokens are what the model would say
        with torch.no_grad():
            ids = torch.from_numpy(sample.input_ids.astype(np.int64))
            said = decoder.logits(decoder.packed_hidden_states(ids, Tree.of((len(ids),)))).argmax(-1)
        sample.input_ids[-1] = int(said[-2])
    _, missed_N = token_losses(decoder, store, 60)
    wanted = []
    for sample in store:
        ids = torch.from_numpy(sample.input_ids.astype(np.int64))
        with torch.no_grad():
            said = decoder.logits(decoder.packed_hidden_states(ids, Tree.of((len(ids),)))).argmax(-1)
        learned = np.flatnonzero(sample.learned[1:])
        wanted.append(int((said[learned] != ids[learned + 1]).sum()))
    assert missed_N.tolist() == wanted
    assert any(sample.learned[1:].sum() > missed for sample, missed in zip(store, wanted, strict=True))


def test_labels_of_the_wrong_rows_are_seen(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(batch: Microbatch, samples: list[Sample]) -> tuple[np.ndarray, np.ndarray]:
        sample_M, label_M = labels_of(batch, samples)
        return (sample_M + 1) % len(samples), label_M

    store = rows()
    monkeypatch.setattr(loss, "labels_of", shifted)
    assert not np.allclose(row_losses(decoder, store, 400).nll_N, one_by_one(decoder, store), rtol=0.01)


def test_logits_in_pieces(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    want = row_losses(decoder, rows(), 400)
    monkeypatch.setattr("strop.ops.linear_cross_entropy.LOGITS_BYTES", 4 * 128 * 7)
    np.testing.assert_allclose(row_losses(decoder, rows(), 400).nll_N, want.nll_N, rtol=1e-12)
