"""A run's adapter in another form."""

from __future__ import annotations

from typing import TYPE_CHECKING

from strop.errors import RecipeError

if TYPE_CHECKING:
    from pathlib import Path

    from strop.api.run import Run
    from strop.exporting.layout import Layout


def export(run: Run, layout: Layout, base: str | None = None, output: Path | None = None) -> Path:
    """Write a run's adapter for a base checkpoint of the other layout; exact, and checked after writing.

    Args:
        run: A finished run.
        layout: `fused` for a base with qkv_proj and gate_up_proj (microsoft/Phi-3-mini-4k-instruct), `split` for one
            with q, k, v and gate, up apart (unsloth/Phi-3-mini-4k-instruct).
        base: That base's name, for adapter_config.json.
        output: Where it goes; by default adapter-fused or adapter-split in the run folder.

    Returns:
        The new adapter folder.

    Raises:
        RecipeError: The run has no adapter, it has that layout already, or the output exists.
    """
    from strop.exporting.layout import convert_layout
    from strop.model.families import read_config
    from strop.model.locate import locate_model
    from strop.model.vet import vet_model_folder

    model = run.recipe.model
    if not run.adapter_path.exists():
        raise RecipeError(f"{run.path} has no adapter yet; `strop train {run.path}` goes on with it")
    config = read_config(vet_model_folder(locate_model(model.model_name_or_path, model.revision)))
    target = output or run.path / f"adapter-{layout}"
    convert_layout(run.adapter_path, target, layout, config, base)
    return target
