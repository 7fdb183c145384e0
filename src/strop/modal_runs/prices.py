"""Modal's prices in dollars per second: Modal's own answer if the client is logged in, else the list stored here."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from strop.errors import RecipeError

CONTAINER_CORES, CONTAINER_MEMORY_GIB = 2.0, 16.0
"""What is counted besides the GPU, since Modal also bills a container's cores and memory. One process drives the GPU,
another core writes checkpoints; weights go to the GPU one tensor at a time. About 5% of an H200."""

_PATIENCE = 7.0
"""Seconds to wait for Modal's answer."""

_RATE_NAMES = {
    "T4": "t4",
    "L4": "l4",
    "A10": "a10g",
    "L40S": "l40s",
    "A100-40GB": "a100_40gb",
    "A100-80GB": "a100_80gb",
    "RTX-PRO-6000": "rtx6000",
    "H100": "h100",
    "H200": "h200",
    "B200": "b200",
}
"""How `modal billing rates --json` ends its gpu_hour_cost_ keys. Read in public code that uses it, in 2026-09."""


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
    gpu={
        "T4": 0.000164,
        "L4": 0.000222,
        "A10": 0.000306,
        "L40S": 0.000542,
        "A100-40GB": 0.000583,
        "A100-80GB": 0.000694,
        "RTX-PRO-6000": 0.000842,
        "H100": 0.001097,
        "H200": 0.001261,
        "B200": 0.001736,
    },
    cpu_core=0.0000131,
    memory_gib=0.00000222,
    source="stored price list of 2026-09 (copies of modal.com/pricing)",
)


def parse_gpu(gpu: str) -> tuple[str, int]:
    """Type and count of Modal's `TYPE:n`; H100! and B200+ cost the same as their type."""
    kind, _, count = gpu.partition(":")
    return kind.rstrip("!+").upper(), int(count or 1)


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
        gpu={kind: rates[f"gpu_hour_cost_{name}"] / 3600 for kind, name in _RATE_NAMES.items()},
        cpu_core=rates["cpu_hour_cost"] / 3600,
        memory_gib=rates["mem_gib_hour_cost"] / 3600,
        source="Modal's current prices of this workspace",
    )
