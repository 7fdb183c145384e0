"""What happens to a run between two attempts at it: the inputs change, clocks go wrong, others hold its folder."""

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from damages import flip_a_bit
from fault_sweep import COMMANDS, Sweep
from fault_trials import Answer, fresh
from fault_verdicts import wrong_at_end

Change = Callable[[Path], object]


@pytest.fixture
def interrupted(sweep: Sweep, tmp_path: Path) -> Path:
    """A run that was killed after its checkpoint of step 2 of 4."""
    sweep.want("train, resumed")
    return fresh(tmp_path / "run of its own", sweep.begin("interrupted"))


def train(sweep: Sweep, folder: Path, *overrides: str) -> Answer:
    answer = sweep.server.run(folder, [*COMMANDS["train"].arguments, *overrides])
    assert "Traceback" not in answer.output, answer.output
    return answer


def contents(run: Path) -> dict[str, bytes]:
    """All but the lock, and what a killed process has left, which is swept whatever becomes of the command."""
    found = [path for path in run.rglob("*") if path.is_file() and path.name != "run.lock"]
    return {str(path): path.read_bytes() for path in found if not any(part.startswith(".tmp-") for part in path.parts)}


def assert_refused(sweep: Sweep, folder: Path, said: str, *overrides: str) -> None:
    before = contents(folder / "run")
    answer = train(sweep, folder, *overrides)
    assert answer.status == 4, answer.output
    assert said in answer.output
    assert contents(folder / "run") == before


def assert_as_any_other(sweep: Sweep, folder: Path, said: str = "", *overrides: str) -> None:
    answer = train(sweep, folder, *overrides)
    assert answer.status == 0, answer.output
    assert said in answer.output
    assert wrong_at_end(folder, sweep.want("train, resumed")) == []


def edit_lines(name: str, change: Callable[[list[bytes]], list[bytes]]) -> Change:
    def edit(folder: Path) -> None:
        path = folder / name
        path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))

    return edit


ROWS: dict[str, tuple[Change, str]] = {
    "a word of a row": (edit_lines("train.jsonl", lambda rows: [rows[0].replace(b"Say", b"Sing"), *rows[1:]]), "train"),
    "a row more": (edit_lines("train.jsonl", lambda rows: [*rows, rows[0].replace(b"Say", b"Sing")]), "training data"),
    "a row less": (edit_lines("train.jsonl", lambda rows: rows[1:]), "training data"),
    "two rows the other way round": (edit_lines("train.jsonl", lambda rows: [rows[1], rows[0], *rows[2:]]), "training"),
    "the other file": (
        lambda folder: shutil.copy(folder / "validation.jsonl", folder / "train.jsonl"),
        "training data",
    ),
    "a held-out row": (edit_lines("validation.jsonl", lambda rows: rows[1:]), "held-out data"),
}


@pytest.mark.parametrize("case", ROWS)
def test_other_rows_are_refused(sweep: Sweep, interrupted: Path, case: str) -> None:
    change, said = ROWS[case]
    change(interrupted)
    assert_refused(sweep, interrupted, said)


def test_the_same_rows_written_otherwise_are_the_same(sweep: Sweep, interrupted: Path) -> None:
    edit_lines(
        "train.jsonl", lambda rows: [json.dumps(json.loads(row), indent=None).encode() + b"\r\n" for row in rows]
    )(interrupted)
    assert train(sweep, interrupted).status == 0


@pytest.mark.parametrize(
    "override",
    [
        "train.learning_rate=0.5",
        "train.seed=7",
        "lora.r=4",
        "lora.lora_alpha=8",
        "train.max_steps=5",
        "train.optim=adamw_8bit",
    ],
)
def test_another_recipe_is_refused(sweep: Sweep, interrupted: Path, override: str) -> None:
    assert_refused(sweep, interrupted, override.partition("=")[0], override)


@pytest.mark.parametrize(
    "override", ["train.logging_steps=2", "train.save_total_limit=1", "modal.timeout=600", "train.save_steps=3"]
)
def test_what_changes_no_weight_may_change(sweep: Sweep, interrupted: Path, override: str) -> None:
    assert_as_any_other(sweep, interrupted, "", override)


def edit_json(name: str, **changes: Any) -> Change:
    def edit(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_bytes()) | changes), encoding="utf-8")

    return edit


def flip(name: str) -> Change:
    import random

    return lambda folder: (folder / name).write_bytes(flip_a_bit((folder / name).read_bytes(), random.Random(3)))


MODELS: dict[str, tuple[Change, str]] = {
    "a bit of the weights": (flip("model/model.safetensors"), "base model"),
    "another epsilon": (edit_json("model/config.json", rms_norm_eps=1e-4), "base model"),
    "another stop token": (edit_json("model/tokenizer_config.json", eos_token="<unk>"), "data"),
    "another stop token of answers": (
        lambda folder: (folder / "model/generation_config.json").write_text('{"eos_token_id": [2, 9]}'),
        "stop tokens",
    ),
}


@pytest.mark.parametrize("case", MODELS)
def test_another_model_or_tokenizer_is_refused(sweep: Sweep, interrupted: Path, case: str) -> None:
    change, said = MODELS[case]
    change(interrupted)
    assert_refused(sweep, interrupted, said)


@pytest.mark.parametrize(
    ("key", "value"),
    [("torch", "2.0.0"), ("python", "3.9.1"), ("strop", "0.0.1"), ("platform", "Plan 9"), ("device", "abacus")],
)
def test_other_versions_and_devices_are_told(sweep: Sweep, interrupted: Path, key: str, value: str) -> None:
    edit_json("run/run.json", seal=None, **{key: value})(interrupted)  # as an older strop wrote it
    assert_as_any_other(sweep, interrupted, f"{key} was {value}")


def all_times(time: float) -> Change:
    def set_times(folder: Path) -> None:
        for path in folder.rglob("*"):
            os.utime(path, (time, time))

    return set_times


TIMES: dict[str, tuple[Change, int]] = {
    "lost": (all_times(0), 0),
    "all in the future": (all_times(4e9), 0),
    "a clock a day behind": (lambda folder: None, -86_400),
    "a clock ten years ahead": (lambda folder: None, 315_360_000),
}


@pytest.mark.parametrize("case", TIMES)
def test_no_time_decides_what_is_resumed(sweep: Sweep, interrupted: Path, case: str) -> None:
    change, skew = TIMES[case]
    change(interrupted)
    answer = sweep.server.run(interrupted, COMMANDS["train"].arguments, skew=skew)
    assert answer.status == 0, answer.output
    assert wrong_at_end(interrupted, sweep.want("train, resumed")) == []


LOCKS = {"of a dead process": b"4194304", "of one that lives": b"1", "empty": b"", "of no process": b"\xff\x00 nobody"}


@pytest.mark.parametrize("case", LOCKS)
def test_a_lock_that_nobody_holds_is_taken(sweep: Sweep, interrupted: Path, case: str) -> None:
    (interrupted / "run/run.lock").write_bytes(LOCKS[case])
    assert_as_any_other(sweep, interrupted)


@pytest.mark.parametrize("case", LOCKS)
def test_a_lock_that_is_held_turns_away_whatever_it_says(sweep: Sweep, interrupted: Path, case: str) -> None:
    before = contents(interrupted / "run")
    (interrupted / "run/run.lock").write_bytes(LOCKS[case])
    with (interrupted / "run/run.lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        answer = train(sweep, interrupted)
    assert (answer.status, "another strop process" in answer.output) == (2, True)
    assert contents(interrupted / "run") == before
    assert_as_any_other(sweep, interrupted)


@pytest.mark.parametrize("name", ["state.safetensors", "state.json", "manifest.json"])
def test_where_no_checkpoint_verifies_nothing_is_begun_and_nothing_lost(
    sweep: Sweep, interrupted: Path, name: str
) -> None:
    flip(f"run/checkpoints/step-00000002/{name}")(interrupted)
    answer = train(sweep, interrupted)
    assert answer.status == 4, answer.output
    assert "train.output_dir" in answer.output
    assert (interrupted / "run/checkpoints/step-00000002" / name).exists()


GONE = ["adapter", "adapter/adapter_model.safetensors", "adapter/tokenizer.json", "adapter/README.md", "report.html"]


@pytest.mark.parametrize("name", GONE)
def test_what_a_finished_run_lacks_is_made_again(sweep: Sweep, tmp_path: Path, name: str) -> None:
    want = sweep.want("train, finished")
    folder = fresh(tmp_path / "finished", want)
    path = folder / "run" / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    answer = train(sweep, folder)
    assert answer.status == 0, answer.output
    set_aside = folder / "run/adapter-damaged"
    shutil.rmtree(set_aside, ignore_errors=True)
    assert wrong_at_end(folder, want) == []


@pytest.mark.parametrize("command", ["evaluate", "chat"])
@pytest.mark.parametrize("case", ["a bit of the weights", "another stop token"])
def test_an_adapter_is_not_used_on_another_base(sweep: Sweep, tmp_path: Path, case: str, command: str) -> None:
    folder = fresh(tmp_path / "finished", sweep.begin("finished"))
    MODELS[case][0](folder)
    answer = sweep.server.run(folder, COMMANDS[command].arguments)
    assert answer.status == 4, answer.output
    assert "was trained on" in answer.output
