"""What Modal charges, in dollars a second: its own answer where the client is logged in, else the list stored here."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from strop.errors import RecipeError
from strop.gpus import GPUS, parse_gpu

CONTAINER_CORES, CONTAINER_MEMORY_GIB = 2.0, 16.0
"""What is counted beside the GPU: Modal bills a container's cores and memory too. One process drives the GPU, another
core writes checkpoints; weights go to the GPU one tensor at a time. About 5% of an H200."""

_PATIENCE = 7.0
"""Seconds that Modal may take to answer."""


@dataclass(frozen=True, slots=True)
class Prices:
    """A price list.

    Attributes:
        gpu: Dollars a second of one GPU, by Modal's name of its type.
        cpu_core: Dollars a second of a physical core.
        memory_gib: Dollars a second of a GiB.
        source: Where the list is from, its date, and why it is not Modal's own answer where it is not.
    """

    gpu: Mapping[str, float]
    cpu_core: float
    memory_gib: float
    source: str

    def per_second(self, gpu: str) -> float:
        """Dollars a second of a container with this GPU, such as H200 or H100:2, and the cores and memory beside it.

        Raises:
            RecipeError: The list has no such GPU.
        """
        kind, count = parse_gpu(gpu)
        if kind not in self.gpu:
            raise RecipeError(f"there is no price of the GPU {gpu}; the list has {', '.join(self.gpu)}")
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
        except Exception as error:  # client, login or network: the stored list will do
            answer["why"] = str(error) if isinstance(error, _NotAsked) else f"{type(error).__name__} asking Modal"

    # The client tries for minutes where there is no network, and has no limit of time of its own.
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
    """Why Modal cannot be asked."""


def _ask_modal() -> dict[str, float]:
    """Modal's rates by its own names, dollars an hour."""
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
    """Raise KeyError where a rate is missing: half of one list and half of another would be neither."""
    return Prices(
        gpu={name: rates[f"gpu_hour_cost_{gpu.billing_key}"] / 3600 for name, gpu in GPUS.items()},
        cpu_core=rates["cpu_hour_cost"] / 3600,
        memory_gib=rates["mem_gib_hour_cost"] / 3600,
        source="Modal's current prices of this workspace",
    )
