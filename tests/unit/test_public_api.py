"""What `import strop` gives: the names that docs/python.md lists, each loaded when it is first used."""

import inspect
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import strop
from strop import errors

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "python.md"


def test_the_public_names_are_those_of_the_page() -> None:
    listed = re.findall(r"^\| `strop\.(\w+)", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert sorted(listed) == sorted(strop.__all__)
    assert set(strop.__all__) <= set(dir(strop))


def test_the_page_is_fresh() -> None:
    render = runpy.run_path(str(ROOT / "docs" / "make_python_reference.py"))["render"]
    assert PAGE.read_text(encoding="utf-8") == render()


def test_every_error_is_public() -> None:
    kinds = [kind for kind in vars(errors).values() if inspect.isclass(kind) and issubclass(kind, errors.StropError)]
    assert len(kinds) > 10
    for kind in kinds:
        assert getattr(strop, kind.__name__) is kind
        assert kind.__name__ in strop.__all__


@pytest.mark.parametrize("name", strop.__all__)
def test_options_are_keyword_only(name: str) -> None:
    value = getattr(strop, name)
    if inspect.isfunction(value):
        parameters = list(inspect.signature(value).parameters.values())
        assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters[2:]), parameters
        with pytest.raises(TypeError):
            value(*range(9))


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'tain'"):
        strop.tain  # noqa: B018
    with pytest.raises(ImportError):
        from strop import tain  # noqa: F401


def test_nothing_heavy_is_loaded_before_it_is_used() -> None:
    code = (
        "import sys, strop; before = set(sys.modules); strop.load_recipe; "
        "print('pydantic' in before, 'pydantic' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["False", "True", "False"]
