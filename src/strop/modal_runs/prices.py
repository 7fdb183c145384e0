"""Modal's prices in dollars per second, and the meter of an attempt that is billed.

Prices are Modal's own answer if the client is logged in, else the list stored here. The function on Modal puts into the
environment what is rented and since when; without that nothing is billed.
"""

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from strop.errors import RecipeError
from strop.gpus import GPUS, parse_gpu
from strop.recipe import Recipe
from strop.run.cost import Meter, with_unfinished
from strop.run.folder import RunFolder
from strop.run.records import TrainRecord, read_metrics

CONTAINER_CORES, CONTAINER_MEMORY_GIB = 2.0, 16.0
"""What is counted besides the GPU, since Modal also bills a container's cores and memory. One process drives the GPU,
another core writes checkpoints; weights go to the GPU one tensor at a time. About 5% of an H200."""

_PATIENCE = 7.0
"""Seconds to wait for Modal's answer."""


@dataclass(frozen=True, slots=True)
class Prices:
    """A price list.

    Attributes:
        gpu: Dollars per second of one GPU, by Modal's name for its type.
        cpu_core: Dollars per second of a physical core.
        memory_gib: Dollars per second of a GiB.
        source: Where the list comes from, its date, and, for the stored list, why Modal did not answer.
    """

    gpu: Mapping[str, float]
    cpu_core: float
    memory_gib: float
    source: str

    def per_second(self, gpu: str) -> float:
        """Dollars per second of a container with this GPU, such as H200 or H100:2, including its cores and memory.

        Raises:
            RecipeError: The list has no such GPU.
        """
        kind, count = parse_gpu(gpu)
        if kind not in self.gpu:
            raise RecipeError(f"no price for the GPU {gpu}; there are prices for {', '.join(self.gpu)}")
        return count * self.gpu[kind] + CONTAINER_CORES * self.cpu_core + CONTAINER_MEMORY_GIB * self.memory_gib


STORED = Prices(
    gpu={name: gpu.dollars_per_second for name, gpu in GPUS.items()},
    cpu_core=0.0000131,
    memory_gib=0.00000222,
    source="stored price list of 2026-09 (copies of modal.com/pricing)",
)


def current_prices() -> Prices:
    """Modal's current prices for the workspace that is logged in, or the stored list; `source` says which and why."""
    answer: dict[str, Any] = {}

    def ask() -> None:
        try:
            answer["rates"] = _ask_modal()
        except Exception as error:  # with any problem of client, login or network, use the stored list
            answer["why"] = str(error) if isinstance(error, _NotAsked) else f"{type(error).__name__} asking Modal"

    # Without a network, the client retries for minutes, and it has no timeout of its own.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    try:
        return _prices(answer["rates"])
    except KeyError as missing:
        unanswered = "Modal's answer lacks " + str(missing) if "rates" in answer else "Modal did not answer"
        why = answer.get("why", unanswered)
    return Prices(STORED.gpu, STORED.cpu_core, STORED.memory_gib, f"{STORED.source}; not live: {why}")


class _NotAsked(Exception):
    """Says why Modal cannot be asked."""


def _ask_modal() -> dict[str, float]:
    """Modal's rates under its own names, in dollars per hour."""
    try:
        import modal
        from modal.config import config
    except ImportError:
        raise _NotAsked("the modal client is not installed") from None
    if modal.is_local() and not config.get("token_id"):
        raise _NotAsked("the modal client is not logged in")
    rates = modal.Workspace.from_context().billing.rates()
    return {key: float(value) for key, value in rates.items()}


def _prices(rates: Mapping[str, float]) -> Prices:
    """Build the list; raises KeyError if a rate is missing, so that two lists are never mixed."""
    return Prices(
        gpu={name: rates[f"gpu_hour_cost_{gpu.billing_key}"] / 3600 for name, gpu in GPUS.items()},
        cpu_core=rates["cpu_hour_cost"] / 3600,
        memory_gib=rates["mem_gib_hour_cost"] / 3600,
        source="Modal's current prices of this workspace",
    )


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
    steps = [record for record in read_metrics(folder.metrics_path) if isinstance(record, TrainRecord)]
    last = max((step.dollars or 0.0 for step in steps), default=0.0)
    manifest = folder.manifest
    earlier = with_unfinished(manifest.costs if manifest else (), last)
    meter = Meter(gpu, prices.per_second(gpu), since, earlier, limit)
    before = f", ${meter.before:.2f} before this attempt" if earlier else ""
    note(f"{gpu}: ${3600 * meter.dollars_per_second:.2f} an hour{before} ({prices.source})")
    return meter
