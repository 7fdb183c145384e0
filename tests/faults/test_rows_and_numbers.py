"""Rows at a limit and numbers that are none, given to whole commands: each is refused, or counted where people look."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from fault_sweep import Sweep
from fault_trials import Answer, fresh
from fault_verdicts import status
from tiny_runs import write_rows


@pytest.fixture
def folder(sweep: Sweep, tmp_path: Path) -> Path:
    """A recipe and all that it needs."""
    sweep.want("check")
    return fresh(tmp_path / "work", sweep.begin("nothing"))


def run(sweep: Sweep, folder: Path, *arguments: str) -> Answer:
    answer = sweep.server.run(folder, arguments)
    assert "Traceback" not in answer.output, answer.output
    return answer


LIMITS: dict[str, tuple[tuple[str, ...], int, str]] = {
    "some are cut": (("model.max_seq_length=300",), 0, "cut at the limit"),
    "some are dropped": (("model.max_seq_length=300", "data.long_samples=drop"), 0, "longer"),
    "no answer is left of any": (("model.max_seq_length=40",), 3, "max_seq_length"),
    "all are dropped": (("model.max_seq_length=40", "data.long_samples=drop"), 3, "longer"),
    "beyond the model": (("model.max_seq_length=4096",), 2, "512"),
}


@pytest.mark.parametrize("case", LIMITS)
def test_rows_longer_than_the_limit_are_counted_or_refused(sweep: Sweep, folder: Path, case: str) -> None:
    overrides, status, said = LIMITS[case]
    answer = run(sweep, folder, "check", "small.yaml", *overrides)
    assert answer.status == status, answer.output
    assert said in answer.output


@pytest.mark.parametrize("key", ["instruction", "input", "output"])
@pytest.mark.parametrize("text", ["</s>", "a <s> b"])
def test_the_text_of_a_special_token_in_a_row_is_counted(sweep: Sweep, folder: Path, key: str, text: str) -> None:
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    rows[3][key] += f" {text}"
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    answer = run(sweep, folder, "check", "small.yaml")
    assert answer.status == 0, answer.output
    assert "control tokens" in answer.output


ENCODINGS = ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_rows_in_another_encoding_are_the_same_rows(sweep: Sweep, folder: Path, encoding: str) -> None:
    """They give the same tokens: the store's manifest has the digest of its ids, and nothing else may differ."""
    assert run(sweep, folder, "check", "small.yaml").status == 0
    before = _digests(folder)
    text = (folder / "train.jsonl").read_text()
    (folder / "train.jsonl").write_bytes((("﻿" if encoding == "utf-16-le" else "") + text).encode(encoding))
    assert run(sweep, folder, "check", "small.yaml").status == 0
    assert _digests(folder) == before


def _digests(folder: Path) -> set[str]:
    """Of the ids in every store of the cache."""
    manifests = folder.glob("cache/tokens/*/manifest.json")
    return {json.loads(path.read_bytes())["sha256"]["input_ids.bin"] for path in manifests}


def _weights(value: float, name: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / "model/model.safetensors")
        tensors[name].view(-1)[7] = value
        save_file(tensors, folder / "model/model.safetensors", metadata={"format": "pt"})

    return spoil


NUMBERS: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "a weight is NaN": (_weights(float("nan"), "model.layers.0.mlp.down_proj.weight"), ()),
    "a norm is infinite": (_weights(float("inf"), "model.norm.weight"), ()),
    "a weight of the embedding is NaN": (_weights(float("nan"), "model.embed_tokens.weight"), ()),
    "a rate beyond float32": (lambda folder: None, ("train.learning_rate=1e38", "train.max_grad_norm=0")),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_a_loss_that_is_not_a_number_stops_the_run(sweep: Sweep, folder: Path, case: str) -> None:
    """No adapter is written, and nothing is called finished."""
    spoil, overrides = NUMBERS[case]
    spoil(folder)
    answer = run(sweep, folder, "train", "small.yaml", *overrides)
    assert answer.status in (2, 5), answer.output
    assert not (folder / "run/adapter").exists()
    assert status(folder) in (None, "failed")


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_fewer_rows_than_a_batch(sweep: Sweep, folder: Path, count: int) -> None:
    write_rows(folder / "train.jsonl", count)
    answer = run(sweep, folder, "train", "small.yaml", "train.gradient_accumulation_steps=2")
    assert answer.status == (0 if count else 3), answer.output
