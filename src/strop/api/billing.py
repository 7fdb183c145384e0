"""What a run costs where it is billed: the meter of an attempt, made from the environment and the attempts before it.

The function on Modal says in the environment what is rented and since when; without that nothing is billed.
"""

from __future__ import annotations

import os
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
    from strop.run.metrics import read_metrics

    try:
        since = float(started)
    except ValueError:
        raise RecipeError(f"{STARTED}={started} is not a time in Unix seconds") from None
    prices = current_prices()
    last = max((record.get("dollars", 0.0) for record in read_metrics(folder.metrics_path)), default=0.0)
    earlier = with_unfinished(folder.manifest.get("costs", ()), last)
    meter = Meter(gpu, prices.per_second(gpu), since, tuple(earlier), limit)
    before = f", ${meter.before:.2f} before this attempt" if earlier else ""
    note(f"{gpu}: ${3600 * meter.dollars_per_second:.2f} an hour{before} ({prices.source})")
    return meter


def enter_cost(folder: RunFolder, meter: Meter | None) -> None:
    """Put all attempts into the manifest, this one as it stands."""
    if meter is not None:
        entry = meter.entry(folder.manifest["attempts"])
        folder.update_manifest(costs=[*meter.earlier, entry], dollars=round(meter.dollars, 4))
