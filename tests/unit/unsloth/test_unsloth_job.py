"""What the worker is given: the samples that a run visits, in order; and which recipes it refuses."""

import numpy as np
import pytest
import torch

from strop.errors import RecipeError
from strop.microbatch.order import Order
from strop.recipe import DataSection, ModelSection, Recipe, TrainSection
from strop.training.optim import learning_rate
from strop.unsloth import process
from strop.unsloth.process import LOADER, choose_dtype, choose_loader, rows_of
from training_doubles import Rows


def sample(rows: dict[str, np.ndarray], part: str, index: int) -> tuple[list[int], list[int]]:
    first, last = rows[f"{part}_offsets"][index : index + 2]
    return rows[f"{part}_input_ids"][first:last].tolist(), rows[f"{part}_labels"][first:last].tolist()


@pytest.mark.parametrize("length", [{"num_train_epochs": 2.5}, {"max_steps": 9}, {"max_steps": 2}])
def test_the_order_is_that_of_a_run_and_every_visit_finds_its_sample(length: dict[str, float]) -> None:
    """20 rows in steps of 6: epochs end inside steps, rows are repeated, and the last step of 2.5 epochs has 2."""
    section, store = TrainSection(per_device_train_batch_size=3, warmup_steps=1, **length), Rows()
    rows = rows_of(section, store, None)
    order = Order.of(section, 20)
    want = [order.samples(step) for step in range(order.num_steps)]
    visits = np.concatenate(want)
    assert len(rows["order"]) == len(visits)
    assert len(rows["train_offsets"]) - 1 == len(set(visits.tolist()))
    for place, index in zip(rows["order"], visits, strict=True):
        ids, labels = sample(rows, "train", place)
        learned = store[int(index)].learned
        assert ids == store[int(index)].input_ids.tolist()
        assert labels == np.where(learned, store[int(index)].input_ids, -100).tolist()
    assert rows["rates"].tolist() == [learning_rate(step, section, order.num_steps) for step in range(order.num_steps)]
    assert len(set(rows["seeds"].tolist())) == order.num_steps
    assert rows["held_out_offsets"].tolist() == [0]


def test_nothing_predicts_a_first_token() -> None:
    class AllLearned(Rows):
        def __getitem__(self, index: int):
            row = super().__getitem__(index)
            row.learned[:] = True
            return row

    rows = rows_of(TrainSection(max_steps=3), AllLearned(), AllLearned())
    for part in ("train", "held_out"):
        firsts = rows[f"{part}_offsets"][:-1]
        labels = rows[f"{part}_labels"]
        assert (labels[firsts] == -100).all()
        assert (np.delete(labels, firsts) != -100).all()


def test_held_out_rows_come_longest_first() -> None:
    lengths = np.diff(rows_of(TrainSection(max_steps=1), Rows(), Rows())["held_out_offsets"])
    assert len(lengths) == 20
    assert lengths.tolist() == sorted(lengths, reverse=True)


def recipe(**model: object) -> Recipe:
    return Recipe(
        model=ModelSection(model_name_or_path="m", **model),
        data=DataSection(train_file=("rows.jsonl",)),
        train=TrainSection(engine="unsloth"),
    )


def test_missing_packages_are_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LOADER, raising=False)
    monkeypatch.setattr(process.importlib.util, "find_spec", lambda name: None if name in ("unsloth", "trl") else 1)
    with pytest.raises(RecipeError, match=r"not installed: unsloth, trl.*pip install 'strop\[unsloth\]'"):
        choose_loader()


def test_unsloth_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LOADER, raising=False)
    monkeypatch.setattr(process.importlib.util, "find_spec", lambda name: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RecipeError, match="CUDA GPU"):
        choose_loader()


def test_another_loader_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LOADER, "axolotl")
    with pytest.raises(RecipeError, match="axolotl"):
        choose_loader()


def test_types_that_the_engine_does_not_support_are_refused() -> None:
    with pytest.raises(RecipeError, match="precision=float32"):
        choose_dtype(recipe(precision="float32"), "unsloth")
    with pytest.raises(RecipeError, match="no NF4"):
        choose_dtype(recipe(load_in_4bit=True), "transformers")
    assert choose_dtype(recipe(precision="float32"), "transformers") == "float32"
