"""A recipe's model on its device, with an adapter attached: what training and answering begin with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from strop.errors import OutOfMemoryError

if TYPE_CHECKING:
    from pathlib import Path

    from strop.model.lora import LoraAdapter
    from strop.recipe import Recipe
    from strop.run.reporter import Reporter


def load_model(recipe: Recipe, model_folder: Path, reporter: Reporter, serving: bool = False) -> LoraAdapter:
    """The model with a fresh adapter; `serving` holds it as others will: float8 is for training alone, NF4 is not."""
    import torch

    from strop.model.checkpoint.vet import vet_model_folder
    from strop.model.checkpoint.weights import load_decoder
    from strop.model.config import read_config
    from strop.model.lora import LoraAdapter
    from strop.model.precision import choose_device, choose_precision, grow_segments, why_not_fused

    grow_segments()
    device = choose_device()
    against = why_not_fused(read_config(vet_model_folder(model_folder)), recipe.lora, device)
    precision = choose_precision(recipe.model.precision, device, against, recipe.model.load_in_4bit)
    reporter.note(precision.reason)
    dtype = precision.dtype
    try:
        decoder = load_decoder(model_folder, dtype, device, precision.float8 and not serving, precision.nf4)
        adapter = LoraAdapter(decoder, recipe.lora, recipe.train.seed)
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(f"the weights of {model_folder} do not fit in the GPU's memory in {dtype}") from error
    total = decoder.num_base_parameters + adapter.num_parameters
    share = adapter.num_parameters / total
    reporter.note(f"trainable parameters: {adapter.num_parameters:,} of {total:,} ({share:.2%})")
    return adapter
