"""No text of others reaches the terminal as anything but text: not through any command, error, log or answer."""

import io
import json
import logging
import re
import sys
import warnings
from pathlib import Path

import pytest
from rich.table import Table

from strop.commands import console
from strop.errors import DataError
from strop.run.live import LiveReporter
from strop.run.records import Sample
from strop.run.reporter import LineReporter
from strop.terminal import Terminal, guard_libraries, log_text, message, one_line, shown
from tiny_runs import strop_all

ACTIVE = [
    "\x1b[2J", "\x1b]0;title\x07", "\x1b]8;;https://leak.invalid\x1b\\x\x1b]8;;\x1b\\", "\x9b31m", "\x90q", "\x00",
    "\x07", "\x08\x08\x08ok", "\x0b", "\x0c", "\x7f", "\x85", "\rerror: none", "\u202egnp.exe", "\u2066", "\u200e",
    "\u2028error:", "\ufeff", "\ud800", "\udcff", "\U000e0041",
]  # fmt: skip
FORBIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
STYLES = re.compile("\x1b\\[[0-9;]*m")


def require_clean(text: str, styled: bool = False) -> None:
    found = FORBIDDEN.search(STYLES.sub("", text) if styled else text)
    assert found is None, f"{found[0]!r} in {text!r}"


@pytest.mark.parametrize("active", ACTIVE)
def test_each_form_of_text(active: str) -> None:
    text = f"a{active}b"
    for each in (shown(text), one_line(text), message(text), log_text(text)):
        require_clean(each)
        assert each.startswith("a")
    assert ascii(active[0])[1:-1] in shown(text)


def test_what_people_write_stays() -> None:
    for text in ("naïve é 漢字 עברית العربية", "👩‍👩‍👧 می‌خواهم", "a\tb\nc", ":smile: [bold]x[/bold] \\x1b"):
        assert shown(text) == text


def test_long_texts_lose_their_middle() -> None:
    line = "a" * 5000 + "MIDDLE" + "b" * 5000
    assert len(message(f"{line}\n{line}")) < 9000
    assert message(line).startswith("aaa")
    assert message(line).endswith("bbb")
    assert "(6,006 more characters)" in message(line)
    assert "\n" not in one_line("a\nerror: b\r\nc")


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("active", ACTIVE)
def test_whatever_a_console_prints(active: str, colour: bool) -> None:
    file = io.StringIO()
    terminal = Terminal(file=file, force_terminal=colour, width=80)
    terminal.print(f"[red]a[/red]{active}b")
    terminal.print(f"{active}", markup=False, soft_wrap=True, end="")
    table = Table(f"{active}")
    table.add_row(f"x{active}y")
    terminal.print(table)
    require_clean(file.getvalue(), colour)
    assert ("\x1b[31ma" in file.getvalue()) is colour


def test_a_model_may_write_emoji_codes_and_markup() -> None:
    file = io.StringIO()
    Terminal(file=file).print(":smile: [red]x", markup=False)
    assert file.getvalue() == ":smile: [red]x\n"


@pytest.mark.parametrize("active", ACTIVE)
def test_notes_errors_and_samples(active: str, capsys: pytest.CaptureFixture[str]) -> None:
    live = io.StringIO()
    for reporter in (LineReporter(1, sys.stdout), LiveReporter(Terminal(file=live, force_terminal=True))):
        reporter.note(f"read {active}")
        reporter.on_samples([Sample(1, f"r{active}:1", f"q{active}", f"a{active}", f"t{active}")])
    console.note(f"a{active}b")
    console.error(DataError(f"rows{active}.jsonl:1: bad\n  rows.jsonl:2: [{active}]"))
    captured = capsys.readouterr()
    require_clean(captured.out)
    require_clean(captured.err, styled=True)
    require_clean(live.getvalue(), styled=True)
    assert captured.err.count("\n") == 2


def test_what_libraries_log_and_warn_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    made = logging.getLogRecordFactory()
    try:
        guard_libraries()
        stream = io.StringIO()
        handler = logging.StreamHandler(stream)
        logger = logging.getLogger("a library")
        logger.addHandler(handler)
        logger.warning("\x1b[2J %s %d %s", "\x1b[3J", 3, ValueError("\u202e"))
        logger.warning("plain \x9b")
        require_clean(stream.getvalue() + warnings.formatwarning(UserWarning("\x1b[2J"), UserWarning, "a\x1bb.py", 1))
        assert "\\x1b[3J 3 \\u202e" in stream.getvalue()
    finally:
        logging.setLogRecordFactory(made)


def commands(folder: Path) -> list[list[str]]:
    """Commands whose input is hostile: their arguments, files' names, recipes, rows and templates."""
    evil = "x\x1b[2Jy\u202ez\rw"
    rows = folder / f"rows{evil}.jsonl"
    turns = [{"role": "user", "content": f"Hi {evil}"}, {"role": "assistant", "content": f"Ho {evil}"}]
    rows.write_text(json.dumps({"messages": turns, f"key{evil}": 1}) + "\n" + json.dumps({f"no{evil}": evil}) + "\n")
    table = folder / f"t{evil}.csv"
    table.write_text(f'a,b{evil}\n"1\x1b[2J,2\n')
    parquet = folder / f"p{evil}.parquet"
    parquet.write_bytes(b"PAR1\x1b[2J" * 9)
    recipe = folder / f"r{evil}.yaml"
    recipe.write_text(json.dumps({"model": {f"na{evil}": evil}, "train": {"lr": evil}, f"s{evil}": {"k": 1}}))
    syntax = folder / f"s{evil}.yaml"
    syntax.write_bytes(b"model: {\x1b[2J")
    name = folder / "named.yaml"
    name.write_text(json.dumps({"model": str(folder / f"m{evil}"), "data": {"train_file": str(rows)}}))
    return [
        *(["init", str(path), "-o", str(folder / "new.yaml")] for path in (rows, table, parquet)),
        *(
            [command, str(path)]
            for command in ("check", "plan")
            for path in (recipe, syntax, name, rows, folder / evil)
        ),
        ["check", "demo", f"data.train_file={rows}"],
        ["check", "demo", f"data.chat_template={{{{ raise_exception('{evil}') }}}}"],
        ["check", "demo", f"lora.r={evil}", f"{evil}=1", evil],
        *([command, evil] for command in ("evaluate", "chat", "export", "report", "runs", "logs", evil, "serve")),
        ["check", "demo", f"--{evil}"],
        ["chat", f"https://{evil}", "-p", "x"],
    ]


def test_no_command_prints_it(tmp_path: Path) -> None:
    done = strop_all(commands(tmp_path), tmp_path)
    require_clean(done.stdout)
    require_clean(done.stderr)
    assert "Traceback" not in done.stderr
    assert "\\x1b[2J" in done.stderr + done.stdout
