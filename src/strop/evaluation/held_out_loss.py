"""Held-out loss: how surprised a model is by answers that it was not trained on."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from strop.data.store import Sample, SampleStore
from strop.evaluation.intervals import RowSums
from strop.microbatch.pack import Microbatch, PackedInputs, labels_of, pack
from strop.model.decoder import Decoder

_SAMPLES_AT_A_TIME = 1024

Samples = SampleStore | Sequence[Sample]


@dataclass(frozen=True, slots=True)
class HeldOutLoss:
    """The sum of -log p in nats over the learned tokens of a store, or of a rank's part of it, and their number."""

    total: float
    num_loss_tokens: int

    @property
    def nll(self) -> float:
        """The mean."""
        return self.total / self.num_loss_tokens


@torch.inference_mode()
def held_out_loss(
    decoder: Decoder,
    store: Samples,
    max_tokens: int,
    check_stop: Callable[[], None] = lambda: None,
    nll_of: Callable[[Microbatch], Tensor] | None = None,
    part: tuple[int, int] = (0, 1),
) -> HeldOutLoss:
    """Evaluate a rank's samples of `store`, packed into microbatches of at most `max_tokens` computed tokens.

    Args:
        decoder: With or without its LoRA terms enabled.
        store: The held-out samples.
        max_tokens: Token budget of a microbatch; affects nothing but rounding.
        check_stop: Called between microbatches; may raise to end early.
        nll_of: Another function for the decoder's loss of a microbatch, such as the one used in training.
        part: A rank and the number of ranks that divide the samples among them.
    """
    was_training = decoder.training
    decoder.eval()
    total, count = 0.0, 0
    try:
        for microbatch, _ in _microbatches(decoder, store, max_tokens, part):
            check_stop()
            nll = nll_of(microbatch) if nll_of else decoder.nll_sum(PackedInputs.of(microbatch, decoder.device))
            total += nll.item()
            count += microbatch.num_loss_tokens
    finally:
        decoder.train(was_training)
    return HeldOutLoss(total, count)


def row_losses(decoder: Decoder, store: Samples, max_tokens: int) -> RowSums:
    """`held_out_loss` per row: the same microbatches, in which a prefix that rows share is computed once.

    Args:
        decoder: With or without its LoRA terms enabled.
        store: The held-out samples.
        max_tokens: Token budget of a microbatch.
    """
    sums, _ = token_losses(decoder, store, max_tokens)
    return sums


@torch.inference_mode()
def token_losses(decoder: Decoder, store: Samples, max_tokens: int) -> tuple[RowSums, NDArray[np.int64]]:
    """`row_losses`, and how many of each row's learned tokens are not the model's likeliest, (N,)."""
    decoder.eval()
    nll_N, tokens_N, missed_N = np.zeros(len(store)), np.zeros(len(store)), np.zeros(len(store), np.int64)
    for microbatch, samples in _microbatches(decoder, store, max_tokens):
        nll_E, likeliest_E = (x.cpu() for x in decoder.label_nll(PackedInputs.of(microbatch, decoder.device)))
        sample_M, label_M = labels_of(microbatch, samples)
        rows = list(microbatch.samples)
        nll_N[rows] = np.bincount(sample_M, nll_E.double().numpy()[label_M], len(rows))
        tokens_N[rows] = np.bincount(sample_M, minlength=len(rows))
        missed_N[rows] = np.bincount(sample_M[~likeliest_E.numpy()[label_M]], minlength=len(rows))
    return RowSums(nll_N, tokens_N), missed_N


def _microbatches(
    decoder: Decoder, store: Samples, max_tokens: int, part: tuple[int, int] = (0, 1)
) -> Iterator[tuple[Microbatch, list[Sample]]]:
    """Each microbatch of a rank's part, with its samples."""
    for start in range(0, len(store), _SAMPLES_AT_A_TIME):
        indices = range(start, min(start + _SAMPLES_AT_A_TIME, len(store)))
        samples = [store[i] for i in indices]
        for microbatch in pack(samples, indices, max_tokens, long_from=decoder.config.rope.long_from, part=part):
            yield microbatch, [samples[i - start] for i in microbatch.samples]
