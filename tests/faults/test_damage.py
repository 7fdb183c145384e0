"""Every kind of file that strop reads, damaged: a command that reads it says so, refuses, or does as if nothing were.

Never other results without a word, never a traceback. `make soak` tries 2,000 damages.
"""

import random
from collections import Counter

import pytest

from damages import DAMAGES, Case, Hospital, cases
from fault_sweep import Sweep
from soaking import rounds

FILES = sorted({case.file for case in cases()})
FEW, MANY = 2, 2000 // len(FILES)
SOUND = ("refused", "said", "the same")


@pytest.fixture(scope="session")
def hospital(sweep: Sweep, tmp_path_factory: pytest.TempPathFactory) -> Hospital:
    return Hospital(sweep, tmp_path_factory.mktemp("hospital"))


@pytest.mark.parametrize("file", FILES)
def test_no_damage_changes_a_result_unsaid(hospital: Hospital, file: str) -> None:
    draw = random.Random(file)
    every = [case for case in cases() if case.file == file]
    wrong = {}
    for _ in rounds(FEW, MANY):
        case = draw.choice(every)
        if (verdict := hospital.verdict(case, draw)) not in SOUND:
            wrong[case] = verdict
    assert not wrong


def test_the_control_damage_of_a_run_is_noticed_and_not_taken_for_none(hospital: Hospital) -> None:
    """Where all is found to be the same, nothing was damaged."""
    draw, found = random.Random(0), Counter[str]()
    for damage in ("a bit", "cut by half", "of another run", "gone"):
        found[hospital.verdict(Case("run/adapter/adapter_model.safetensors", damage, "chat"), draw)] += 1
    assert found["the same"] == 0


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_control_each_damage_changes_the_bytes(damage: str) -> None:
    data = bytes(range(1, 255)) * 40
    assert DAMAGES[damage](data, random.Random(0)) != data
