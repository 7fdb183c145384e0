"""The same step on 1, 2, 3 and 4 ranks: losses, every gradient and the weights, in float64, to 1e-12."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from on_ranks import on_ranks
from rank_steps import Case, steps
from strop.parallel.team import ALONE
from tiny_models import write_checkpoint

BOUND = 1e-12
CASES = {
    "packed and shared": Case(),
    "accumulated": Case(max_tokens=20, per_step=12),
    "dropout": Case(dropout=0.2),
    "fewer samples than ranks": Case(per_step=2),
    "one sample": Case(per_step=1),
}
pytestmark = pytest.mark.xdist_group("ranks")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"), "qwen3")


@cache
def alone(folder: Path, case: Case) -> dict[str, Any]:
    return steps(ALONE, folder, case)


def difference(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).abs().max() / want.abs().max())


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_a_step_is_the_same_on_any_number_of_ranks(folder: Path, ranks: int) -> None:
    found = on_ranks(ranks, all_cases, folder)
    for name, case in CASES.items():
        want, each = alone(folder, case), [answers[name] for answers in found]
        assert [sum(parts) for parts in zip(*(one["own"] for one in each), strict=True)] == want["own"], name
        for one in each:
            assert torch.equal(one["weights"], each[0]["weights"]), f"{name}: the ranks have parted"
            assert one["losses"] == pytest.approx(want["losses"], rel=BOUND), name
            assert one["norms"] == pytest.approx(want["norms"], rel=BOUND), name
            assert difference(one["gradients"], want["gradients"]) < BOUND, name
            assert difference(one["weights"], want["weights"]) < BOUND, name
            assert [counts[:3] for counts in one["counts"]] == [counts[:3] for counts in want["counts"]], name
            assert one["ranks"] == [ranks] * case.steps
    assert min(min(answers["one sample"]["own"]) for answers in found) == 0, "a rank with no sample"


def all_cases(team: Any, folder: Path) -> dict[str, dict[str, Any]]:
    return {name: steps(team, folder, case) for name, case in CASES.items()}


def all_faults(team: Any, folder: Path) -> dict[str, dict[str, Any]]:
    return {fault: steps(team, folder, Case(fault=fault, steps=1)) for fault in FAULTS}


FAULTS = ("mean of means", "not summed", "a sample twice")


def test_what_other_trainers_get_wrong_would_be_seen(folder: Path) -> None:
    want = alone(folder, Case())["gradients"][:1]
    found = on_ranks(2, all_faults, folder)
    for fault in FAULTS:
        assert difference(found[1][fault]["gradients"], want) > 1e-2, fault


def test_the_same_ranks_give_the_same_bits(folder: Path) -> None:
    case = Case(dropout=0.2, optim="adamw_8bit")
    first, again = (on_ranks(3, steps, folder, case)[0] for _ in range(2))
    assert torch.equal(first["gradients"], again["gradients"])
    assert torch.equal(first["weights"], again["weights"])
