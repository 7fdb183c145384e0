"""From `strop plan` to a run that is billed, stops at its limit, goes on, and says how wrong the plan was."""

import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from strop import Run, plan, train
from strop.errors import BudgetReached
from strop.recipe import load_recipe
from strop.run.folder import RunFolder
from strop.run.records import TrainRecord
from strop.run.reporter import Reporter
from tiny_runs import environment, strop, write_recipe


class Notes(Reporter):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("STROP_CACHE", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, environment(tmp_path / "cache")[name])
    monkeypatch.setattr("strop.modal_runs.prices._PATIENCE", 0.0)  # the stored list at once
    write_recipe(tmp_path, max_steps=6, save_steps=2)
    return tmp_path


def billed(patch: pytest.MonkeyPatch, seconds_ago: float = 0.0) -> None:
    patch.setenv("STROP_MODAL_GPU", "H200")
    patch.setenv("STROP_ATTEMPT_STARTED", str(time.time() - seconds_ago))


def test_plan_needs_neither_weights_nor_gpu(workshop: Path) -> None:
    (workshop / "model" / "model.safetensors").unlink()
    shown = strop("plan", workshop / "tiny.yaml", cache=workshop / "cache")
    assert shown.returncode == 0, shown.stderr
    for words in ("H200*", "scaled", "B200", "6 steps of 4 samples", "2026-09"):
        assert words in shown.stdout
    assert not (workshop / "run").exists()
    assert strop("check", workshop / "tiny.yaml", cache=workshop / "cache").returncode == 2


def test_a_probe_is_kept_and_compared_with_what_the_run_took(workshop: Path) -> None:
    recipe, notes = load_recipe(workshop / "tiny.yaml"), Notes()
    found = plan(recipe, reporter=notes, probing=True)
    assert found.here is not None
    assert (found.here.gpu, found.here.source, found.here.dollars) == ("CPU", "measured", None)
    assert found.own.source == "scaled"
    run = train(recipe, reporter=notes)
    assert run.manifest.plan
    assert run.manifest.plan.source == "measured"
    outcome = run.manifest.outcome["tokens_per_second"]
    assert outcome.predicted == pytest.approx(found.here.tokens_per_second, rel=1e-3)
    assert outcome.off == pytest.approx(outcome.predicted / outcome.actual - 1, abs=1e-3)
    assert [line for line in notes.lines if line.startswith("plan (measured): training took")]
    plan(recipe, reporter=notes, probing=True)
    assert any("this run has already begun" in line for line in notes.lines)


def test_another_recipe_s_probe_is_not_this_run_s(workshop: Path) -> None:
    plan(load_recipe(workshop / "tiny.yaml", ["learning_rate=1e-3"]), probing=True)
    run = train(load_recipe(workshop / "tiny.yaml"))
    assert run.manifest.plan is None
    assert run.manifest.outcome == {}


def test_a_billed_run_counts_every_attempt_and_ends_at_its_limit(
    workshop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    billed(monkeypatch, seconds_ago=100.0)
    rate = 0.001261 + 2 * 0.0000131 + 16 * 0.00000222
    notes = Notes()
    with pytest.raises(
        BudgetReached, match=r"(before step 1|so far)\. Resume with: strop train .* modal\.max_cost=MORE"
    ):
        train(load_recipe(workshop / "tiny.yaml", [f"modal.max_cost={103 * rate}"]), reporter=notes)
    folder = Run(workshop / "run")
    assert folder.manifest.status == "interrupted"
    (first,) = folder.manifest.costs
    assert first.gpu == "H200"
    assert 100 * rate <= first.dollars < 200 * rate
    assert any(line.startswith("H200: $4.76 an hour (stored price list") for line in notes.lines)

    billed(monkeypatch)
    run = train(load_recipe(workshop / "tiny.yaml", ["modal.max_cost=5"]), reporter=notes)
    costs = run.manifest.costs
    assert [cost.attempt for cost in costs] == [1, 2]
    assert run.manifest.dollars == pytest.approx(sum(cost.dollars for cost in costs), abs=2e-4)
    dollars = [record.dollars or 0.0 for record in run.metrics() if isinstance(record, TrainRecord)]
    assert dollars == sorted(dollars)
    assert dollars[0] >= first.dollars


def test_a_limit_that_is_spent_loads_no_model(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    billed(monkeypatch, seconds_ago=1e6)
    monkeypatch.setattr("strop.commands.setup.load_model", None)  # would fail if it were called
    with pytest.raises(BudgetReached, match=r"modal\.max_cost=1"):
        train(load_recipe(workshop / "tiny.yaml", ["modal.max_cost=1"]))


def test_the_command_ends_with_exit_code_7(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    billed(monkeypatch, seconds_ago=1e6)
    ended = strop("train", workshop / "tiny.yaml", "modal.max_cost=1", cache=workshop / "cache")
    assert ended.returncode == 7, ended.stderr
    assert "Resume with" in ended.stderr


def test_where_nothing_is_billed_the_limit_is_said_to_be_idle(workshop: Path) -> None:
    notes = Notes()
    run = train(load_recipe(workshop / "tiny.yaml", ["modal.max_cost=1"]), reporter=notes)
    assert any("max_cost=1 is not watched" in line for line in notes.lines)
    assert run.manifest.costs == ()
    assert all(record.dollars is None for record in run.metrics() if isinstance(record, TrainRecord))


def test_a_halved_microbatch_is_kept_at_resume_unless_the_recipe_s_was_changed(workshop: Path) -> None:
    recipe, notes = load_recipe(workshop / "tiny.yaml"), Notes()
    train(recipe, reporter=notes)
    RunFolder(workshop / "run").update(
        lambda manifest: replace(manifest, status="interrupted", max_tokens_per_microbatch=60)
    )
    (changed := workshop / "changed").mkdir()
    shutil.copytree(workshop / "run", changed / "run")
    assert train(recipe, reporter=notes).manifest.max_tokens_per_microbatch == 60
    asked = load_recipe(
        workshop / "tiny.yaml", ["max_tokens_per_microbatch=100", f"train.output_dir={changed / 'run'}"]
    )
    assert train(asked, reporter=notes).manifest.max_tokens_per_microbatch == 100
