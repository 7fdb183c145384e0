"""samples.jsonl after attempts that were lost."""

from pathlib import Path

import pytest

from strop.errors import StropError
from strop.run.records import Sample, read_samples, sound_samples, write_samples


def samples(step: int, text: str = "an answer") -> list[Sample]:
    return [Sample(step, f"rows.jsonl:{row}", "a\nquestion", "the reference \u00e9", text) for row in (1, 2)]


def test_they_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    assert read_samples(path) == []
    write_samples(path, 0, samples(0))
    write_samples(path, 5, samples(5))
    assert read_samples(path) == samples(0) + samples(5)


@pytest.mark.parametrize("resumed", [0, 4, 5])
def test_what_a_lost_attempt_wrote_is_replaced(tmp_path: Path, resumed: int) -> None:
    path = tmp_path / "samples.jsonl"
    for step in (0, 4, 5, 8):
        write_samples(path, step, samples(step, "lost"))
    write_samples(path, resumed, samples(resumed, "new"))
    kept = [sample for step in (0, 4, 5) if step < resumed for sample in samples(step, "lost")]
    assert read_samples(path) == kept + samples(resumed, "new")


def test_a_torn_last_line_is_left_out_and_another_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    write_samples(path, 1, samples(1))
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"step": 2, "ro')
    assert read_samples(path) == samples(1)
    path.write_bytes(b'{"step": 2}\n' + whole)
    with pytest.raises(StropError, match=r"samples\.jsonl:1: this line was edited or damaged"):
        read_samples(path)
    assert sound_samples(path) == (samples(1), 1)
