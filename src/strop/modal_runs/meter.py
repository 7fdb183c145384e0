"""The meter of an attempt that is billed: made from the environment and the attempts before it.

The function on Modal puts into the environment what is rented and since when; without that nothing is billed.
"""

import os
from collections.abc import Callable

from strop.errors import RecipeError
from strop.modal_runs.prices import current_prices
from strop.recipe import Recipe
from strop.run.cost import Meter, with_unfinished
from strop.run.folder import RunFolder
from strop.run.metrics import read_metrics

GPU, STARTED = "STROP_MODAL_GPU", "STROP_ATTEMPT_STARTED"
"""Environment variables: Modal's GPU string, and the Unix time at which billing of this attempt began."""


def meter_of(recipe: Recipe, folder: RunFolder, note: Callable[[str], None]) -> Meter | None:
    """The meter of the attempt that begins; None if nothing is billed.

    Raises:
        RecipeError: The environment names a GPU without a price, or no valid time.
    """
    gpu, started = os.environ.get(GPU), os.environ.get(STARTED)
    limit = recipe.modal.max_cost
    if not gpu or not started:
        if limit is not None:
            note(f"modal.max_cost={limit:g} is not watched: nothing is billed here ({GPU} is not set)")
        return None
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
