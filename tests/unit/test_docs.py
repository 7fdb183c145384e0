"""The documentation says what the code does."""

import re
import runpy
from pathlib import Path

import pytest

import strop
from strop import errors
from strop.recipe import list_recipes

ROOT = Path(__file__).parents[2]


def test_the_recipe_reference_is_fresh() -> None:
    render = runpy.run_path(str(ROOT / "docs" / "make_recipe_reference.py"))["render"]
    assert (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8") == render()


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *(p.relative_to(ROOT).as_posix() for p in ROOT.glob("docs/**/*.md"))]
)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), target


def test_the_design_lists_every_module() -> None:
    drawing = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    modules = (p.relative_to(ROOT / "src" / "strop") for p in (ROOT / "src" / "strop").rglob("*.py"))
    missing = [str(m) for m in modules if m.name != "__init__.py" and m.name.removesuffix(".py") not in drawing]
    assert not missing


def test_readme_names_the_shipped_recipes_and_exit_codes_are_documented() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(name in readme for name in list_recipes())
    tree = errors.__doc__ or ""
    for name in dir(errors):
        kind = getattr(errors, name)
        if isinstance(kind, type) and issubclass(kind, errors.StropError):
            assert re.search(rf"{name}\s+{kind.exit_code}\b", tree), name


def test_the_command_reference_is_fresh_and_has_an_example_of_each_command() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "make_command_reference.py"))
    text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert text == page["render"]()
    commands = re.findall(r"^## strop (\w+)$", text, flags=re.MULTILINE)
    assert {"init", "train", "evaluate"} <= set(commands) <= set(page["EXAMPLES"])


def test_the_pictures_are_fresh() -> None:
    for file, svg in runpy.run_path(str(ROOT / "docs" / "make_pictures.py"))["pictures"]().items():
        assert file.read_text(encoding="utf-8") == svg, f"run docs/make_pictures.py: {file.name}"


def test_the_api_reference_has_every_public_name() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^::: strop\.(\w+)$", page, flags=re.MULTILINE)) == sorted(strop.__all__)
