"""Writes the tables of docs/python.md from strop's public names and docstrings: python docs/make_python_reference.py.

What comes before them is written by hand, and its snippets are run by tests/integration/test_python_page.py.
"""

import inspect
from pathlib import Path

import strop

PAGE = Path(__file__).with_name("python.md")
TABLES = """## All public names

Made from the docstrings by `python docs/make_python_reference.py`; `help(strop.train)` tells more of each, and so does
the site's page on the Python API. `import strop` loads no torch; the functions do when they are called.
"""


def render() -> str:
    """The page."""
    names = sorted(strop.__all__, key=str.casefold)
    public = {name: getattr(strop, name) for name in names}
    functions = [name for name in names if inspect.isfunction(public[name])]
    errors = [name for name in names if inspect.isclass(public[name]) and issubclass(public[name], BaseException)]
    others = [name for name in names if name not in functions and name not in errors]
    by_hand = PAGE.read_text(encoding="utf-8").partition(TABLES.partition("\n")[0])[0]
    parts = [by_hand, TABLES]
    for title, heading, chosen in (
        ("Functions", "function", functions),
        ("What they take and return", "class", others),
        ("Errors", "error", errors),
    ):
        parts.append(f"\n### {title}\n\n| {heading} | |\n|---|---|\n")
        parts += [f"| `strop.{name}{arguments(public[name])}` | {first_line(public[name])} |\n" for name in chosen]
    return "".join(parts)


def arguments(value: object) -> str:
    """A function's parameters, those with a default as `name=...`; nothing for a class."""
    if not inspect.isfunction(value):
        return ""
    shown, starred = [], False
    for parameter in inspect.signature(value).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            shown, starred = [*shown, "*"], True
        shown.append(parameter.name if parameter.default is parameter.empty else f"{parameter.name}=...")
    return f"({', '.join(shown)})"


def first_line(value: object) -> str:
    """The first paragraph of a docstring, on one line."""
    return " ".join((inspect.getdoc(value) or "").partition("\n\n")[0].split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
