"""After a run: the tuned model scored beside its base on rows that were held out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from strop.api.answering import questions_of, tuned_model
from strop.api.card import keep_card
from strop.api.preparing import prepare
from strop.api.reporting import keep_report
from strop.api.run import Run
from strop.errors import DataError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from strop.data.dataset import Dataset
    from strop.data.store import SampleStore
    from strop.evaluation.score import Evaluation, HeldOutQuestion

NO_GROUP = "(none)"
"""The group of rows that lack the key."""


def evaluate(
    run: Run,
    num_generated: int = 32,
    max_new_tokens: int = 96,
    numeric_tolerance: float = 0.0,
    group_by: str | None = None,
    answers: Path | None = None,
    note: Callable[[str], None] = lambda line: None,
) -> Evaluation:
    """Put base and tuned side by side on the run's held-out rows, and keep the result in evaluation.json.

    Args:
        run: A finished run whose recipe holds out rows.
        num_generated: Rows to answer with each model, spread evenly over the held-out ones; 0 for the loss alone.
        max_new_tokens: Longest answer.
        numeric_tolerance: How far off a number may be, as a share of the right one.
        group_by: A key of the rows: scores are also given for the rows of each of its values.
        answers: A .parquet, .jsonl or .csv file to write every answer to.
        note: Told if the run's report or its adapter's card cannot be written anew.

    Raises:
        RecipeError: The run is not finished or holds nothing out; `answers` cannot be written.
        DataError: No held-out row has the key `group_by`, or its values cannot name groups.
    """
    from strop.evaluation.answers_file import check_path, write_answers
    from strop.evaluation.score import ScoreSettings
    from strop.evaluation.score import evaluate as score
    from strop.run.folder import RunFolder
    from strop.training.budget import wanted_tokens

    if answers:
        check_path(answers)
    recipe = run.recipe
    # Answers are what is asked for here, so only they are scored, whatever was learned in training; and of the
    # training rows one is enough: to tokenise and audit the others again would take minutes where there are millions.
    held_out_answers = recipe.data.model_copy(update={"train_on": "completion", "max_train_samples": 1})
    prepared = prepare(recipe.model_copy(update={"data": held_out_answers}))
    data, store = prepared.data, prepared.data.validation
    if store is None:
        raise RecipeError(
            f"{run.path} holds no rows out: set data.validation_file or data.validation_split_percentage, train again"
        )
    specs = recipe.data.validation_file or recipe.data.train_file
    groups = _groups(store, specs, group_by) if group_by else None
    adapter = tuned_model(run, prepared.model_folder)
    result = score(
        adapter,
        store,
        _questions(data, store, specs, 0 if data.format == "text" else num_generated),
        lambda ids: str(data.template.tokenizer.decode(ids, skip_special_tokens=True)),
        data.template.stop_ids,
        wanted_tokens(adapter.decoder.device, int(store.lengths.max())),
        ScoreSettings(max_new_tokens, numeric_tolerance),
        groups,
    )
    RunFolder(run.path).write_evaluation(result.to_json())
    if answers:
        write_answers(answers, result.examples)
    keep_card(run, data.template, prepared.model_folder, note)
    keep_report(run, note)
    return result


def _questions(data: Dataset, store: SampleStore, specs: Sequence[str], count: int) -> list[HeldOutQuestion]:
    """So many held-out rows, spread evenly: files are often sorted, and their first rows alike."""
    from strop.evaluation.score import HeldOutQuestion, split_question

    count = min(count, len(store))
    indices = [i * len(store) // count for i in range(count)]
    wanted = {store.origin(i) for i in indices}
    texts = {origin: text for origin, text in questions_of(specs, data.format) if origin in wanted} if wanted else {}
    questions = []
    for i in indices:
        prompt, answer = split_question(store[i], data.template.stop_ids)
        reference = str(data.template.tokenizer.decode(answer, skip_special_tokens=True)).strip()
        questions.append(HeldOutQuestion(i, texts[store.origin(i)], prompt, reference))
    return questions


def _groups(store: SampleStore, specs: Sequence[str], key: str) -> list[str]:
    """What each held-out row has under `key`, as text."""
    from strop.data.examples import Fault
    from strop.data.readers import read_rows
    from strop.data.sources import find_files

    index = {store.origin(i): i for i in range(len(store))}
    groups, keys = [NO_GROUP] * len(store), dict[str, None]()
    for row in (row for path in find_files(specs) for row in read_rows(path)):
        if isinstance(row, Fault) or row[0] not in index:
            continue
        origin, fields = row
        keys |= dict.fromkeys(fields)
        value = fields.get(key)
        if isinstance(value, list | dict):
            raise DataError(f"{origin}: --group-by {key}: a {type(value).__name__} cannot name a group of rows")
        if value is not None and str(value).strip():
            groups[index[origin]] = str(value)
    if key not in keys:
        raise DataError(f"--group-by {key}: no held-out row has that key; the keys are {', '.join(keys)}")
    return groups
