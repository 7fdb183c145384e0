"""On resume, metrics and samples are as they were at the checkpoint, or what is lost of them is told."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from run_folders import train_record
from strop.errors import StorageError
from strop.run.cut_back import cut_metrics, cut_samples, mark_of
from strop.run.records import EvalRecord, MetricsLog, Sample, read_metrics, read_samples, write_samples

STEPS = 6


@pytest.fixture
def log(tmp_path: Path) -> MetricsLog:
    """Steps 1 to 4 with an evaluation at 4, as a checkpoint saw them in `mark`; then steps 5 and 6."""
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in range(1, 5):
        log.append(train_record(step))
    log.append(EvalRecord(4, 0.5))
    return log


@pytest.fixture
def mark(log: MetricsLog) -> dict[str, Any]:
    found = mark_of(log.path)
    for step in (5, 6):
        log.append(train_record(step))
    return found


def steps(log: MetricsLog) -> list[int]:
    return [record.step for record in read_metrics(log.path)]


def test_what_came_after_the_checkpoint_is_dropped_and_the_rest_stays_byte_for_byte(
    log: MetricsLog, mark: dict[str, Any]
) -> None:
    before = log.path.read_bytes()
    assert cut_metrics(log.path, 4, mark) == []
    assert log.path.read_bytes() == before[: mark["size"]]
    assert cut_metrics(log.path, 4, mark) == []


def test_an_evaluation_after_the_checkpoint_of_the_same_step_is_dropped(log: MetricsLog) -> None:
    """An interruption can save a step before its evaluation, which is then made again."""
    mark = mark_of(log.path)
    log.append(EvalRecord(4, 0.6))
    assert cut_metrics(log.path, 4, mark) == []
    assert steps(log) == [1, 2, 3, 4, 4]


def test_a_run_that_begins_again_has_no_records(log: MetricsLog) -> None:
    log.append(EvalRecord(0, 0.9))
    assert cut_metrics(log.path, -1, None) == []
    assert log.path.read_bytes() == b""


def without(line: int) -> Callable[[list[bytes]], list[bytes]]:
    return lambda lines: lines[:line] + lines[line + 1 :]


@pytest.mark.parametrize(
    ("damage", "told", "left"),
    [
        (
            lambda lines: [b"\0" * 9 + b"\n", *lines[1:]],
            "1 line could not be read; nothing is left of step 1",
            4,
        ),
        (lambda lines: [], "nothing is left of step 1, 2, 3, 4", 0),
        (lambda lines: lines[:2], "nothing is left of step 3, 4", 2),
        (without(2), "nothing is left of step 3", 4),
        (without(4), "some of its lines were changed", 4),
        (lambda lines: [lines[0].replace(b'"loss": 1.0', b'"loss": 9.0'), *lines[1:]], "some of its lines were", 5),
        (lambda lines: [lines[0].replace(b'"loss"', b'"lots"'), *lines[1:]], "1 line could not be read", 4),
    ],
)
def test_damage_before_the_checkpoint_is_told_and_whole_lines_stay(
    log: MetricsLog, mark: dict[str, Any], damage: Callable[[list[bytes]], list[bytes]], told: str, left: int
) -> None:
    log.path.write_bytes(b"".join(damage(log.path.read_bytes().splitlines(keepends=True))))
    (said,) = cut_metrics(log.path, 4, mark)
    assert said.startswith("metrics.jsonl is not as it was at step 4: ")
    assert told in said
    assert len(read_metrics(log.path)) == left


@pytest.mark.parametrize("bit", range(0, 8000, 97))
def test_every_flipped_bit_is_told(log: MetricsLog, mark: dict[str, Any], bit: int) -> None:
    data = bytearray(log.path.read_bytes())
    place = bit % (8 * mark["size"])
    data[place // 8] ^= 1 << place % 8
    log.path.write_bytes(data)
    assert len(cut_metrics(log.path, 4, mark)) == 1


def test_a_missing_file_is_told(log: MetricsLog, mark: dict[str, Any]) -> None:
    log.path.unlink()
    (said,) = cut_metrics(log.path, 4, mark)
    assert "nothing is left of step 1, 2, 3, 4" in said


def test_a_file_that_cannot_be_read_stops_the_run(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(StorageError, match=r"metrics\.jsonl cannot be read: Is a directory"):
        cut_metrics(tmp_path / "metrics.jsonl", 4, None)


def test_the_checkpoint_of_an_older_strop_has_no_mark(log: MetricsLog) -> None:
    assert cut_metrics(log.path, 4, None) == []
    os.truncate(log.path, 10)
    assert cut_metrics(log.path, 4, None) != []


def samples(path: Path, *steps: int) -> None:
    for step in steps:
        write_samples(path, step, [Sample(step, f"rows.jsonl:{i}", "q", "r", "t") for i in (1, 2)])


def test_lost_samples_are_told(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    samples(path, 2, 4)
    mark = mark_of(path)
    samples(path, 6)
    assert cut_samples(path, 4, mark, [2, 4]) == []
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[2:]))
    (said,) = cut_samples(path, 4, mark, [2, 4])
    assert said == "samples.jsonl is not as it was at step 4: nothing is left of step 2"
    assert {sample.step for sample in read_samples(path)} == {4}
