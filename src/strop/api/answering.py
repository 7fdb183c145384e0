"""After a run: the tuned model loaded and talked to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from strop.api.loading import load_model
from strop.api.run import Run
from strop.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from strop.data.examples import Origin
    from strop.data.shapes import Format
    from strop.evaluation.session import ChatSession
    from strop.model.lora import LoraAdapter
    from strop.serving.client import EndpointSession


def chat(run: Run, max_new_tokens: int = 256, temperature: float = 0.0) -> ChatSession:
    """Talk to the tuned model, in the template it was trained on.

    Raises:
        RecipeError: The run is not finished.
    """
    from strop.data.template import load_template
    from strop.evaluation.session import ChatSession
    from strop.model.checkpoint.locate import locate_model

    recipe = run.recipe
    folder = locate_model(recipe.model.model_name_or_path, recipe.model.revision)
    adapter = tuned_model(run, folder)
    template = load_template(folder, recipe.data.template, run.format)
    return ChatSession(adapter, template, max_new_tokens, temperature)


def chat_with_endpoint(url: str, max_new_tokens: int = 256, temperature: float = 0.0) -> EndpointSession:
    """Talk to a model that `strop serve` answers with, here or on Modal.

    Raises:
        RecipeError, EndpointError: As `strop.serving.client.connect` does.
    """
    from strop.serving.client import connect

    return connect(url, max_new_tokens, temperature)


def held_out_question(run: Run) -> str:
    """The question of the run's first held-out row.

    Raises:
        RecipeError: The recipe names no held-out file.
    """
    if not run.recipe.data.validation_file:
        raise RecipeError("this run has no data.validation_file to take a question from; use --prompt")
    for _, question in questions_of(run.recipe.data.validation_file, run.format):
        return question
    raise RecipeError("no held-out row can be read; use --prompt")


def questions_of(specs: Sequence[str], format: Format) -> Iterator[tuple[Origin, str]]:
    """Where each row comes from and what it asks."""
    from strop.data.examples import Fault
    from strop.data.prompts import question_of
    from strop.data.sources import find_files, read_examples

    for row in read_examples(find_files(specs), format):
        if not isinstance(row, Fault):
            yield row[0], question_of(row[1])


def tuned_model(run: Run, model_folder: Path) -> LoraAdapter:
    """The run's model with its trained adapter."""
    from strop.exporting.adapter import load_adapter
    from strop.run.reporter import Reporter

    if not (run.adapter_path / "adapter_config.json").exists():
        raise RecipeError(f"{run.path} has no adapter yet; `strop train {run.path}` goes on with it")
    adapter = load_model(run.recipe, model_folder, Reporter(), serving=True)
    load_adapter(adapter, run.adapter_path)
    adapter.decoder.eval()
    return adapter
