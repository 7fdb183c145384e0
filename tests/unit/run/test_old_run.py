"""The folder of an old strop opens in everything that reads runs, and rewriting it loses nothing."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from strop import Run, report
from strop.evaluation.result import METRICS
from strop.reporting.card import About, render_card
from strop.reporting.read import read_run
from strop.run.folder import RunFolder
from strop.run.listing import list_runs
from strop.run.records import EvalRecord, TrainRecord, read_samples

OLD = Path(__file__).parents[2] / "fixtures" / "old_run"
ABOUT = About("old", "model", None, None, ("train.jsonl",), (), "chat", "Q", ("</s>",), 8, False)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLD, tmp_path / "old"))


def contents(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "run.json").read_text()))


def without_empty(value: Any) -> Any:
    """JSON without keys that say nothing."""
    if not isinstance(value, dict):
        return value
    return {key: without_empty(each) for key, each in value.items() if each not in (None, {}, [])}


def test_its_manifest_is_read_whole(old: Path) -> None:
    manifest, raw = Run(old).manifest, contents(old)
    assert without_empty(json.loads(json.dumps(asdict(manifest)))) == without_empty(raw)
    assert manifest.others == {}
    assert (manifest.status, manifest.num_steps, manifest.dollars) == ("finished", 4, raw["dollars"])
    assert manifest.data is not None
    assert manifest.data.held_out is not None
    assert (manifest.data.rows, manifest.data.held_out.rows) == (12, 4)
    assert manifest.progress is not None
    assert manifest.progress.best_loss == raw["progress"]["best_loss"]
    assert manifest.plan is not None
    assert manifest.plan.range == (0.9, 1.15)
    assert [cost.gpu for cost in manifest.costs] == ["H200"]


def test_its_other_files_are_read(old: Path) -> None:
    (listed,) = list_runs(old.parent)
    assert (listed.status, listed.step, listed.num_steps) == ("finished", 4, 4)
    assert (listed.loss, listed.eval_loss) == (15.47552490234375, 14.476613362630209)
    records = Run(old).metrics()
    assert [type(record) for record in records] == [*[TrainRecord] * 2, EvalRecord] * 2
    assert Run(old).template == "chat"
    assert [sample.step for sample in read_samples(old / "samples.jsonl")] == [2, 2, 4, 4]
    plan = RunFolder(old).plan
    assert plan is not None
    assert (plan.device, plan.line.source) == ("CPU", "measured")


def test_its_report_and_card_have_everything(old: Path) -> None:
    run = read_run(old, "old")
    assert run.notes == []
    assert run.evaluation is not None
    assert set(run.evaluation.tuned) == set(METRICS)
    page = report([Run(old)]).read_text(encoding="utf-8")
    for shown in ("Base beside tuned", "Plan and outcome", "Answers while it learned", "an answer at step 4", "$0.07"):
        assert shown in page, shown
    card = render_card(run, ABOUT, "adapter")
    for shown in ("| Token F1 | 0% (0% to 66%)", "| Training rows | 12 |", "| Trained parameters | 1,856 |"):
        assert shown in card, shown


def test_what_is_rewritten_keeps_every_key(old: Path) -> None:
    raw = contents(old) | {"trl": "1.15.0", "of_a_newer_strop": {"deep": [1, None]}}
    (old / "run.json").write_text(json.dumps(raw))
    folder = RunFolder(old)
    folder.set_status("interrupted")
    rewritten = contents(old)
    del rewritten["seal"]
    assert without_empty(rewritten) == without_empty(raw | {"status": "interrupted"})
    assert folder.begun.others == {"trl": "1.15.0", "of_a_newer_strop": {"deep": [1, None]}}
    changes = folder.begin_attempt(device="cpu", chosen={"trl": "2.0"}, fingerprints={}, num_trainable=1, num_steps=4)
    assert any(line.startswith("trl was 1.15.0 and is 2.0: ") for line in changes)
    assert (folder.begun.attempts, folder.begun.run_id) == (2, raw["run_id"])


def drop_from_lines(*keys: str) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        kept = [{key: value for key, value in line.items() if key not in keys} for line in lines]
        (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in kept))

    return change


def keep_in_manifest(*keys: str) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        kept = {key: value for key, value in contents(run).items() if key in keys}
        (run / "run.json").write_text(json.dumps(kept))

    return change


def remove(*names: str) -> Callable[[Path], None]:
    return lambda run: [(run / name).unlink() for name in names] and None


@pytest.mark.parametrize(
    "older",
    [
        drop_from_lines("num_executed_tokens", "dollars"),
        keep_in_manifest("run_id", "created", "status", "device", "fingerprints", "num_steps", "attempts"),
        remove("plan.json", "samples.jsonl", "evaluation.json"),
    ],
    ids=["no prefixes, no costs", "few keys", "few files"],
)
def test_a_run_that_is_older_still_opens_too(old: Path, older: Callable[[Path], None]) -> None:
    older(old)
    (listed,) = list_runs(old.parent)
    assert (listed.status, listed.step, listed.num_steps) == ("finished", 4, 4)
    assert len(Run(old).metrics()) == 6
    assert read_run(old, "old").notes == []
    assert "</html>" in report([Run(old)]).read_text(encoding="utf-8")
    assert "trained with strop" in render_card(read_run(old, "old"), ABOUT, "adapter")
