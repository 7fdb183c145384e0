"""The documentation says what the code does."""

import re
import runpy
from pathlib import Path

import pytest

import strop
from strop import errors
from strop.cli import app
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


def test_readme_names_the_shipped_recipes() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(name in readme for name in list_recipes())


def kinds_of_error() -> list[type[errors.StropError]]:
    found = [getattr(errors, name) for name in dir(errors)]
    return [kind for kind in found if isinstance(kind, type) and issubclass(kind, errors.StropError)]


def test_the_tree_of_errors_and_the_help_say_what_the_table_of_exit_codes_says() -> None:
    tree = (errors.__doc__ or "").splitlines()
    for kind in kinds_of_error():
        line = re.compile(rf"[ │├└─]*{kind.__name__} +{kind.exit_code} +{re.escape(kind.meaning)}")
        assert any(map(line.fullmatch, tree)), kind
        assert errors.EXIT_CODES[kind.exit_code] == kind.meaning, kind
    assert list(errors.EXIT_CODES) == sorted({0, 130, *(kind.exit_code for kind in kinds_of_error())})
    assert errors.exit_code_help() in (app.info.help or "")


def exit_codes_in(text: str) -> set[int]:
    found = re.finditer(
        r"\bexit(?:s|ed)?(?: with)?(?: codes?)? (\d+(?:(?:, | or |, or | and )\d+)*)", text, re.IGNORECASE
    )
    return {int(code) for match in found for code in re.findall(r"\d+", match[1])}


def test_every_exit_code_that_is_mentioned_is_in_the_table() -> None:
    pages = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *(ROOT / "src").rglob("*.py")]
    mentioned = {page.name: exit_codes_in(page.read_text(encoding="utf-8")) for page in pages}
    assert {
        name: codes - set(errors.EXIT_CODES) for name, codes in mentioned.items() if codes - set(errors.EXIT_CODES)
    } == {}
    assert {5, 6, 7, 8, 9, 75} <= mentioned["troubleshooting.md"]
    assert {2, 3, 4, 6, 8, 75} <= mentioned["modal.md"]
    examples = runpy.run_path(str(ROOT / "docs" / "make_command_reference.py"))["EXAMPLES"].values()
    listed = {int(code) for _, codes in examples for code in re.findall(r"\d+", codes)}
    assert listed == set(errors.EXIT_CODES) - {0, 1, 2}


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
