"""Which row `strop chat --example` asks, and what is said of tools."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rows import write_rows
from strop.commands import chat
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


TOOL = {"type": "function", "function": {"name": "look_up", "description": "x", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(("tools", "given", "says"), [([TOOL], None, True), ([], None, False), ([TOOL], "own", False)])
def test_a_run_with_tools_says_that_they_are_to_be_given(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tools: list[Any],
    given: str | None,
    says: bool,
) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    rows = write_rows(tmp_path / "rows.jsonl", [{"messages": turns, **({"tools": tools} if tools else {})}] * 3)
    (tmp_path / "recipe.yaml").write_text(f"model: {{model_name_or_path: org/base}}\ndata: {{train_file: {rows}}}\n")
    monkeypatch.setattr(
        chat, "chat", lambda *_, **__: SimpleNamespace(stream=lambda question, tuned: iter(["an answer"]))
    )
    (tmp_path / "tools.json").write_text(f"[{json.dumps(TOOL)}]")
    chat.command(str(tmp_path), prompt="q", tools=tmp_path / "tools.json" if given else None)
    told = capsys.readouterr()
    assert told.out == "an answer\n"
    assert ("--tools FILE" in told.err) == says
