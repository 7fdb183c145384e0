"""What a person should know about rows before they are trained on; `check`, `plan` and `train` say it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from strop.readable import counted

if TYPE_CHECKING:
    from strop.commands.prepare import Prepared
    from strop.data.audit import AuditReport, StoreReport


def readings(prepared: Prepared) -> list[str]:
    """What reading the files took for granted, and which column was read as which part of a row."""
    parts = [part for part in (prepared.report.train, prepared.report.validation) if part is not None]
    lines = [line for part in parts for line in part.found]
    lines += [f"{each.name}: columns {each.columns}" for part in parts for each in part.sources if each.columns]
    return list(dict.fromkeys(lines))


def notes(prepared: Prepared) -> list[str]:
    """What may not be what the rows' owner meant."""
    report = prepared.report
    train, held_out = report.train, report.validation
    lines = [*_skipped(train, ""), *_unused(train, {}, "not used")]
    if held_out is not None and held_out.sources != train.sources:
        lines += [*_skipped(held_out, "held-out "), *_unused(held_out, train.unused, "not used in held-out rows")]
    lines += [*_samples(train), *_template(prepared), *_lengths(report), *_split(prepared), *_held_out(report)]
    return [*lines, *_steps(prepared)]


def tell_findings(prepared: Prepared, note: Callable[[str], None]) -> None:
    """Say all of it, a line at a time."""
    for line in [*readings(prepared), *notes(prepared)]:
        note(line)


def _skipped(part: StoreReport, what: str) -> Iterator[str]:
    for kind, count in part.skipped.items():
        yield f"{counted(count, f'{what}row is', f'{what}rows are')} skipped: {kind}"


def _unused(part: StoreReport, said: dict[str, int], what: str) -> Iterator[str]:
    counts = {key: count for key, count in part.unused.items() if key not in said}
    if counts:
        keys = ", ".join(f"{key} ({counted(count, 'row')})" for key, count in counts.items())
        yield f"{what}: {keys}"


def _samples(train: StoreReport) -> Iterator[str]:
    if train.samples > train.rows_kept:
        is_document = {source.format == "text" for source in train.sources}
        split = "long documents are split"
        rewritten = "the chat template changes earlier turns when more follow, so each answer is a sample"
        why = " or ".join((split,) * (True in is_document) + (rewritten,) * (False in is_document))
        yield f"{counted(train.rows_kept, 'row gives', 'rows give')} {counted(train.samples, 'sample')}: {why}"


def _template(prepared: Prepared) -> Iterator[str]:
    """What the template does to rows that could be meant in another way."""
    template, formats = prepared.report.template, {source.shape.format for source in prepared.data.sources}
    if "prompt_completion" in formats and template == "plain":
        yield (
            "prompt and completion are joined as they are, and no chat template is used; data.template: chat makes "
            "them a question and its answer"
        )
    if "prompt_completion" in formats and template == "chat":
        yield (
            "prompt and completion are a question and its answer in the model's chat template; data.template: plain "
            "joins them as they are"
        )


def _lengths(report: AuditReport) -> Iterator[str]:
    train = report.train
    if train.stop_cut:
        cut, learn = ("sample is", "does") if train.stop_cut == 1 else ("samples are", "do")
        yield f"{train.stop_cut:,} {cut} cut at model.max_seq_length and {learn} not learn to stop"
    if train.special_text:
        where = ", ".join(map(str, train.special_text_origins))
        rows = counted(train.special_text, "row contains", "rows contain")
        yield f"{rows} the text of control tokens, which become those tokens: {where}"


def _split(prepared: Prepared) -> Iterator[str]:
    """How many rows were held out of those of the training files, and why that is not what was asked."""
    data, train, held_out = prepared.recipe.data, prepared.report.train, prepared.report.validation
    if data.validation_file or held_out is None:
        return
    rows, repeated = held_out.rows_kept + train.rows_kept, held_out.duplicates + train.duplicates
    said = f"held out {held_out.rows_kept:,} of {rows:,} rows"
    share, asked = f"{held_out.rows_kept / rows:.1%}", data.validation_split_percentage
    if data.max_train_samples or data.max_eval_samples:
        yield f"{said}: {asked:g}% asked, and data.max_train_samples or data.max_eval_samples takes fewer"
    elif share == f"{asked:.1f}%":
        yield f"{said} ({share})"
    else:
        why = "repeated rows stay together" if repeated else "each row's content decides, by chance"
        yield f"{said} ({share}; {asked:g}% asked: {why})"


def _steps(prepared: Prepared) -> Iterator[str]:
    """How long the run is, where that may surprise."""
    from strop.microbatch.order import Order
    from strop.training.optim import warmup_steps

    train = prepared.recipe.train
    order = Order.of(train, len(prepared.data.train))
    yield from order.explain()
    said = train.max_steps > 0 and train.warmup_steps > 0  # by the recipe itself
    rises = train.lr_scheduler_type != "constant"
    if rises and not said and warmup_steps(train, order.num_steps) >= order.num_steps:
        yield f"warmup takes all {order.num_steps:,} steps of the run: the learning rate does not reach its peak"


def _held_out(report: AuditReport) -> Iterator[str]:
    overlap = report.overlap
    if overlap and overlap.prompts:
        same = counted(overlap.rows, "held-out row is also a training row", "held-out rows are also training rows")
        asked = counted(overlap.prompts, "shares", "share")
        yield f"{same}, and {asked} a training row's question; the held-out loss will look better than it is"
    if report.validation is None:
        yield "no rows are held out, so learning and memorising will look the same: set data.validation_file"
