"""Samples during training: what they say, and that the training does not notice them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import strop
from strop.errors import Interrupted
from strop.evaluation import samples as sampling
from strop.recipe import load_recipe
from strop.run.records import Sample, read_samples
from tiny_runs import write_recipe

NAME = "adapter_model.safetensors"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STROP_CACHE", str(tmp_path / "cache"))
    for name in ("MAX_NEW_TOKENS", "MOST_NEW_TOKENS"):
        monkeypatch.setattr(sampling, name, 6)
    return write_recipe(tmp_path, eval_steps=2, eval_on_start=True, max_steps=6)


def train(file: Path, name: str, *settings: str) -> tuple[bytes, list[Sample]]:
    run = strop.train(load_recipe(str(file), [f"train.output_dir={file.parent / name}", *settings]))
    return (run.adapter_path / NAME).read_bytes(), read_samples(run.path / "samples.jsonl")


def test_training_ends_in_the_same_bits_with_and_without(file: Path) -> None:
    with_samples, samples = train(file, "with")
    without, none = train(file, "without", "train.sample_rows=0")
    assert with_samples == without  # with dropout: no random number was drawn either
    assert none == []
    assert [sample.step for sample in samples] == [0, 0, 2, 2, 4, 4, 6, 6]
    first = samples[0]
    assert first.question.startswith("Say the words of row 100.")
    assert first.reference.startswith("Row 100:")
    assert first.row.endswith("validation.jsonl:1")
    assert len({sample.text for sample in samples}) > 2  # answers of different models


def test_a_stop_between_its_tokens_loses_and_repeats_nothing(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = train(file, "undisturbed")
    real, tokens = sampling.stream, 0

    def interrupted(*args: object) -> Iterator[tuple[int, int]]:
        nonlocal tokens
        for pair in real(*args):  # type: ignore[arg-type]
            tokens += 1
            if tokens == 30:
                raise Interrupted("stopped by the test")
            yield pair

    monkeypatch.setattr(sampling, "stream", interrupted)
    with pytest.raises(Interrupted):
        train(file, "stopped")
    before = [sample.step for sample in read_samples(file.parent / "stopped" / "samples.jsonl")]
    assert before == [0, 0, 2, 2]
    assert train(file, "stopped") == undisturbed
