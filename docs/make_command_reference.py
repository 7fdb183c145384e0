"""Writes docs/commands.md from the Typer app, so that it cannot go stale: python docs/make_command_reference.py."""

from pathlib import Path
from typing import Any

from strop.app import COMMANDS, load_command
from strop.errors import EXIT_CODES

ANY_COMMAND = (0, 1, 2, 6, 10, 129, 130, 143)
"""Exit codes of every command: the machine, its memory and its signals know no commands."""

PAGE = Path(__file__).with_name("commands.md")
INTRODUCTION = f"""# The commands

Made from the code by `python docs/make_command_reference.py`. `strop COMMAND --help` says the same.

## Exit codes

| code | meaning |
|---|---|
{"".join(f"| {code} | {meaning} |{chr(10)}" for code, meaning in EXIT_CODES.items())}
Every command can end with {", ".join(map(str, ANY_COMMAND[:-1]))} or {ANY_COMMAND[-1]}. Any other code that it can
end with is listed with it.
"""
EXAMPLES: dict[str, tuple[str, str]] = {
    "init": ("strop init my.csv --model HuggingFaceTB/SmolLM2-135M-Instruct -o my.yaml", "3"),
    "check": ("strop check my.yaml --preview 5", "3"),
    "plan": ("strop plan my.yaml num_train_epochs=3", "3"),
    "recipes": ("strop recipes demo > my.yaml", ""),
    "doctor": ("strop doctor my.yaml", ""),
    "train": ("strop train my.yaml learning_rate=1e-4 report_to=tensorboard", "3, 4, 5, 7, 8, 75"),
    "logs": ("strop logs runs/my --follow", "4, 8"),
    "pull": ("strop pull runs/my", "4, 8"),
    "runs": ("strop runs", ""),
    "evaluate": ("strop evaluate runs/my --rows 200 --group-by topic --answers answers.parquet", "3, 4"),
    "report": ("strop report runs/my runs/other -o both.html", ""),
    "lm-eval": ("strop lm-eval runs/my --tasks arc_easy,hellaswag", "4"),
    "chat": ("strop chat runs/my --prompt 'What is LoRA?' --compare", "3, 4, 8"),
    "serve": ("strop serve runs/my --on modal", "4, 8"),
    "export": ("strop export runs/my --to merged", "3, 4, 9"),
}
"""An example of each command, and its exit codes other than those that every command can end with."""


def render() -> str:
    parts = [INTRODUCTION]
    for name in COMMANDS:
        command = load_command(name)
        parts.append(f"\n## strop {name}\n\n{paragraphs(command.help or '')}\n\n{usage(name, command)}\n")
        parts.append(table(command))
        example, codes = EXAMPLES.get(name, ("", ""))
        if example:
            parts.append(f"\nExample: `{example}`\n")
        if codes:
            parts.append(f"\nExit codes: {codes}.\n")
    return "".join(parts)


def paragraphs(text: str) -> str:
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def usage(name: str, command: Any) -> str:
    arguments = [metavar(parameter) for parameter in command.params if parameter.param_type_name == "argument"]
    return f"    {' '.join(['strop', name, '[OPTIONS]', *arguments])}"


def table(command: Any) -> str:
    rows = []
    for parameter in command.params:
        is_option = parameter.param_type_name == "option"
        shown = ", ".join((*parameter.opts, *parameter.secondary_opts)) if is_option else metavar(parameter)
        default = parameter.default
        meaning = " ".join((parameter.help or "").split())
        if is_option and default not in (None, False, ()) and not callable(default):
            meaning += f" Default: {getattr(default, 'value', default)}."
        rows.append(f"| `{shown}` | {meaning.replace('|', chr(92) + '|')} |\n")
    return "\n| argument or option | meaning |\n|---|---|\n" + "".join(rows) if rows else ""


def metavar(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
