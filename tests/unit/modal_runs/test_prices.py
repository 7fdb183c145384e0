"""Prices: Modal's own answer where there is one, else the stored list, and a line that says why."""

import sys
import threading
from decimal import Decimal
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from strop.errors import RecipeError
from strop.gpus import GPUS
from strop.modal_runs import prices
from strop.modal_runs.prices import STORED, current_prices
from waiting import PATIENCE

ANSWER = {
    **{f"gpu_hour_cost_{gpu.billing_key}": Decimal("3.60") for gpu in GPUS.values()},
    "gpu_hour_cost_b300": Decimal("7.10"),
    "cpu_hour_cost": Decimal("0.036"),
    "mem_gib_hour_cost": Decimal("0.0072"),
}


def pretend_modal(patch: pytest.MonkeyPatch, rates: Any, token: str | None = "ak-1", local: bool = True) -> None:
    def asked() -> Any:
        if isinstance(rates, Exception):
            raise rates
        return rates() if callable(rates) else rates

    modal, config = ModuleType("modal"), ModuleType("modal.config")
    workspace = SimpleNamespace(billing=SimpleNamespace(rates=asked))
    modal.Workspace = SimpleNamespace(from_context=lambda: workspace)  # type: ignore[attr-defined]
    modal.is_local = lambda: local  # type: ignore[attr-defined]
    config.config = {"token_id": token}  # type: ignore[attr-defined]
    patch.setitem(sys.modules, "modal", modal)
    patch.setitem(sys.modules, "modal.config", config)


def test_the_stored_list_prices_every_gpu_that_can_be_asked_for() -> None:
    assert tuple(STORED.gpu) == tuple(GPUS)
    hourly = {gpu: round(3600 * price, 2) for gpu, price in STORED.gpu.items()}
    assert hourly["H200"] == 4.54
    assert hourly["T4"] == 0.59
    assert "2026-09" in STORED.source


def test_a_container_is_its_gpus_and_what_is_beside_them() -> None:
    beside = 2 * 0.0000131 + 16 * 0.00000222
    assert STORED.per_second("H200") == pytest.approx(0.001261 + beside)
    assert STORED.per_second("h100!:2") == pytest.approx(2 * 0.001097 + beside)
    with pytest.raises(RecipeError, match="no price for the GPU H1000"):
        STORED.per_second("H1000")


@pytest.mark.parametrize("local", [True, False], ids=["logged in", "in a container"])
def test_modal_s_own_answer(monkeypatch: pytest.MonkeyPatch, local: bool) -> None:
    pretend_modal(monkeypatch, ANSWER, token="ak-1" if local else None, local=local)
    live = current_prices()
    assert set(live.gpu.values()) == {0.001}
    assert (live.cpu_core, live.memory_gib) == (pytest.approx(1e-5), pytest.approx(2e-6))
    assert live.source == "Modal's current prices of this workspace"


@pytest.mark.parametrize(
    ("rates", "why"),
    [
        (ConnectionError("no route to 10.0.0.1 with token as-123"), "ConnectionError asking Modal"),
        ({"cpu_hour_cost": Decimal(1)}, "lacks 'gpu_hour_cost_t4'"),
        ({**ANSWER, "cpu_hour_cost": "a lot"}, "ValueError"),
        (lambda: threading.Event().wait(PATIENCE), "did not answer"),
    ],
    ids=["no network", "other names", "no number", "hangs"],
)
def test_any_failure_means_the_stored_list(monkeypatch: pytest.MonkeyPatch, rates: Any, why: str) -> None:
    monkeypatch.setattr(prices, "_PATIENCE", 0.3 if callable(rates) else PATIENCE)
    pretend_modal(monkeypatch, rates)
    found = current_prices()
    assert found.gpu == STORED.gpu
    assert why in found.source
    assert STORED.source in found.source
    assert "\n" not in found.source
    assert "as-123" not in found.source  # what a library says of an error may hold more than a price list should


def test_no_client_and_no_login_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_modal(monkeypatch, AssertionError("asked"), token=None)
    assert "not logged in" in current_prices().source
    monkeypatch.setitem(sys.modules, "modal", None)
    assert "not installed" in current_prices().source
