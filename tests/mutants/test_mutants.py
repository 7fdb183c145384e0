"""The runner tells killed edits from those that survive; four of the list are killed.

All of them: make test-mutants. The runner looks at every edit of the list before it starts, so one that no longer fits
the source fails here.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ORDER = "tests: ['unit/microbatch/test_order.py::test_the_order_that_a_recipe_asks_for']"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, HERE, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_some_of_the_list_are_killed() -> None:
    done = run("--only", "microbatch/tree.py", "--sample", "4", "--seed", "1")  # whose tests take a second
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 of 4 killed" in done.stdout


@pytest.mark.slow
def test_an_edit_that_changes_nothing_survives(tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text(
        f"microbatch/order.py:\n  {ORDER}\n  edits:\n"
        "    - {old: 'max_steps = section.max_steps if section.max_steps > 0', new: 'max_steps = 5 if True'}\n"
        "    - {old: '_ROUNDS = 8', new: '_ROUNDS = 9'}\n"
    )
    done = run("--list", str(tmp_path))
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(r"^survived: microbatch/order.py:\d+: _ROUNDS = 8 -> _ROUNDS = 9$", done.stdout, re.MULTILINE)
    assert "1 of 2 killed (50.0%)" in done.stdout


@pytest.mark.parametrize(("old", "count"), [("no such text", "0"), ("self", r"\d\d")])
def test_an_edit_that_does_not_fit_the_source_is_named(old: str, count: str, tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text(
        f"microbatch/order.py:\n  {ORDER}\n  edits:\n    - {{old: '{old}', new: 'x'}}\n"
    )
    done = run("--list", str(tmp_path))
    assert done.returncode == 2
    assert re.search(rf"list.yaml: microbatch/order.py: {count} times: '{old}'", done.stderr)


def test_a_room_without_edits_is_no_success() -> None:
    done = run("--only", "no_such_room/")
    assert done.returncode == 2
    assert "no such edit" in done.stderr


@pytest.mark.slow
def test_tests_that_fail_without_any_edit_are_named(tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text(
        "microbatch/order.py:\n  tests: [unit/microbatch/no_such_file.py]\n  edits:\n"
        "    - {old: '_ROUNDS = 8', new: '_ROUNDS = 9'}\n"
    )
    done = run("--list", str(tmp_path))
    assert done.returncode == 2
    assert "tests fail without any edit" in done.stderr
