"""What is saved comes back bit for bit, the newest first, and pruning leaves what it should."""

import os
from pathlib import Path

import pytest
import torch

from strop.errors import StropError
from strop.run.checkpoint import checkpoint_path, is_intact, load_newest, prune, save_checkpoint

STATE = {"step": 7, "seconds": 0.1 + 0.2, "best_loss": None, "nested": {"list": [1, 2.5, "x"]}}


def save(folder: Path, *steps: int) -> None:
    for step in steps:
        save_checkpoint(folder, step, {"lora": torch.full((3,), float(step))}, {"step": step})


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_nothing_saved_is_nothing_found(tmp_path: Path) -> None:
    assert load_newest(tmp_path / "checkpoints") == (None, [])
    assert load_newest(tmp_path) == (None, [])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool])
def test_tensors_come_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    numbers = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)) * 100
    saved = {
        "plain": numbers.to(dtype),
        "transposed": numbers.to(dtype).T,  # not contiguous
        "scalar": torch.tensor(3).to(dtype),
        "empty": torch.empty(0, dtype=dtype),
    }
    save_checkpoint(tmp_path, 7, saved, STATE)
    found, _ = load_newest(tmp_path)
    assert found is not None
    for name, tensor in saved.items():
        assert found.tensors[name].dtype == dtype
        assert torch.equal(found.tensors[name], tensor)


def test_not_a_number_and_infinity_keep_their_bits(tmp_path: Path) -> None:
    bits = torch.tensor([0x7FC00001, 0x7F800000, -0x800000, 1, -0x80000000], dtype=torch.int32)
    save_checkpoint(tmp_path, 1, {"x": bits.view(torch.float32)}, {})
    found, _ = load_newest(tmp_path)
    assert found is not None
    assert torch.equal(found.tensors["x"].view(torch.int32), bits)


def test_loaded_tensors_can_be_changed_without_touching_the_file(tmp_path: Path) -> None:
    save(tmp_path, 1)
    for _ in range(2):
        found, _ = load_newest(tmp_path)
        assert found is not None
        assert found.tensors["lora"][0] == 1.0
        found.tensors["lora"].zero_()


def test_the_state_comes_back_with_every_digit(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 7, {}, STATE)
    found, _ = load_newest(tmp_path)
    assert found is not None
    assert (found.state, found.step, found.path) == (STATE, 7, path)
    assert path.name == "step-00000007"


def test_the_highest_step_is_the_newest_beyond_eight_digits_too(tmp_path: Path) -> None:
    save(tmp_path, 99_999_999, 100_000_000)
    found, rejected = load_newest(tmp_path)
    assert found is not None
    assert (found.step, rejected) == (100_000_000, [])


def test_a_sound_checkpoint_is_not_written_twice(tmp_path: Path) -> None:
    save(tmp_path, 5)
    before = (tmp_path / "step-00000005" / "manifest.json").stat().st_ino
    save(tmp_path, 5)
    assert (tmp_path / "step-00000005" / "manifest.json").stat().st_ino == before


def test_saving_an_earlier_step_gives_up_the_later_ones(tmp_path: Path) -> None:
    save(tmp_path, 10, 20, 30, 15)
    assert names(tmp_path) == ["step-00000010", "step-00000015"]


def test_prune_keeps_the_newest_and_the_protected(tmp_path: Path) -> None:
    save(tmp_path, *range(1, 8))
    prune(tmp_path, keep=2, protect={3})
    assert names(tmp_path) == ["step-00000003", "step-00000006", "step-00000007"]
    prune(tmp_path, keep=5)
    assert len(names(tmp_path)) == 3


@pytest.mark.parametrize("keep", [0, -1])
def test_prune_never_removes_all(tmp_path: Path, keep: int) -> None:
    save(tmp_path, 1)
    with pytest.raises(ValueError, match="newest"):
        prune(tmp_path, keep=keep)


def test_a_folder_that_cannot_be_written_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(StropError, match="cannot be written"):
        save(tmp_path / "checkpoints", 1)


def test_a_run_has_a_checkpoint_only_if_it_verifies(tmp_path: Path) -> None:
    path = checkpoint_path(tmp_path, 3)
    assert path.name == "step-00000003"
    assert not is_intact(path)
    save(tmp_path, 3)
    assert is_intact(path)
    os.truncate(path / "state.json", 1)
    assert not is_intact(path)
