from pathlib import Path

import pytest
import torch

from strop.errors import RecipeError
from strop.parallel.launch import judge, launch, ranks_to_start
from strop.parallel.place import Place
from strop.run.folder import RunFolder

OF_FOUR = Place(rank=1, ranks=8, local_rank=1, local_ranks=4)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch):
    """Sets how many GPUs can be seen."""
    return lambda count: monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.parametrize(
    ("asked", "found", "started"), [(None, 0, 1), (None, 1, 1), (None, 4, 4), ("all", 4, 4), ("2", 4, 2), ("1", 1, 1)]
)
def test_each_gpu_gets_a_rank(gpus, asked: str | None, found: int, started: int) -> None:
    gpus(found)
    assert ranks_to_start(asked, Place(), "strop") == started


@pytest.mark.parametrize(
    ("asked", "found", "place", "engine", "said"),
    [
        ("4", 2, Place(), "strop", "2 GPUs can be seen"),
        ("2", 0, Place(), "strop", "no GPUs can be seen"),
        ("1", 0, Place(), "strop", "no GPUs can be seen"),
        ("all", 0, Place(), "strop", "no GPUs can be seen"),
        ("0", 2, Place(), "strop", "a number from 1, or all"),
        ("two", 2, Place(), "strop", "a number from 1, or all"),
        ("2", 4, OF_FOUR, "strop", "4 ranks were started"),
        (None, 4, OF_FOUR, "unsloth", "trains on one GPU"),
        ("2", 4, Place(), "unsloth", "trains on one"),
    ],
)
def test_never_another_number_than_was_asked_for(
    gpus, asked: str | None, found: int, place: Place, engine: str, said: str
) -> None:
    gpus(found)
    with pytest.raises(RecipeError, match=said):
        ranks_to_start(asked, place, engine)


def test_ranks_start_no_ranks_and_unsloth_takes_one(gpus) -> None:
    gpus(4)
    assert ranks_to_start(None, OF_FOUR, "strop") == ranks_to_start("4", OF_FOUR, "strop") == 1
    assert ranks_to_start(None, Place(), "unsloth") == 1


@pytest.mark.parametrize(
    ("codes", "code"),
    [
        ({0: 75}, 75),
        ({1: 75, 0: 3}, 3),
        ({1: -9}, 75),
        ({2: -9, 0: -15}, 75),
        ({1: 1}, 75),
        ({0: 1, 1: 75}, 1),
        ({3: 2}, 2),
    ],
)
def test_one_exit_code_for_all(codes: dict[int, int], code: int) -> None:
    assert judge(codes) == code


def test_a_command_of_all_ranks_ends_as_they_do(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """`strop --version` asks for no group."""
    assert launch(["--version"], 2, RunFolder(tmp_path)) == 0
    assert len(capfd.readouterr().out.split()) >= 2
    assert launch(["train", str(tmp_path / "none.yaml")], 2, RunFolder(tmp_path)) == 2
