"""Counts over every sample after truncation, and what in them stops a run.

The store is counted in blocks, so memory does not grow with the data, except for three numbers per sample.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from strop.data.examples import Origin
from strop.data.store import SPECIAL_TEXT, STOP_CUT, TRUNCATED, SampleStore
from strop.data.template import Template
from strop.data.tokenizer import texts_of
from strop.errors import DataError
from strop.readable import counted

_SAMPLES_AT_A_TIME = 4096
_HISTOGRAM_BINS = 20
_ORIGINS_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens per sample: extremes, percentiles, and a histogram; bin i counts edges[i] <= length < edges[i + 1]."""

    min: int
    median: float
    p95: float
    max: int
    edges: tuple[int, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SourceReport:
    """One source of a mixture: its samples, each once, and its part of an epoch in samples and tokens."""

    name: str
    format: str
    columns: str
    samples: int
    epoch_samples: int
    epoch_tokens: int


@dataclass(frozen=True, slots=True)
class StoreReport:
    """Counts over one store.

    Attributes:
        rows_read: Rows read, good and bad.
        rows_kept: Rows that became samples.
        samples: A row becomes several if the chat template rewrites earlier turns, or if a document is split.
        tokens_cut: Tokens beyond max_seq_length.
        unused: Rows with each key that is not used.
        found: What is out of the ordinary in the files, such as another encoding: `FILE: phrase`.
        sources: What the rows came from.
        skipped: Rows skipped, by kind of fault.
        num_tokens: In all samples.
        num_loss_tokens: Learned tokens among them.
        lengths: Tokens per sample.
        truncated: Samples cut at max_seq_length.
        stop_cut: Truncated samples that lost a stop token they would have learned.
        stop_learned: Samples in which at least one stop token is learned.
        double_bos: Samples that begin with two BOS tokens.
        shared_prefix: Length of the prefix that all samples share, in tokens.
        special_text: Rows whose text contains a control token, such as `<|im_end|>`, which becomes that token.
        special_text_origins: Where the first of these rows are.
        duplicates: Rows that repeat an earlier row's prompt and answer.
    """

    rows_read: int
    rows_kept: int
    samples: int
    tokens_cut: int
    unused: dict[str, int]
    found: tuple[str, ...]
    sources: tuple[SourceReport, ...]
    skipped: dict[str, int]
    num_tokens: int
    num_loss_tokens: int
    lengths: Lengths
    truncated: int
    stop_cut: int
    stop_learned: int
    double_bos: int
    shared_prefix: int
    special_text: int
    special_text_origins: tuple[Origin, ...]
    duplicates: int


@dataclass(frozen=True, slots=True)
class Overlap:
    """Validation rows that are training rows too: with the same answer, and with any answer (by 64-bit hashes)."""

    rows: int
    prompts: int


@dataclass(frozen=True, slots=True)
class PreviewRow:
    """A sample as the model sees it: the text of each token, and which ones are learned."""

    origin: Origin
    input_ids: tuple[int, ...]
    texts: tuple[str, ...]
    learned: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What `strop check` prints. `overlap` and `validation` are None without validation rows."""

    template: str
    train_on: str
    stop_tokens: tuple[str, ...]
    max_seq_length: int
    train: StoreReport
    validation: StoreReport | None
    overlap: Overlap | None
    preview: tuple[PreviewRow, ...]

    def refuse(self) -> None:
        """Stop a run that would train on nothing, never learn to stop, or begin every sample wrongly.

        Raises:
            DataError: With what is wrong and how to put it right.
        """
        for name, part in (("training", self.train), ("validation", self.validation)):
            if part is None:
                continue
            if not part.rows_kept:
                raise DataError(f"there are no {name} rows")
            if not part.num_loss_tokens:
                raise DataError(f"no token of the {name} rows is learned; check that data.template fits them")
            if part.double_bos:
                raise DataError(
                    f"{part.double_bos:,} of {counted(part.samples, f'{name} sample')} begin with two BOS tokens, "
                    "because the text of the rows already begins with one; remove it from the rows"
                )
        if not self.train.stop_learned:
            has_documents = any(source.format == "text" for source in self.train.sources)
            split = ", or set data.long_samples=split" if has_documents else ""
            why = (
                f"model.max_seq_length={self.max_seq_length} cuts it off in every sample; raise it{split}"
                if self.train.stop_cut
                else "the chat template ends no answer with one; use another data.template or model"
            )
            raise DataError(
                f"no training sample teaches a stop token ({', '.join(self.stop_tokens)}), "
                f"so the model would never end an answer: {why}"
            )


def audit(
    train: SampleStore,
    template: Template,
    validation: SampleStore | None = None,
    num_preview: int = 3,
    epoch: SampleStore | None = None,
) -> AuditReport:
    """Count everything; `refuse` decides what stops a run.

    Args:
        train: The training samples.
        template: The template that rendered them.
        validation: The held-out samples, or None.
        num_preview: How many samples to show in full, from the start of `train`.
        epoch: The training samples as often as an epoch has them, if that is not once.
    """
    tokenizer = template.tokenizer
    return AuditReport(
        template=template.name,
        train_on=template.train_on,
        stop_tokens=tuple(tokenizer.convert_ids_to_tokens(sorted(template.stop_ids))),
        max_seq_length=train.max_seq_length,
        train=_report(train, template, epoch or train),
        validation=_report(validation, template, validation) if validation is not None else None,
        overlap=_overlap(train, validation) if validation is not None else None,
        preview=tuple(_preview(train, template, i) for i in range(min(num_preview, len(train)))),
    )


def _report(store: SampleStore, template: Template, epoch: SampleStore) -> StoreReport:
    flags = store.rows["flags"]
    firsts = _firsts(store)
    special = firsts[(flags[firsts] & SPECIAL_TEXT) != 0]
    contents = store.rows["content"][firsts]
    stops = np.array(sorted(template.stop_ids), dtype=np.int32)
    stop_learned = double_bos = 0
    for ids, learned, starts in _blocks(store):
        stop_learned += int(np.logical_or.reduceat(np.isin(ids, stops) & learned, starts).sum())
        if template.bos_id is not None:
            second = np.minimum(starts + 1, len(ids) - 1)
            inside = np.diff(starts, append=len(ids)) > 1
            both = (ids[starts] == template.bos_id) & (ids[second] == template.bos_id) & inside
            double_bos += int(both.sum())
    return StoreReport(
        rows_read=store.rows_read,
        rows_kept=store.rows_used,
        samples=len(store),
        tokens_cut=store.tokens_cut,
        unused=store.unused,
        found=tuple(store.found),
        sources=_sources(store, epoch),
        skipped=store.skipped,
        num_tokens=store.num_tokens,
        num_loss_tokens=store.num_loss_tokens,
        lengths=_lengths(store.lengths),
        truncated=int(np.count_nonzero(flags & TRUNCATED)),
        stop_cut=int(np.count_nonzero(flags & STOP_CUT)),
        stop_learned=stop_learned,
        double_bos=double_bos,
        shared_prefix=_shared_prefix(store),
        special_text=len(special),
        special_text_origins=tuple(store.origin(int(i)) for i in special[:_ORIGINS_SHOWN]),
        duplicates=len(contents) - len(np.unique(contents)),
    )


def _firsts(store: SampleStore) -> NDArray[np.int64]:
    """The samples, without the later parts of documents that are split: each of those has the whole row's hash."""
    places = store.rows[["file", "line", "turns"]]
    return np.flatnonzero(np.concatenate([[True], places[1:] != places[:-1]]))


def _sources(store: SampleStore, epoch: SampleStore) -> tuple[SourceReport, ...]:
    count = len(store.sources)
    samples = np.bincount(store.source_indices(), minlength=count)
    of = epoch.source_indices()
    in_epoch = np.bincount(of, minlength=count)
    tokens = np.bincount(of, weights=epoch.lengths, minlength=count)
    return tuple(
        SourceReport(
            source.name,
            source.shape.format,
            source.shape.describe(),
            int(samples[i]),
            int(in_epoch[i]),
            int(tokens[i]),
        )
        for i, source in enumerate(store.sources)
    )


def _blocks(store: SampleStore) -> Iterator[tuple[NDArray[np.int32], NDArray[np.bool_], NDArray[np.int64]]]:
    for start in range(0, len(store), _SAMPLES_AT_A_TIME):
        yield store.block(start, min(start + _SAMPLES_AT_A_TIME, len(store)))


def _lengths(lengths: NDArray[np.int32]) -> Lengths:
    longest = int(lengths.max())
    counts, edges = np.histogram(lengths, bins=min(_HISTOGRAM_BINS, longest), range=(1, longest + 1))
    median, p95 = np.percentile(lengths, [50, 95])
    return Lengths(
        min=int(lengths.min()),
        median=float(median),
        p95=float(p95),
        max=int(lengths.max()),
        edges=tuple(int(edge) for edge in np.ceil(edges)),
        counts=tuple(int(count) for count in counts),
    )


def _shared_prefix(store: SampleStore) -> int:
    """Length of the longest prefix that all samples share, in tokens."""
    prefix = store[0].input_ids[: int(store.lengths.min())]
    for ids, _, starts in _blocks(store):
        for position, token in enumerate(prefix):
            if (ids[starts + position] != token).any():
                prefix = prefix[:position]
                break
    return len(prefix)


def _overlap(train: SampleStore, validation: SampleStore) -> Overlap:
    held_out = validation.rows[_firsts(validation)]
    rows = np.isin(held_out["content"], train.rows["content"])
    prompts = np.isin(held_out["prompt"], train.rows["prompt"]) & (held_out["prompt"] != 0)
    return Overlap(int(rows.sum()), int(prompts.sum()))


def _preview(store: SampleStore, template: Template, index: int) -> PreviewRow:
    sample = store[index]
    ids = sample.input_ids.tolist()
    return PreviewRow(
        store.origin(index),
        tuple(ids),
        texts_of(template.tokenizer, ids),
        tuple(sample.learned.tolist()),
    )
