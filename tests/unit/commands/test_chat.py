"""Which row `strop chat --example` asks."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rows import write_rows
from strop.commands.chat import _held_out_row
from strop.data.build import falls_into
from strop.data.store import Split
from strop.errors import RecipeError
from strop.recipe import load_recipe


def run(tmp_path: Path, **data: Any) -> Any:
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": f"q {i}", "completion": f"a {i}"} for i in range(60)])
    lines = "".join(f"  {key}: {value}\n" for key, value in {"train_file": rows, **data}.items())
    (tmp_path / "mine.yaml").write_text(f"model: {{model_name_or_path: org/base}}\ndata:\n{lines}")
    return SimpleNamespace(recipe=load_recipe(tmp_path / "mine.yaml"))


def test_a_row_that_the_split_holds_out(tmp_path: Path) -> None:
    row = _held_out_row(run(tmp_path, validation_split_percentage=10))
    assert falls_into(Split("validation", 10, 42), row)


def test_no_row_is_held_out(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="holds out no rows to take a question from; use --prompt"):
        _held_out_row(run(tmp_path))
