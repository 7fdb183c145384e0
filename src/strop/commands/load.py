"""A recipe's model on its device, with a fresh or a trained adapter attached."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from strop.errors import CheckpointError, OutOfMemoryError
from strop.model.pretrained.folder import ModelFolder, open_model
from strop.model.pretrained.locate import fingerprint_folder, fingerprint_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable

    from strop.commands.run import Run
    from strop.data.template import Template
    from strop.model.lora import LoraAdapter
    from strop.model.pretrained.folder import ModelFolder
    from strop.recipe import Recipe


@dataclass(frozen=True)
class Tuned:
    """A run's model, ready to answer.

    Attributes:
        adapter: Trained, and attached to its decoder.
        template: That of training.
    """

    adapter: LoraAdapter
    template: Template


def load_model(
    recipe: Recipe, model: ModelFolder, note: Callable[[str], None] = lambda line: None, *, serving: bool = False
) -> LoraAdapter:
    """The model with a fresh adapter.

    Args:
        recipe: Says which precision and which LoRA.
        model: The model's folder.
        note: Told what was chosen.
        serving: Load the weights as other tools will: never in float8, which is for training alone; NF4 stays NF4.

    Raises:
        OutOfMemoryError: The weights do not fit in the GPU's memory.
    """
    import torch

    from strop.model.lora import LoraAdapter
    from strop.model.precision import choose_device, choose_precision, grow_segments, why_not_fused
    from strop.model.pretrained.weights import load_decoder

    grow_segments()
    device = choose_device()
    against = why_not_fused(model.config, recipe.lora, device)
    precision = choose_precision(recipe.model.precision, device, against, recipe.model.load_in_4bit)
    note(precision.reason)
    dtype = precision.dtype
    try:
        decoder = load_decoder(model, dtype, device, precision.float8 and not serving, precision.nf4)
        adapter = LoraAdapter(decoder, recipe.lora, recipe.train.seed)
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(f"the weights of {model.path} do not fit in the GPU's memory in {dtype}") from error
    total = decoder.num_base_parameters + adapter.num_parameters
    share = adapter.num_parameters / total
    note(f"trainable parameters: {adapter.num_parameters:,} of {total:,} ({share:.2%})")
    return adapter


def load_trained(run: Run, model: ModelFolder) -> LoraAdapter:
    """The run's model with its trained adapter.

    Raises:
        RecipeError: The run has no adapter yet.
        CheckpointError: The adapter or its base is not what it was.
    """
    from strop.exporting.adapter import load_adapter

    run.require_adapter()
    _refuse_another_base(run, model)
    adapter = load_model(run.recipe, model, serving=True)
    load_adapter(adapter, run.adapter_path)
    adapter.decoder.eval()
    return adapter


def _refuse_another_base(run: Run, model: ModelFolder) -> None:
    """An adapter says something else on another base, or behind another tokenizer, without a word of it.

    Raises:
        CheckpointError: The base is not the one that the run was trained on.
    """
    trained_on = run.manifest.fingerprints
    found = {"base model": fingerprint_folder(model.path), "tokenizer": fingerprint_tokenizer(model.path)}
    if changed := [name for name, mark in found.items() if trained_on.get(name, mark) != mark]:
        raise CheckpointError(
            f"{model.path}: the {' and the '.join(changed)} is not the one that {run.path} was trained on. "
            "Put it back, or train again on this one with another train.output_dir"
        )


def load_run_template(run: Run, model: ModelFolder) -> Template:
    """The template that the run was trained in."""
    from strop.data.template import load_template

    data = run.recipe.data
    return load_template(model.path, run.template, (), chat_template=data.chat_template, system=data.system)


def load_tuned(run: Run, note: Callable[[str], None] = lambda line: None) -> Tuned:
    """Find, vet and load all that answers as the run's model.

    Args:
        run: A finished run.
        note: Told that the run's recipe is not what it was.

    Raises:
        RecipeError: The run is not finished.
    """
    run.require_adapter(note)
    model = open_model(run.recipe.model)
    return Tuned(load_trained(run, model), load_run_template(run, model))
