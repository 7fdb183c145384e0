"""docs/reliability.md names a test for each class of faults, and each is there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CLASSES = 37
ROWS = re.findall(
    r"^\| (\d+) \| [^|]+ \| ([\d,]+)\+? \| [SFRV, then]+ \| [^|]+ \| (.+) \|$",
    (ROOT / "docs/reliability.md").read_text(encoding="utf-8"),
    flags=re.MULTILINE,
)


def test_every_class_is_there_or_left_out_by_name() -> None:
    assert sorted(int(number) for number, _, _ in ROWS) == sorted(set(range(1, CLASSES + 1)))


@pytest.mark.parametrize(("number", "cases", "tests"), ROWS, ids=[row[0] for row in ROWS])
def test_each_class_has_four_cases_and_tests_that_exist(number: str, cases: str, tests: str) -> None:
    assert int(cases.replace(",", "")) >= 4
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", tests)
    assert named
    for file, function in named:
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{file}::{function}"
