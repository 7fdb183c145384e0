"""The card beside an adapter: made, kept up to date, never written over a changed one, and its code runs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tiny_runs import environment, strop, write_bfloat16_recipe
from waiting import PATIENCE

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("somebodys-own")
    recipe = write_bfloat16_recipe(folder, hidden_size=32, intermediate_size=48)
    (folder / "model" / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Base\n")
    done = strop("train", recipe, cache=folder / "cache")
    assert done.returncode == 0, done.stderr
    return folder


def card(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def run_its_python(text: str, here: Path, base: Path, cache: Path) -> str:
    """The answer that the card's own program prints."""
    [program] = re.findall(r"```python\n(.*?)\n```", text, re.DOTALL)
    program = program.replace("PATH/TO/THIS/FOLDER", str(here)).replace("PATH/TO/THE/BASE/MODEL", str(base))
    program = program.replace("max_new_tokens=256", "max_new_tokens=8")
    program += "\nprint('stops at', model.generation_config.eos_token_id, 'prompt', prompt['input_ids'][0].tolist())"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=environment(cache),
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_run_ends_with_a_card_that_can_be_published(workshop: Path) -> None:
    text = card(workshop / "run" / "adapter")
    fields = yaml.safe_load(text.split("---\n")[1])
    assert (fields["license"], fields["library_name"]) == ("apache-2.0", "peft")
    assert "base_model" not in fields  # a folder is no hub id
    assert "trained with strop on 40 rows" in text
    assert "| Files | train.jsonl |" in text
    assert "Held-out loss: " in text
    assert str(workshop.parent) not in text
    assert "somebodys-own" not in text
    words = Path(workshop / "train.jsonl").read_text(encoding="utf-8")
    assert "lantern" in words
    assert "lantern" not in text  # nor any row


def test_its_code_asks_as_training_did(workshop: Path) -> None:
    cache = workshop / "cache"
    folder = workshop / "run" / "adapter"
    said = run_its_python(card(folder), folder, workshop / "model", cache)
    assert "stops at [2]" in said
    done = strop("export", workshop / "run", "--to", "merged", "-o", workshop / "merged", cache=cache)
    assert done.returncode == 0, done.stderr
    text = card(workshop / "merged")
    assert "Tried out in transformers" in text
    again = run_its_python(text, workshop / "merged", workshop / "model", cache)
    ids = re.compile(r"prompt \[([\d, ]+)\]")
    prompts = {found[1] for found in map(ids.search, (said, again)) if found}
    assert len(prompts) == 1
    assert len(prompts.pop().split(",")) > 5


def test_an_evaluation_is_entered_and_a_hand_is_respected(workshop: Path) -> None:
    run, cache = workshop / "run", workshop / "cache"
    evaluated = ("evaluate", run, "--rows", "2", "--max-new-tokens", "4")
    assert strop(*evaluated, cache=cache).returncode == 0
    text = card(run / "adapter")
    assert "| Exact match |" in text
    assert "the others of 2 generated answers" in text
    changed = text.replace("# run", "# My census model")
    assert changed != text
    (run / "adapter" / "README.md").write_text(changed, encoding="utf-8")
    done = strop(*evaluated, cache=cache)
    assert done.returncode == 0
    assert "changed by hand" in done.stdout + done.stderr
    assert card(run / "adapter") == changed


def test_a_card_that_cannot_be_written_stops_nothing(workshop: Path) -> None:
    run, cache = workshop / "run", workshop / "cache"
    (run / "adapter" / "README.md").unlink()
    (run / "adapter" / "README.md").mkdir()
    done = strop("evaluate", run, "--rows", "0", cache=cache)
    assert done.returncode == 0, done.stderr
    assert "README.md is not written" in done.stdout + done.stderr
