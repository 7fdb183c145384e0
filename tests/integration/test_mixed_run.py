"""A run on several files of different shapes: what it says, keeps, resumes from and scores."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

import strop
from strop.errors import CheckpointError, Interrupted
from strop.recipe import Recipe, load_recipe
from strop.run.records import TrainRecord
from strop.run.reporter import Reporter
from tiny_runs import metrics, write_recipe, write_rows

WEIGHTS = "adapter/adapter_model.safetensors"


class Told(Reporter):
    """Keeps the notes, and sends SIGTERM after a step."""

    def __init__(self, stop_after: int = 0) -> None:
        self.notes: list[str] = []
        self._stop_after = stop_after

    def note(self, line: str) -> None:
        self.notes.append(line)

    def on_step(self, record: TrainRecord) -> None:
        if record.step == self._stop_after:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Three files in a mixture, two held out; an epoch and a half."""
    folder = tmp_path_factory.mktemp("mixture")
    os.environ["STROP_CACHE"] = str(folder / "cache")
    path = write_recipe(folder, max_steps=-1, num_train_epochs=1.5)
    written = json.loads(path.read_text())
    written["data"] = {
        "train_file": [
            {"path": str(write_rows(folder / "alpaca.jsonl", 12)), "weight": 0.5},
            {"path": _chats(folder / "chat.jsonl", 4), "weight": 0.25},
            {"path": _documents(folder / "docs.jsonl", 5), "columns": {"text": "body"}, "weight": 0.25},
        ],
        "validation_file": [str(write_rows(folder / "held.jsonl", 4, 100)), _chats(folder / "held-chat.jsonl", 3, 100)],
    }
    path.write_text(json.dumps(written))
    return load_recipe(str(path))


@pytest.fixture(scope="module")
def finished(recipe: Recipe) -> tuple[strop.Run, Told]:
    told = Told()
    return strop.train(recipe, reporter=told), told


def _chats(path: Path, count: int, offset: int = 0) -> str:
    rows = [
        {"id": i, "messages": [{"role": "user", "content": f"Say {i}!"}, {"role": "assistant", "content": f"{i}!"}]}
        for i in range(offset, offset + count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def _documents(path: Path, count: int) -> str:
    path.write_text("".join(json.dumps({"body": f"Once there was a {i}."}) + "\n" for i in range(count)))
    return str(path)


def changed(recipe: Recipe, **data: Any) -> Recipe:
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=data)})


def test_the_run_keeps_what_its_rows_were(finished: tuple[strop.Run, Told]) -> None:
    rows = finished[0].manifest.data
    assert rows is not None
    assert (rows.rows, rows.samples, rows.tokens_cut) == (21, 21, 0)
    assert rows.unused == {"id": 4}
    found = [(Path(s.name).name, s.format, s.columns, s.samples, s.epoch_samples, s.epoch_share) for s in rows.sources]
    assert found == [
        ("alpaca.jsonl", "alpaca", "", 12, 12, 0.5),
        ("chat.jsonl", "messages", "", 4, 6, 0.25),
        ("docs.jsonl", "text", "text: body", 5, 6, 0.25),
    ]
    assert sum(source.epoch_token_share or 0 for source in rows.sources) == pytest.approx(1, abs=1e-3)
    assert "From " in (finished[0].path / "report.html").read_text(encoding="utf-8")


def test_training_says_what_check_would(finished: tuple[strop.Run, Told], recipe: Recipe) -> None:
    notes = finished[1].notes
    assert "not used: id (4 rows)" in notes
    assert any(note.endswith("docs.jsonl: columns text: body") for note in notes)
    planned = Told()
    strop.plan(recipe, reporter=planned, probing=False)
    assert "not used: id (4 rows)" in planned.notes


def test_a_mixture_resumes_in_the_middle_of_an_epoch_bit_for_bit(
    finished: tuple[strop.Run, Told], recipe: Recipe, tmp_path: Path
) -> None:
    again = recipe.model_copy(update={"train": recipe.train.model_copy(update={"output_dir": str(tmp_path / "run")})})
    with pytest.raises(Interrupted):
        strop.train(again, reporter=Told(stop_after=4))
    resumed = strop.train(again, reporter=Told())
    assert (resumed.path / WEIGHTS).read_bytes() == (finished[0].path / WEIGHTS).read_bytes()
    assert metrics(resumed.path) == metrics(finished[0].path)
    assert load_recipe(resumed.path / "recipe.yaml").data == recipe.data


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"system": "Be brief."}, "recipe: data.system: None -> Be brief."),
        ({"long_samples": "drop"}, "recipe: data.long_samples: cut -> drop"),
        (
            {"chat_template": "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"},
            "recipe: data.chat_template",
        ),
        ({"columns": {"prompt": "instruction", "completion": "output"}}, "recipe: data.columns: {} -> {'prompt'"),
    ],
)
def test_a_run_is_not_continued_on_rows_that_are_read_otherwise(
    finished: tuple[strop.Run, Told], recipe: Recipe, change: dict[str, Any], said: str
) -> None:
    files = recipe.data.train_file[:2] if "columns" in change else recipe.data.train_file
    first = {"train_file": files[:1], "validation_file": recipe.data.validation_file[:1]} if "columns" in change else {}
    with pytest.raises(CheckpointError) as caught:
        strop.train(changed(recipe, **change, **first))
    assert said in str(caught.value)


def test_a_run_is_not_continued_with_another_repeat(finished: tuple[strop.Run, Told], recipe: Recipe) -> None:
    files = [file.model_copy(update={"weight": None, "repeat": 2.0}) for file in recipe.data.train_file]  # type: ignore[union-attr]
    with pytest.raises(CheckpointError, match=r"recipe: data.train_file: \[\{'weight': 0.5\}.* -> \[\{'repeat': 2.0\}"):
        strop.train(changed(recipe, train_file=tuple(files)))


def test_held_out_files_are_scored_by_themselves(finished: tuple[strop.Run, Told]) -> None:
    result = strop.evaluate(finished[0], num_generated=0, group_by="source")
    found = {Path(name).name: group.num_rows for name, group in result.groups.items()}
    assert found == {"held.jsonl": 4, "held-chat.jsonl": 3}
