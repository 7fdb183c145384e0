"""The documentation says what the code does."""

import re
import runpy
from collections import Counter
from pathlib import Path

import pytest

import strop
from drawn_tree import drawn_modules
from strop import errors
from strop.app import app
from strop.recipe import list_recipes

ROOT = Path(__file__).parents[2]


def test_the_recipe_reference_is_fresh() -> None:
    render = runpy.run_path(str(ROOT / "docs" / "make_recipe_reference.py"))["render"]
    assert (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8") == render()


PAGES = ["README.md", "CONTRIBUTING.md", *sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("docs/**/*.md"))]


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def prose(text: str) -> str:
    """Without code, where a bracket is no link and a # no heading."""
    return re.sub(r"`[^`\n]+`", "`code`", re.sub(r"^( *)```.*?^\1```", "", text, flags=re.MULTILINE | re.DOTALL))


def links(text: str) -> list[str]:
    """Targets of links and pictures that are not on another host."""
    found = re.findall(r"\]\(([^)\s]+)\)|(?:src|srcset|href)=\"([^\"]+)\"", prose(text))
    return [target for pair in found for target in pair if target and not re.match(r"\w+:", target)]


def anchors(text: str) -> set[str]:
    """What GitHub makes of the headings: lower case, hyphens for spaces, no punctuation, numbers for doubles."""
    code_kept = re.sub(r"^( *)```.*?^\1```", "", text, flags=re.MULTILINE | re.DOTALL)
    found: Counter[str] = Counter()
    names = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *$", code_kept, flags=re.MULTILINE):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        names.add(f"{name}-{found[name]}" if found[name] else name)
        found[name] += 1
    return names


def broken_links(page: str, text: str) -> list[str]:
    """Links of a page that lead to no file, or to no heading of a page."""
    broken = []
    for link in links(text):
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent / name
        leads_somewhere = target.exists()
        if leads_somewhere and anchor:
            leads_somewhere = anchor in anchors(target.read_text(encoding="utf-8") if name else text)
        if not leads_somewhere:
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page: str) -> None:
    assert broken_links(page, read(page)) == []


def test_a_broken_link_is_seen() -> None:
    sound = ["#a-b-c-d", "#a-b-c-d-1", "docs/design.md#decisions-and-why", "docs/images", "../README.md"]
    broken = ["#a-b", "#not-a-heading", "docs/design.md#decisions", "docs/none.md", "docs/none.md#a-b-c-d"]
    text = "# A *b*, `c`: d!\n## A [b](README.md) c d\n```\n# Not a heading\n[x](none.md)\n```\n`[x](none.md)`\n"
    text += "".join(f"[x]({link})\n" for link in (*sound[:4], *broken)) + '<img src="docs/none.svg">'
    assert broken_links("README.md", text) == [*broken, "docs/none.svg"]
    assert broken_links("docs/data.md", f"[x]({sound[4]}) [y](README.md)") == ["README.md"]


SITE_ONLY = {"docs/api.md"}
"""On GitHub it is empty: the site's builder fills it from docstrings."""


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, waiting = {"README.md"}, ["README.md"]
    while waiting:
        page = waiting.pop()
        for link in links(read(page)):
            target = ((ROOT / page).parent / link.partition("#")[0]).resolve()
            name = target.relative_to(ROOT).as_posix() if target.is_relative_to(ROOT) else ""
            if name.endswith(".md") and name not in reached:
                reached.add(name)
                waiting.append(name)
    assert set(PAGES) - reached == SITE_ONLY


def modules() -> set[str]:
    """All that do more than say what their package is for, which is in the folder's line."""
    source = ROOT / "src" / "strop"
    names = {path.relative_to(source).as_posix() for path in source.rglob("*.py")}
    return {name for name in names if not name.endswith("/__init__.py")}


def test_the_design_draws_every_module_and_no_other() -> None:
    drawn = [module.path for module in drawn_modules(read("docs/design.md"))]
    assert [path for path, count in Counter(drawn).items() if count > 1] == []
    assert set(drawn) - modules() == set(), "there is no such module"
    assert modules() - set(drawn) == set(), "draw it"


def test_whichever_module_is_deleted_from_the_drawing_is_missed() -> None:
    page = read("docs/design.md")
    for module in drawn_modules(page):
        without = page[: module.start] + "deleted" + page[module.end :]
        assert modules() - {left.path for left in drawn_modules(without)} == {module.path}


def test_the_drawing_is_read_by_whole_names_and_folders() -> None:
    page = """
```
src/strop/
  a.py    like b.py, and (c.py)      d.py  too
  data/        what it is for      e.py  is not drawn here
    store.py · build.py (how)      tree.py
    inner/
      store.py
  store.py
tests/  x.py
```
  f.py
"""
    paths = ["a.py", "d.py", "data/store.py", "data/build.py", "data/tree.py", "data/inner/store.py", "store.py"]
    assert [module.path for module in drawn_modules(page)] == paths
    assert all(page[module.start : module.end] == module.path.rpartition("/")[2] for module in drawn_modules(page))


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
    assert list(errors.EXIT_CODES) == sorted({0, 129, 130, 143, *(kind.exit_code for kind in kinds_of_error())})
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
    reference = runpy.run_path(str(ROOT / "docs" / "make_command_reference.py"))
    examples = reference["EXAMPLES"].values()
    listed = {int(code) for _, codes in examples for code in re.findall(r"\d+", codes)}
    assert listed == set(errors.EXIT_CODES) - set(reference["ANY_COMMAND"])


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
