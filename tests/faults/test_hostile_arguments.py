"""Every command with every argument that is no name: one short message, a documented exit code, and no traceback.

A child of this process runs each, so that nothing is imported twice. A seeded part of the cases is tried here;
`make test-hostile` tries all of them.
"""

import os
import random
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import pytest

from run_folders import write_run
from strop import cli
from strop.app import COMMANDS, load_command
from strop.errors import EXIT_CODES
from tiny_runs import write_rows

# Here, once: the children find all of it imported.
for command in COMMANDS:
    load_command(command)
for module in ("data.audit", "data.dataset", "data.survey", "model.lora", "reporting.page", "run.checkpoint"):
    import_module(f"strop.{module}")

SECONDS = 120
"""After which a command counts as hanging; on an idle core each takes a fraction of one."""
MOST_LINES = 12
PART = 150

NAMES = [
    *("a" * 5000, "a" * 256, "a/" * 2500 + "x", "x\0y", "\udcff\udcfe", "é" * 300, "𝒳", "", " ", "\n", "a\nb.yaml"),
    *("-", ".", "..", "../../../..", "~", "~nouser/x", "~nouser/*", "*", "**", "[", "{}", "%s", "[red]", "\\\\"),
    *("folder", "pipe", "socket", "loop", "loop/x", "dangling", "empty", "bytes", "deep", "rows.jsonl/x"),
    *("/dev/null", "/dev/zero", "/proc/self/mem", "/proc/self/fd", "/proc/self/environ", "run/run.json", "run/adapter"),
    *("package:", "package:os/x", "package:\0/x", "package:strop/../x", "http://[", "http://\udcff", "http://x:99999"),
    *("file:///etc/passwd", "other.yaml"),
]
"""What a file, a folder, a recipe, a run or an address may be called by accident or by malice."""

SHAPES: dict[str, Callable[[str], list[str]]] = {
    "init DATA": lambda name: ["init", name, "-o", "out.yaml"],
    "init -o": lambda name: ["init", "rows.jsonl", "-o", name],
    "init --model": lambda name: ["init", "rows.jsonl", "--model", name, "-o", "out.yaml"],
    "check RECIPE": lambda name: ["check", name],
    "check KEY": lambda name: ["check", "recipe.yaml", name],
    **{
        f"check {key}": lambda name, key=key: ["check", "recipe.yaml", f"{key}={name}"]  # type: ignore[misc]
        for key in ("model_name_or_path", "train_file", "chat_template", "name", "revision", "output_dir")
    },
    "plan RECIPE": lambda name: ["plan", name],
    "recipes NAME": lambda name: ["recipes", name],
    "train RECIPE": lambda name: ["train", name],
    "train output_dir": lambda name: ["train", "recipe.yaml", f"output_dir={name}"],
    "logs RUN": lambda name: ["logs", name],
    "pull RUN": lambda name: ["pull", name],
    "runs ROOT": lambda name: ["runs", name],
    "evaluate RUN": lambda name: ["evaluate", name],
    "evaluate --answers": lambda name: ["evaluate", "run", "--answers", name],
    "report RUN": lambda name: ["report", name],
    "report RUN RUN": lambda name: ["report", "run", name, "-o", "both.html"],
    "report -o": lambda name: ["report", "run", "-o", name],
    "report --port": lambda name: ["report", "run", "--watch", "--port", name],
    "chat RUN": lambda name: ["chat", name, "-p", "x"],
    "chat --tools": lambda name: ["chat", "run", "-p", "x", "--tools", name],
    "chat --example": lambda name: ["chat", name, "--example"],
    "serve RUN": lambda name: ["serve", name],
    "serve --api-key-env": lambda name: ["serve", "run", "--api-key-env", name],
    "export RUN": lambda name: ["export", name],
    "export -o": lambda name: ["export", "run", "--layout", "fused", "-o", name],
    "lm-eval RUN": lambda name: ["lm-eval", name],
    "COMMAND": lambda name: [name],
}
CASES = [pytest.param(make(name), id=f"{shape} {ascii(name)[:24]}") for shape, make in SHAPES.items() for name in NAMES]


def chosen() -> list[object]:
    """All cases, or those that this run has time for: always the same."""
    if "STROP_HOSTILE" in os.environ:
        return list(CASES)
    return random.Random(16).sample(CASES, PART)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with rows, a recipe without a model, a run, and one of everything that is no ordinary file."""
    desk = tmp_path_factory.mktemp("desk")
    write_rows(desk / "rows.jsonl", 12)
    for name in ("recipe.yaml", "other.yaml"):
        (desk / name).write_text("model: {model_name_or_path: nowhere}\ndata: {train_file: rows.jsonl}\n")
    write_run(desk / "run")
    (desk / "folder").mkdir()
    os.mkfifo(desk / "pipe")
    (desk / "loop").symlink_to("loop")
    (desk / "dangling").symlink_to("nowhere")
    (desk / "empty").touch()
    (desk / "bytes").write_bytes(bytes(range(256)) * 40)
    (desk / "deep").write_text("[" * 100_000)
    return desk


@pytest.fixture
def at_desk(desk: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(desk)
    monkeypatch.setenv("STROP_CACHE", str(desk / "cache"))
    for left in (*desk.glob("*.html"), desk / "out.yaml"):
        left.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as bound:
        (desk / "socket").unlink(missing_ok=True)
        bound.bind("socket")
        yield desk


def run(arguments: list[str], said: Path) -> tuple[int, str]:
    """The command's exit code, negative if a signal ended it, and what it said."""
    child = os.fork()
    if child == 0:
        signal.alarm(SECONDS)
        for number, flags in ((0, os.O_RDONLY), (1, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)):
            os.dup2(os.open(os.devnull if number == 0 else said, flags), number)
        os.dup2(1, 2)
        sys.stdin, sys.stdout, sys.stderr = (
            open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115 (the process ends with them)
            for number, mode in ((0, "r"), (1, "w"), (2, "w"))
        )
        sys.argv = ["strop", *arguments]
        code = 70  # main did not end as it should
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said.read_text("utf-8", "backslashreplace")


@pytest.mark.parametrize("arguments", chosen())
def test_it_is_answered_in_a_few_lines(arguments: list[str], at_desk: Path, tmp_path: Path) -> None:
    code, said = run(arguments, tmp_path / "said")
    assert "Traceback" not in said
    assert code in EXIT_CODES, said
    assert code != 1, said
    assert code == 0 or 0 < len([line for line in said.splitlines() if line.strip()]) <= MOST_LINES, said
    assert code == 0 or arguments[0] not in ("evaluate", "lm-eval") or not list(at_desk.glob("*.partial"))
