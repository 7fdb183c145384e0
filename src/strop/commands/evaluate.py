"""`strop evaluate`: the tuned model scored beside its base on held-out rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from strop.commands.arguments import as_path, as_run, require_number
from strop.commands.card import keep_card
from strop.commands.console import Printing, RunArgument, out
from strop.commands.load import load_trained
from strop.commands.prepare import prepare
from strop.commands.report import keep_report
from strop.commands.run import Run
from strop.data.examples import Fault, Origin
from strop.data.sources import questions_at
from strop.errors import DataError, RecipeError, StorageError
from strop.evaluation.result import METRICS, ScoreSettings, check_path, write_answers
from strop.readable import counted
from strop.run.folder import RunFolder
from strop.run.reporter import Reporter, reporter_for

if TYPE_CHECKING:
    from strop.data.dataset import Dataset
    from strop.data.store import SampleStore
    from strop.evaluation.result import AnswerPair, Evaluation, Interval, JudgedAnswer
    from strop.evaluation.score import HeldOutQuestion
    from strop.recipe import DataSection

NO_GROUP = "(none)"
"""The group of rows that lack the key."""

SOURCE = "source"
"""Groups the rows of several files by file."""


def evaluate(
    run: Run | str | Path,
    *,
    num_generated: int = 32,
    max_new_tokens: int = 96,
    numeric_tolerance: float = 0.0,
    group_by: str | None = None,
    answers: str | Path | None = None,
    reporter: Reporter | None = None,
    quiet: bool = False,
) -> Evaluation:
    """Compare base and tuned on the run's held-out rows, and keep the result in evaluation.json.

    Args:
        run: A finished run, or its folder, whose recipe has held-out rows.
        num_generated: Rows to answer with each model, spread evenly over the held-out ones; 0 for the loss alone.
        max_new_tokens: Longest answer.
        numeric_tolerance: How far off a number may be, as a share of the right one.
        group_by: A key of the rows: the rows of each of its values are also scored by themselves. With several held-out
            files, `source` groups by file.
        answers: A .parquet, .jsonl or .csv file to write every answer to.
        reporter: Told of what takes a while, and of what cannot be written: evaluation.json, the answers, the run's
            report or its adapter's card; by default lines are printed.
        quiet: Print nothing.

    Raises:
        RecipeError: The run is not finished or has no held-out rows; an option is not possible.
        DataError: No held-out row has the key `group_by`, or its values cannot name groups.
    """
    require_number("num_generated", num_generated, 0)
    require_number("max_new_tokens", max_new_tokens, 1)
    require_number("numeric_tolerance", numeric_tolerance, 0, whole=False)
    settings, target = ScoreSettings(max_new_tokens, numeric_tolerance), as_path("answers", answers)
    reporter = reporter_for(reporter, quiet)
    result, unwritten = _evaluate(as_run(run), num_generated, settings, group_by, target, reporter)
    for error in unwritten:
        reporter.note(str(error))
    return result


def _evaluate(
    run: Run,
    num_generated: int,
    settings: ScoreSettings,
    group_by: str | None,
    answers: Path | None,
    reporter: Reporter,
) -> tuple[Evaluation, list[StorageError]]:
    """As `evaluate`; also what could not be written, because hours of figures are not lost to a full disk."""
    run.require_adapter(reporter.note)  # before torch is loaded
    with reporter.waiting("loading torch"):
        from strop.evaluation.score import evaluate as score
        from strop.training.budget import wanted_tokens

    if answers:
        check_path(answers)
    recipe = run.recipe
    # Only answers are scored, whatever was learned in training. Of the training rows one is enough: to tokenise and
    # audit all of them again would take minutes where there are millions.
    held_out_answers = recipe.data.model_copy(update={"train_on": "completion", "max_train_samples": 1})
    prepared = prepare(recipe.model_copy(update={"data": held_out_answers}), reporter)
    data, store = prepared.data, prepared.data.validation
    if store is None:
        raise RecipeError(
            f"{run.path} has no held-out rows. Set data.validation_file or data.validation_split_percentage "
            "and train again."
        )
    groups = _groups(store, group_by) if group_by else None
    with reporter.waiting("loading the model"):
        adapter = load_trained(run, prepared.model)
        questions = _questions(data, store, recipe.data, num_generated if data.has_questions else 0)
    result = score(
        adapter,
        store,
        questions,
        lambda ids: str(data.template.tokenizer.decode(ids, skip_special_tokens=True)),
        data.template.stop_ids,
        wanted_tokens(adapter.decoder.device, int(store.lengths.max())),
        settings,
        groups,
        reporter.waiting,
    )
    unwritten: list[StorageError] = []
    with _collecting(unwritten):
        RunFolder(run.path).write_evaluation(result.to_json())
    if answers:
        with _collecting(unwritten):
            write_answers(answers, result.examples)
    keep_card(run, data.template, prepared.model, reporter.note)
    keep_report(run, reporter.note)
    return result, unwritten


@contextmanager
def _collecting(errors: list[StorageError]) -> Iterator[None]:
    try:
        yield
    except StorageError as error:
        errors.append(error)


def command(
    run: RunArgument,
    rows: Annotated[int, typer.Option(min=0, help="Rows to answer with each model; 0 for the loss alone.")] = 32,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 96,
    numeric_tolerance: Annotated[
        float, typer.Option(min=0.0, help="How far off a number may be, as a share of the right one: 0.01 is 1%.")
    ] = 0.0,
    group_by: Annotated[
        str | None, typer.Option(metavar="KEY", help="Also score the rows of each value of this key by themselves.")
    ] = None,
    answers: Annotated[
        Path | None,
        typer.Option(metavar="FILE", readable=False, help="Write every answer to FILE: .parquet, .jsonl or .csv."),
    ] = None,
    examples: Annotated[int, typer.Option(min=0, help="Answers to print side by side.")] = 4,
) -> None:
    """Held-out loss, and generated answers against the references: base beside tuned, with 95% intervals.

    The figures are also written to evaluation.json in the run folder, with every answer. What they mean:
    docs/evaluation.md.
    """
    settings = ScoreSettings(max_new_tokens, numeric_tolerance)
    result, unwritten = _evaluate(Run(run), rows, settings, group_by, answers, Printing())
    _print_evaluation(result, examples)
    if unwritten:
        raise StorageError("\n".join(map(str, unwritten)))
    if answers:
        out.print(f"\n{counted(len(result.examples), 'answer')} of each model: {escape(str(answers))}")


def _questions(data: Dataset, store: SampleStore, section: DataSection, count: int) -> list[HeldOutQuestion]:
    """So many held-out rows, spread evenly: files are often sorted, and their first rows similar."""
    from strop.evaluation.score import HeldOutQuestion, split_question

    count = min(count, len(store))
    indices = [i * len(store) // count for i in range(count)]
    texts = questions_at(section, {store.place(i) for i in indices})
    questions = []
    for i in indices:
        prompt, answer = split_question(store[i], data.template.stop_ids)
        reference = str(data.template.tokenizer.decode(answer, skip_special_tokens=True)).strip()
        questions.append(HeldOutQuestion(i, texts[store.place(i)], prompt, reference))
    return questions


def _groups(store: SampleStore, key: str) -> list[str]:
    """The value of `key` in each held-out sample's row, as text; of a mixture, `source` is the file it comes from."""
    if key == SOURCE and len(store.sources) > 1:
        return [store.sources[i].name for i in store.source_indices()]
    samples: dict[Origin, list[int]] = defaultdict(list)
    for i in range(len(store)):
        samples[store.origin(i)].append(i)
    groups, keys = [NO_GROUP] * len(store), dict[str, None]()
    for row in (row for source in store.sources for row in source.rows()):
        if isinstance(row, Fault) or row[0] not in samples:
            continue
        origin, fields = row
        keys |= dict.fromkeys(fields)
        value = fields.get(key)
        if isinstance(value, list | dict):
            raise DataError(f"{origin}: --group-by {key}: a {type(value).__name__} cannot name a group of rows")
        if value is not None and str(value).strip():
            for i in samples[origin]:
                groups[i] = str(value)
    if key not in keys:
        raise DataError(f"--group-by {key}: no held-out row has that key; the keys are {', '.join(keys)}")
    return groups


_GROUPS_SHOWN = 20


def _print_evaluation(result: Evaluation, num_examples: int) -> None:
    """Base beside tuned with their intervals, in all and by group, and some answers of both, wrong ones first."""
    answered = f", {result.num_generated:,} of them answered" if result.num_generated else ""
    title = f"{counted(result.num_rows, 'held-out row')}{answered}"
    table = Table("", title=title, title_justify="left", show_lines=True)
    for heading in ("base", "tuned", "tuned - base"):
        table.add_column(heading, justify="right")
    for metric in METRICS:
        if any(scores[metric] for scores in (result.base, result.tuned)):
            label = METRICS[metric].label
            if metric == "numeric_match" and result.settings.numeric_tolerance:
                label += f" (within {result.settings.numeric_tolerance:.3g} of each)"
            difference = result.difference[metric]
            table.add_row(
                label,
                _cell(metric, result.base[metric]),
                _cell(metric, result.tuned[metric]),
                _cell(metric, difference, sign=True),
            )
    out.print(table)
    out.print("[dim]Second lines: 95% intervals. A difference whose interval holds 0 may be chance.[/dim]")
    if result.groups:
        _print_groups(result)
    for example in _telling(result.examples, num_examples):
        _print_example(example)


def _cell(metric: str, interval: Interval | None, sign: bool = False) -> str:
    if interval is None:
        return "-"
    form, ends, more_is_better = METRICS[metric].value, METRICS[metric].ends, METRICS[metric].more_is_better
    if sign:
        form, ends = form.replace(":", ":+"), ends.replace(":", ":+")
    text = f"{form.format(interval.value)}\n[dim]{ends.format(interval.low)} to {ends.format(interval.high)}[/dim]"
    if sign and (interval.low > 0 or interval.high < 0):
        return f"[{'green' if (interval.low > 0) == more_is_better else 'red'}]{text}[/]"
    return text


def _print_groups(result: Evaluation) -> None:
    """The largest groups; all of them are in evaluation.json."""
    shown = [m for m in ("nll", "exact_match", "numeric_match", "token_f1") if result.tuned[m] is not None][:3]
    table = Table("group", "rows", "", title="by group", title_justify="left")
    for metric in shown:
        table.add_column(METRICS[metric].label, justify="right")
    ordered = sorted(result.groups.items(), key=lambda item: -item[1].num_rows)
    for name, group in ordered[:_GROUPS_SHOWN]:
        table.add_row(_label(name), str(group.num_rows), "base", *(_cell(m, group.base[m]) for m in shown))
        table.add_row("", "", "tuned", *(_cell(m, group.tuned[m]) for m in shown), end_section=True)
    out.print(table)
    if len(ordered) > _GROUPS_SHOWN:
        out.print(f"[dim]and {counted(len(ordered) - _GROUPS_SHOWN, 'smaller group')}, in evaluation.json[/dim]")


def _label(group: str) -> str:
    """A group's name on one short line."""
    return escape(shorten(group, 24, placeholder="…"))


def _telling(examples: Sequence[AnswerPair], count: int) -> list[AnswerPair]:
    """As many that the tuned model got wrong as right, wrong ones first; more of either where the other lacks."""
    right = [example for example in examples if example.tuned.exact_match]
    wrong = [example for example in examples if not example.tuned.exact_match]
    num_wrong = min(len(wrong), max((count + 1) // 2, count - len(right)))
    return wrong[:num_wrong] + right[: count - num_wrong]


def _verdict(answer: JudgedAnswer) -> tuple[str, str]:
    """How right an answer is, and the colour of that."""
    if answer.exact_match:
        return "exact", "green"
    if answer.numeric_match:
        return f"numbers right, F1 {answer.token_f1:.2f}", "yellow"
    return f"{'wrong' if answer.numeric_match is None else 'wrong numbers'}, F1 {answer.token_f1:.2f}", "red"


def _print_example(example: AnswerPair) -> None:
    group = f"  ({_label(example.group)})" if example.group else ""
    out.print(f"\n[dim]{escape(example.row)}{group}[/dim]\n{escape(example.question)}")
    out.print(f"[dim]reference[/dim]  {escape(example.reference)}")
    for label, answer in (("base", example.base), ("tuned", example.tuned)):
        verdict, style = _verdict(answer)
        verdict += "" if answer.stopped else ", cut at the limit"
        out.print(f"[{style}]{label:>9}[/{style}]  {escape(answer.text)}  [{style}]({verdict})[/{style}]")
