"""Samples that are longer than max_seq_length: cut at their end, split, or dropped."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from strop.data.store import STOP_CUT, TRUNCATED, StoreSettings
from strop.data.template import Encoded

DROPPED = "longer than max_seq_length"
"""The kind under which dropped rows are counted."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """A row's samples with their flags, none if it is dropped; and how many tokens they have lost."""

    samples: Sequence[tuple[Encoded, int]]
    tokens_cut: int = 0


def fit(
    samples: Sequence[Encoded],
    is_document: bool,
    bos_id: int | None,
    settings: StoreSettings,
    stop_ids: NDArray[np.int32],
) -> Fitted | str:
    """Samples of a row that are no longer than the limit, or why nothing of it is left to learn.

    Args:
        samples: Of one row.
        is_document: Whether the row is a text, which can be split.
        bos_id: Begins each part of a split document; None if the model uses none.
        settings: The limit, and what to do with longer samples.
        stop_ids: Ids that end generation.
    """
    limit = settings.max_seq_length
    if not any(sample.learned.any() for sample in samples):
        return "no token is learned: the answer is empty after tokenisation"
    if all(len(sample.input_ids) <= limit for sample in samples):
        return Fitted([(sample, 0) for sample in samples if sample.learned.any()])
    if settings.long_samples == "drop":
        fitting = [(sample, 0) for sample in samples if len(sample.input_ids) <= limit and sample.learned.any()]
        return _with_loss(fitting, sum(len(sample.input_ids) for sample in samples if len(sample.input_ids) > limit))
    if settings.long_samples == "split" and is_document:
        return Fitted(
            [(part, 0) for sample in samples for part in _split(sample, bos_id, limit, settings.long_overlap)]
        )
    kept = [_cut(sample, limit, stop_ids) for sample in samples if sample.learned[:limit].any()]
    if not kept:
        prompt = int(samples[0].learned.argmax())
        return f"no answer token is left: the prompt alone has {prompt:,} tokens and max_seq_length is {limit:,}"
    tokens_cut = sum(max(0, len(sample.input_ids) - limit) for sample in samples)
    return _with_loss(kept, tokens_cut) if len(kept) < len(samples) else Fitted(kept, tokens_cut)


def _with_loss(kept: list[tuple[Encoded, int]], tokens_cut: int) -> Fitted:
    """Samples of a row that has lost whole answers: the last one counts as cut. None are left of a dropped row."""
    if not kept:
        return Fitted([])
    sample, flags = kept[-1]
    return Fitted([*kept[:-1], (sample, flags | TRUNCATED)], tokens_cut)


def _cut(sample: Encoded, limit: int, stop_ids: NDArray[np.int32]) -> tuple[Encoded, int]:
    ids, learned = sample.input_ids, sample.learned
    if len(ids) <= limit:
        return sample, 0
    stop_cut = np.isin(ids[limit:][learned[limit:]], stop_ids).any()
    return Encoded(ids[:limit], learned[:limit], sample.num_turns), TRUNCATED | (STOP_CUT if stop_cut else 0)


def _split(sample: Encoded, bos_id: int | None, limit: int, overlap: int) -> list[Encoded]:
    """Windows over a document; what a window repeats is context.

    So each token is learned once, except the first of a window that begins with neither BOS nor a repetition.
    """
    begin = [] if bos_id is None or sample.input_ids[0] != bos_id else [bos_id]
    ids, learned = sample.input_ids[len(begin) :], sample.learned[len(begin) :]
    size = limit - len(begin)
    parts = []
    for start in range(0, len(ids), size - overlap):
        window = learned[start : start + size].copy()
        window[: overlap if start else 0] = False
        tokens = np.concatenate([np.array(begin, np.int32), ids[start : start + size]])
        mask = np.concatenate([np.zeros(len(begin), np.bool_), window])
        mask[0] = False  # nothing predicts it
        parts.append(Encoded(tokens, mask))
    return [part for part in parts if part.learned.any()]
