"""Which values contradict each other, and which do not although they nearly do."""

from typing import Any

import pytest

from strop.recipe.rules import contradictions
from strop.recipe.schema import DataSection, ModelSection, TrainSection

HELD_OUT = {"validation_file": ["v.jsonl"]}


def found(**keys: Any) -> list[set[str]]:
    """The keys of each contradiction; `keys` by their own names, whichever section they are of."""
    sections: dict[type, dict[str, Any]] = {
        ModelSection: {"model_name_or_path": "org/base"},
        DataSection: {"train_file": ["rows.jsonl"]},
        TrainSection: {},
    }
    for key, value in keys.items():
        [values] = [values for section, values in sections.items() if key in section.model_fields]  # type: ignore
        values[key] = value
    model, data, train = (section(**values) for section, values in sections.items())
    return [{key.partition(".")[2] for key in keys} for keys, text in contradictions(model, data, train) if text]


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ({}, []),
        ({"warmup_steps": 3}, []),
        ({"warmup_ratio": 0.1}, []),
        ({"warmup_steps": 3, "warmup_ratio": 0.1}, [{"warmup_steps", "warmup_ratio"}]),
        ({"max_steps": 1}, []),
        ({"max_steps": 0}, [{"max_steps"}]),
        ({"early_stopping_patience": 2, "eval_steps": 5, **HELD_OUT}, []),
        ({"eval_steps": 5, **HELD_OUT}, []),
        ({"early_stopping_patience": 2, **HELD_OUT}, [{"early_stopping_patience", "eval_steps"}]),
    ],
)
def test_schedule(keys: dict[str, Any], wanted: list[set[str]]) -> None:
    assert found(**keys) == wanted


def files(*entries: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"path": f"{number}.jsonl", **entry} for number, entry in enumerate(entries)]


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ({"train_file": files({"weight": 1}, {"weight": 2})}, []),
        ({"train_file": files({"repeat": 2}, {})}, []),
        ({"train_file": [*files({"repeat": 2}), "b.jsonl"]}, []),
        ({"train_file": files({"weight": 1}, {})}, [{"train_file"}]),
        ({"train_file": [*files({"weight": 1}), "b.jsonl"]}, [{"train_file"}]),
        ({"validation_file": files({})}, []),
        ({"validation_file": files({}, {"weight": 1})}, [{"validation_file"}]),
        ({"validation_file": files({"repeat": 2}, {})}, [{"validation_file"}]),
        ({"validation_file": files({"repeat": 1})}, [{"validation_file"}]),
    ],
)
def test_mixture(keys: dict[str, Any], wanted: list[set[str]]) -> None:
    assert found(**keys) == wanted


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ({"columns": {"text": "body"}}, []),
        ({"format": "alpaca"}, []),
        ({"columns": {"text": "body"}, "format": "alpaca"}, [{"columns", "format"}]),
        ({"system": "Be brief."}, []),
        ({"system": "Be brief.", "template": "chat"}, []),
        ({"system": "Be brief.", "template": "plain"}, [{"system", "template"}]),
        ({"system": "Be brief.", "template": "alpaca"}, [{"system", "template"}]),
        ({"chat_template": "{{ messages }}", "template": "plain"}, [{"chat_template", "template"}]),
        ({"long_samples": "split"}, []),
        ({"long_samples": "split", "long_overlap": 30, "max_seq_length": 32}, []),
        ({"long_samples": "split", "long_overlap": 31, "max_seq_length": 32}, [{"long_overlap", "max_seq_length"}]),
        ({"long_samples": "cut", "long_overlap": 8}, [{"long_overlap", "long_samples"}]),
        ({"long_samples": "drop", "long_overlap": 8}, [{"long_overlap", "long_samples"}]),
    ],
)
def test_rows(keys: dict[str, Any], wanted: list[set[str]]) -> None:
    assert found(**keys) == wanted


NEED_HELD_OUT = {
    "eval_steps": 5,
    "eval_on_start": True,
    "load_best_model_at_end": True,
    "sample_rows": 2,
}


@pytest.mark.parametrize("key", NEED_HELD_OUT)
def test_what_needs_held_out_rows(key: str) -> None:
    keys = {key: NEED_HELD_OUT[key]}
    assert found(**keys) == [{key, "validation_file", "validation_split_percentage"}]
    assert found(**keys, validation_split_percentage=5) == []
    assert found(**keys, **HELD_OUT) == []


def test_held_out_rows_come_from_one_place() -> None:
    both = {"validation_file", "validation_split_percentage"}
    assert found(validation_split_percentage=5, **HELD_OUT) == [both]
    keys = {"early_stopping_patience": 2}
    assert {"early_stopping_patience", *both} in found(**keys)


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ({"precision": "float8"}, []),
        ({"max_tokens_per_microbatch": 4096}, []),
        ({"engine": "unsloth"}, []),
        ({"engine": "unsloth", "precision": "bfloat16"}, []),
        ({"engine": "unsloth", "precision": "float8"}, [{"precision", "engine"}]),
        (
            {"engine": "unsloth", "max_tokens_per_microbatch": 4096},
            [{"max_tokens_per_microbatch", "engine"}],
        ),
    ],
)
def test_engine(keys: dict[str, Any], wanted: list[set[str]]) -> None:
    assert found(**keys) == wanted
