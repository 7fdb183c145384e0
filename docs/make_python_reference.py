"""Writes docs/python.md from strop's public names and their docstrings: python docs/make_python_reference.py."""

import inspect
from pathlib import Path

import strop

PAGE = Path(__file__).with_name("python.md")
INTRODUCTION = """# strop in Python

Made from the docstrings by `python docs/make_python_reference.py`; `help(strop.train)` tells more of each.

```python
import strop

recipe = strop.load_recipe("demo", {"train.max_steps": 20})
strop.check(recipe)  # raises what would stop the run
run = strop.train(recipe)
print(strop.evaluate(run).difference["nll"])  # tuned - base: value, low, high
print("".join(strop.chat(run).stream("What is LoRA?")))
strop.export(run, "merged")
```

`import strop` loads no torch; the functions do when they are called. Only these names are public:
"""


def render() -> str:
    """The page."""
    names = sorted(strop.__all__, key=str.casefold)
    public = {name: getattr(strop, name) for name in names}
    functions = [name for name in names if inspect.isfunction(public[name])]
    errors = [name for name in names if inspect.isclass(public[name]) and issubclass(public[name], BaseException)]
    others = [name for name in names if name not in functions and name not in errors]
    parts = [INTRODUCTION]
    for title, heading, chosen in (
        ("Functions", "function", functions),
        ("What they take and return", "class", others),
        ("Errors", "error", errors),
    ):
        parts.append(f"\n## {title}\n\n| {heading} | |\n|---|---|\n")
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
