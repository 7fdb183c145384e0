"""metrics.jsonl keeps every digit, and forgets exactly what a lost attempt wrote."""

import json
import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from run_folders import train_record
from strop.errors import StropError
from strop.run.cut_back import cut_metrics
from strop.run.records import EvalRecord, MetricsLog, last_steps, read_metrics


@pytest.fixture
def log(tmp_path: Path) -> MetricsLog:
    return MetricsLog(tmp_path / "metrics.jsonl")


def write_steps(log: MetricsLog, *steps: int) -> None:
    for step in steps:
        log.append(train_record(step))


def steps(log: MetricsLog) -> list[int]:
    return [record.step for record in read_metrics(log.path)]


def test_no_file_is_no_records(log: MetricsLog) -> None:
    assert read_metrics(log.path) == []


@given(st.floats(allow_nan=False))
def test_floats_keep_all_their_digits(tmp_path_factory: pytest.TempPathFactory, value: float) -> None:
    log = MetricsLog(tmp_path_factory.mktemp("log") / "metrics.jsonl")
    log.append(EvalRecord(1, value))
    (record,) = read_metrics(log.path)
    assert isinstance(record, EvalRecord)
    assert math.copysign(1, record.eval_loss) == math.copysign(1, value)
    assert record.eval_loss.hex() == value.hex()


def test_each_line_is_in_the_file_as_soon_as_it_is_appended(log: MetricsLog) -> None:
    for step in (1, 2, 3):
        write_steps(log, step)
        assert log.path.read_bytes().count(b"\n") == step


@pytest.mark.parametrize("cut", range(1, 30))
def test_a_last_line_torn_anywhere_is_dropped_and_the_log_goes_on(log: MetricsLog, cut: int) -> None:
    write_steps(log, 1, 2, 3)
    size = log.path.stat().st_size
    os.truncate(log.path, size - cut)
    # Without its newline alone, the last line is whole.
    assert steps(log) == ([1, 2, 3] if cut == 1 else [1, 2])
    assert cut_metrics(log.path, 2, None) == []
    write_steps(log, 3)
    assert steps(log) == [1, 2, 3]


def test_appending_after_a_torn_line_without_truncating_loses_a_record(log: MetricsLog) -> None:
    """The control: it is `cut_metrics` that mends the file."""
    write_steps(log, 1, 2)
    os.truncate(log.path, log.path.stat().st_size - 5)
    write_steps(log, 2, 3)
    with pytest.raises(StropError, match=r"metrics\.jsonl:2"):
        read_metrics(log.path)


def test_a_damaged_line_in_the_middle_is_named_and_mended(log: MetricsLog) -> None:
    write_steps(log, 1, 2, 3)
    data = log.path.read_bytes().split(b"\n")
    data[1] = b"\0" * len(data[1])
    log.path.write_bytes(b"\n".join(data))
    with pytest.raises(StropError, match=r"metrics\.jsonl:2: this line was edited or damaged"):
        read_metrics(log.path)
    assert cut_metrics(log.path, 3, None) == [
        "metrics.jsonl is not as it was at step 3: 1 line could not be read; nothing is left of step 2"
    ]
    assert steps(log) == [1, 3]


def test_a_log_that_cannot_be_written_is_one_message(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "missing" / "metrics.jsonl")
    with pytest.raises(StropError, match="No such file"):
        log.append(EvalRecord(1, 1.0))


def test_the_file_is_json_that_other_tools_read(log: MetricsLog) -> None:
    log.append(train_record(3, dollars=0.5))
    log.append(EvalRecord(3, 1 / 3))
    assert log.path.read_text() == (
        '{"kind": "train", "step": 3, "loss": 0.3333333333333333, "learning_rate": 0.0002, "grad_norm": 0.523, '
        '"num_tokens": 100, "num_executed_tokens": 80, "num_loss_tokens": 20, "tokens_per_second": 1234.4, '
        '"samples_per_second": 12.34, "dollars": 0.5}\n'
        '{"kind": "eval", "step": 3, "eval_loss": 0.3333333333333333}\n'
    )


@pytest.mark.parametrize(
    "line",
    [b"3", b"null", b"[1]", b"{}", b'{"kind": "train", "step": 1}', b'{"kind": "other", "step": 1, "eval_loss": 1}',
     b'{"kind": [], "step": 1}', b'{"kind": "eval", "step": "x", "eval_loss": 1}', b"[" * 100_000],
)  # fmt: skip
def test_what_is_no_record_is_named(log: MetricsLog, line: bytes) -> None:
    log.path.write_bytes(line + b"\n")
    write_steps(log, 1)
    with pytest.raises(StropError, match=r"metrics\.jsonl:1: this line was edited or damaged"):
        read_metrics(log.path)


def test_the_line_of_an_old_strop_is_a_record(log: MetricsLog) -> None:
    log.append(train_record(1))
    old = json.loads(log.path.read_text())
    del old["num_executed_tokens"]
    log.path.write_text(json.dumps(old | {"later": "ignored"}) + "\n")
    assert read_metrics(log.path) == [train_record(1, num_executed_tokens=None)]


def test_the_last_step_of_each_kind(log: MetricsLog) -> None:
    assert last_steps(log.path) == {}
    write_steps(log, 1, 2)
    log.append(EvalRecord(1, 1.0))
    with log.path.open("a") as file:
        file.write('{"kind": "tr')
    assert last_steps(log.path) == {"train": 2, "eval": 1}
