"""After a run: the tuned model scored beside its base, and talked to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from strop.api.loading import load_model
from strop.api.preparing import prepare
from strop.api.reporting import keep_report
from strop.api.run import Run
from strop.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from strop.data.examples import Origin
    from strop.data.formats import Format
    from strop.evaluation.chat import ChatSession
    from strop.evaluation.score import Evaluation
    from strop.model.lora import LoraAdapter


def evaluate(
    run: Run,
    num_generated: int = 32,
    max_new_tokens: int = 96,
    note: Callable[[str], None] = lambda line: None,
) -> Evaluation:
    """Put base and tuned side by side on the run's held-out rows, and keep the result in evaluation.json.

    Args:
        run: A finished run whose recipe holds out rows.
        num_generated: Answers to generate with each model; 0 for the loss alone.
        max_new_tokens: Longest answer.
        note: Told if the run's report cannot be written anew.

    Raises:
        RecipeError: The run is not finished or holds nothing out.
    """
    from strop.evaluation.score import evaluate as score
    from strop.run.folder import RunFolder
    from strop.training.budget import wanted_tokens

    recipe = run.recipe
    # Answers are what is asked for here, so only they are scored, whatever was learned in training; and of the
    # training rows one is enough: to tokenise and audit the others again would take minutes where there are millions.
    held_out_answers = recipe.data.model_copy(update={"train_on": "completion", "max_train_samples": 1})
    prepared = prepare(recipe.model_copy(update={"data": held_out_answers}))
    if prepared.data.validation is None:
        raise RecipeError(
            f"{run.path} holds no rows out: set data.validation_file or data.validation_split_percentage, train again"
        )
    adapter = _tuned(run, prepared.model_folder)
    template, store = prepared.data.template, prepared.data.validation
    shown = range(0 if prepared.data.format == "text" else min(num_generated, len(store)))
    asked = {}
    if wanted := {store.origin(i) for i in shown}:
        specs = recipe.data.validation_file or recipe.data.train_file
        asked = {origin: text for origin, text in _questions(specs, prepared.data.format) if origin in wanted}
    result = score(
        adapter,
        store,
        [asked[store.origin(i)] for i in shown],
        lambda ids: str(template.tokenizer.decode(ids, skip_special_tokens=True)),
        template.stop_ids,
        wanted_tokens(adapter.decoder.device, int(store.lengths.max())),
        max_new_tokens,
    )
    RunFolder(run.path).write_evaluation(result.to_json())
    keep_report(run, note)
    return result


def chat(run: Run, max_new_tokens: int = 256, temperature: float = 0.0) -> ChatSession:
    """Talk to the tuned model, in the template it was trained on.

    Raises:
        RecipeError: The run is not finished.
    """
    from strop.data.template import load_template
    from strop.evaluation.chat import ChatSession
    from strop.model.locate import locate_model

    recipe = run.recipe
    folder = locate_model(recipe.model.model_name_or_path, recipe.model.revision)
    adapter = _tuned(run, folder)
    template = load_template(folder, recipe.data.template, run.manifest["format"])
    return ChatSession(adapter, template, max_new_tokens, temperature)


def held_out_question(run: Run) -> str:
    """The question of the run's first held-out row.

    Raises:
        RecipeError: The recipe names no held-out file.
    """
    if not run.recipe.data.validation_file:
        raise RecipeError("this run has no data.validation_file to take a question from; use --prompt")
    for _, question in _questions(run.recipe.data.validation_file, run.manifest["format"]):
        return question
    raise RecipeError("no held-out row can be read; use --prompt")


def _questions(specs: Sequence[str], format: Format) -> Iterator[tuple[Origin, str]]:
    """Where each row comes from and what it asks."""
    from strop.data.prompts import question_of
    from strop.data.rows import Fault, find_files, read_examples

    for row in read_examples(find_files(specs), format):
        if not isinstance(row, Fault):
            yield row[0], question_of(row[1])


def _tuned(run: Run, model_folder: Path) -> LoraAdapter:
    """The run's model with its trained adapter."""
    from strop.exporting.adapter import load_adapter
    from strop.run.console import Reporter

    if not (run.adapter_path / "adapter_config.json").exists():
        raise RecipeError(f"{run.path} has no adapter yet; `strop train {run.path}` goes on with it")
    adapter = load_model(run.recipe, model_folder, Reporter(), serving=True)
    load_adapter(adapter, run.adapter_path)
    adapter.decoder.eval()
    return adapter
