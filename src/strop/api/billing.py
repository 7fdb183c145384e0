"""What a run costs where it is billed: the meter of an attempt, made from the environment and the attempts before it.

The function on Modal says in the environment what is rented and since when; without that nothing is billed.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from strop.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from strop.recipe import Recipe
    from strop.run.cost import Meter
    from strop.run.folder import RunFolder

GPU, STARTED = "STROP_MODAL_GPU", "STROP_ATTEMPT_STARTED"
"""Environment variables: Modal's GPU string, and the Unix time at which billing of this attempt began."""


def meter_of(recipe: Recipe, folder: RunFolder, note: Callable[[str], None]) -> Meter | None:
    """The meter of the attempt that begins; None where nothing is billed.

    Raises:
        RecipeError: The environment names a GPU without a price, or a time that is none.
    """
    gpu, started = os.environ.get(GPU), os.environ.get(STARTED)
    limit = recipe.modal.max_cost
    if not gpu or not started:
        if limit is not None:
            note(f"modal.max_cost={limit:g} is not watched: nothing is billed here ({GPU} is not set)")
        return None
    from strop.modal_runs.prices import current_prices
    from strop.run.cost import Meter, with_unfinished
    from strop.run.records import TrainRecord, read_metrics

    try:
        since = float(started)
    except ValueError:
        raise RecipeError(f"{STARTED}={started} is not a time in Unix seconds") from None
    prices = current_prices()
    steps = [record for record in read_metrics(folder.metrics_path) if isinstance(record, TrainRecord)]
    manifest = folder.manifest
    earlier = with_unfinished(
        manifest.costs if manifest else (), max((step.dollars or 0.0 for step in steps), default=0.0)
    )
    meter = Meter(gpu, prices.per_second(gpu), since, earlier, limit)
    before = f", ${meter.before:.2f} before this attempt" if earlier else ""
    note(f"{gpu}: ${3600 * meter.dollars_per_second:.2f} an hour{before} ({prices.source})")
    return meter


def enter_cost(folder: RunFolder, meter: Meter | None) -> None:
    """Write the cost of all attempts into the manifest, this one's so far."""
    if meter is not None:
        costs = (*meter.earlier, meter.entry(folder.begun.attempts))
        folder.update(lambda manifest: replace(manifest, costs=costs, dollars=round(meter.dollars, 4)))
