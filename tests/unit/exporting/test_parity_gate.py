"""The gate's judgement, on answers made up for it."""

import importlib.util
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from strop.errors import RecipeError
from strop.exporting.merge import plan_shards
from strop.exporting.parity import gate
from strop.exporting.parity.distance import distance
from strop.exporting.parity.gate import Question, Reference, judge, limits_of

RNG = np.random.default_rng(0)
LOGITS = [RNG.normal(size=(4, 50)).astype(np.float32) * 3 for _ in range(2)]
ANSWERS = [[int(token) for token in row.argmax(1)] for row in LOGITS]
REFERENCE = Reference([Question(None, "a", [1, 2]), Question(None, "b", [1, 3])], ANSWERS, LOGITS, [2, 7], 4, "float32")


def told(**changes: Any) -> dict[str, Any]:
    right = {"prompts": [[1, 2], [1, 3]], "answers": ANSWERS, "stop_ids": [2, 7], "next": LOGITS}
    return right | changes


def test_the_same_is_the_same() -> None:
    parity, faults = judge("merged", "x 1", REFERENCE, told())
    assert faults == []
    assert (parity.same_prompts, parity.same_answers, parity.widest_parting) == (2, 2, 0.0)
    assert (parity.distance.kl, parity.distance.top1, parity.distance.logits) == (0.0, 1.0, 0.0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompts": [[1, 2], [1, 4]]}, "from token 1 on"),
        ({"prompts": [[1, 2, 9], [1, 3]]}, "from token 2 on"),
        ({"stop_ids": [7]}, "does not stop at token 2"),
        ({"answers": [ANSWERS[0], ANSWERS[1][:2]]}, "greedy answer 2"),
        ({"answers": [[49 - token for token in ANSWERS[0]], ANSWERS[1]]}, "greedy answer 1"),
        ({"next": [LOGITS[0], LOGITS[1] * 1.3]}, "relative error of the logits is"),
        ({"next": [LOGITS[0], LOGITS[1][:, ::-1]]}, "KL divergence of the next token is"),
        ({"next": [LOGITS[0], LOGITS[1] * np.nan]}, "KL divergence of the next token is nan"),
    ],
)
def test_each_difference_is_a_fault(changes: dict[str, Any], said: str) -> None:
    import re

    _, faults = judge("merged", "x 1", REFERENCE, told(**changes))
    assert any(re.search(said, fault) for fault in faults), faults


def test_bfloat16_has_its_own_rounding_and_no_more() -> None:
    """One percent of noise on the logits is a fault of an adapter in float32, and none of one in bfloat16."""
    noise = [logits * (1 + 0.01 * RNG.normal(size=logits.shape)).astype(np.float32) for logits in LOGITS]
    _, faults = judge("adapter", "x 1", REFERENCE, told(next=noise))
    assert any("relative error" in fault for fault in faults)
    rounded = replace(REFERENCE, dtype="bfloat16")
    assert judge("adapter", "x 1", rounded, told(next=noise))[1] == []
    assert any(
        "relative error" in fault for fault in judge("adapter", "x 1", rounded, told(next=[x * 1.1 for x in LOGITS]))[1]
    )
    wide = limits_of("gguf-q4_k_m", "bfloat16")
    assert wide == limits_of("gguf-q4_k_m", "float32")


def test_a_constant_added_to_all_logits_changes_nothing() -> None:
    found = distance(LOGITS, [logits + 5 for logits in LOGITS])
    assert found.logits < 1e-6
    assert abs(found.kl) < 1e-9


def test_shards_are_filled_in_order() -> None:
    shapes = {"a": (10, 10), "b": (5,), "c": (10, 10), "d": (200,)}
    assert plan_shards(shapes, 10_000) == [["a", "b", "c", "d"]]
    assert plan_shards(shapes, 220) == [["a", "b"], ["c"], ["d"]]


@pytest.mark.parametrize(
    ("kind", "package"),
    [("adapter", "peft"), ("adapter-nf4", "bitsandbytes"), ("gguf-q8_0", "xllamacpp"), ("gguf-f16", "gguf")],
)
def test_what_is_not_installed_is_said_before_any_work(
    kind: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate.require_consumer(kind)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else found(name))
    with pytest.raises(RecipeError, match=f"pip install 'strop\\[export\\]' {package}"):
        gate.require_consumer(kind)
