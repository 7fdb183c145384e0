"""The guard around the command line: whatever ends a command is one message and an exit code, and a bug a traceback."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import strop.app
import strop.commands
from strop import cli
from strop.app import COMMANDS, load_command
from strop.errors import EXIT_CODES, DataError
from waiting import PATIENCE

CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of ...")
RUST = Exception("Error while serializing: I/O error: No space left on device (os error 28)")


def ends(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> int:
    def app() -> None:
        raise error

    monkeypatch.setattr(strop.app, "app", app)
    with pytest.raises(SystemExit) as exit:
        cli.main()
    assert isinstance(exit.value.code, int)
    return exit.value.code


def system(number: int, name: object = "runs/x/file") -> OSError:
    return OSError(number, os.strerror(number), name)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (DataError("rows.jsonl:3: no answer"), 3, "rows.jsonl:3: no answer"),
        (CUDA, 6, "CUDA out of memory. Is another program using it?"),
        (MemoryError(), 6, "this machine's memory does not suffice"),
        (RUST, 10, "No space left on device"),
        (RecursionError("maximum recursion depth exceeded"), 2, "nested too deeply"),
        (ValueError("embedded null byte"), 2, "NUL"),
        (ValueError("lstat: embedded null character in path"), 2, "NUL"),
        (UnicodeEncodeError("utf-8", "a\udcffb", 1, 2, "surrogates not allowed"), 2, r"a\udcffb: not every character"),
        (RuntimeError("Symlink loop from 'loop/x'"), 2, "name the file itself"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), 8, "no connection"),
        (TimeoutError("timed out"), 8, "no connection: timed out"),
        *(
            (system(number), 10, f"runs/x/file cannot be read or written: {os.strerror(number)}")
            for number in (
                *(errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.EMFILE),
                *(errno.ENFILE, errno.EFBIG, errno.ESTALE, errno.ETXTBSY, errno.ENOTRECOVERABLE),
            )
        ),
        *(
            (system(number), 2, f"runs/x/file: {os.strerror(number)}; ")
            for number in (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENOENT, errno.EEXIST)
        ),
        (system(errno.ENAMETOOLONG, "x" * 5000), 2, "x" * 120 + "..." + "x" * 60 + ": File name too long"),
        (system(errno.EACCES, b"a\nb\xff"), 10, r"a\nb\udcff cannot be read or written"),
        (system(errno.ENOMEM), 6, "runs/x/file: Cannot allocate memory"),
    ],
)
def test_it_is_told_in_one_message(
    error: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ends(error, monkeypatch) == code
    told = capsys.readouterr().err
    assert said in told
    assert len(told.strip().splitlines()) == 1, told
    assert code in EXIT_CODES


@pytest.mark.parametrize("error", [RuntimeError("shape mismatch"), OSError("no number"), ValueError("other")])
def test_a_bug_keeps_its_traceback_and_asks_for_a_report(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ends(error, monkeypatch) == 1
    told = capsys.readouterr().err
    assert f"{type(error).__name__}: {error}" in told
    assert "Traceback" in told
    assert "this is a bug in strop. Please report it" in told.splitlines()[-1]


def test_a_reader_that_has_gone_is_no_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ends(BrokenPipeError(errno.EPIPE, "Broken pipe"), monkeypatch) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_callers_handlers_are_put_back(number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(number)
    ends(DataError("x"), monkeypatch)
    assert signal.getsignal(number) is before


def test_the_list_of_commands_says_what_each_says_itself() -> None:
    files = {path.stem for path in Path(strop.commands.__path__[0]).glob("*.py") if "def command(" in path.read_text()}
    assert {name.replace("-", "_") for name in COMMANDS} == files
    for name, line in COMMANDS.items():
        assert line == " ".join(load_command(name).help.partition("\n\n")[0].split()), name


@pytest.mark.parametrize("arguments", ["--help", "--version", "frob"])
def test_the_list_of_commands_loads_none_of_them(arguments: str) -> None:
    """Each would load the recipe's schema, which takes longer than all the rest."""
    code = f"""
import sys
from strop.cli import main
sys.argv = ["strop", {arguments!r}]
try:
    main()
finally:
    print(*(name for name in sys.modules if name.startswith(("strop.recipe", "yaml", "strop.commands."))))
"""
    done = process("-c", code)
    assert done.stdout.splitlines()[-1] == "", done.stdout[-500:]


# ------------------------------------------------------------------------------------- in processes of their own

STRIKE = """
import os, signal, sys
_, module, number, *sys.argv[1:] = sys.argv
class Strike:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), getattr(signal, number))
sys.meta_path.insert(0, Strike())
from strop.cli import main
main()
"""


def process(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "timeout": PATIENCE, **options},  # type: ignore[call-overload]
    )


@pytest.mark.parametrize(
    ("name", "code", "module"),
    [
        ("SIGINT", 130, "strop.app"),
        ("SIGINT", 130, "pydantic"),
        ("SIGINT", 130, "strop.recipe.rules"),
        ("SIGINT", 130, "torch"),
        ("SIGTERM", -15, "typer"),
        ("SIGTERM", -15, "transformers"),
        ("SIGHUP", -1, "pydantic"),
    ],
)
def test_a_signal_in_the_first_second_is_one_line(name: str, code: int, module: str) -> None:
    done = process("-c", STRIKE, module, name, "check", "demo")
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (code, 1), done.stderr
    assert {"SIGINT": "Ctrl-C"}.get(name, name) in done.stderr


def test_what_the_caller_ignores_stays_ignored() -> None:
    done = process("-c", STRIKE, "typer", "SIGHUP", "recipes", preexec_fn=lambda: signal.signal(1, signal.SIG_IGN))
    assert (done.returncode, done.stderr) == (0, "")
    assert "demo" in done.stdout


def limited(size: int) -> None:
    """No file may become larger: a full disk for everyone, whatever it is mounted on."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("recipes",), ("runs", ".")])
def test_output_that_cannot_be_written(arguments: tuple[str, ...], tmp_path: Path) -> None:
    with (tmp_path / "out").open("w") as out:
        done = process("-m", "strop", *arguments, stdout=out, cwd=tmp_path, preexec_fn=lambda: limited(0))
    assert done.returncode == 10, done.stderr
    assert done.stderr.startswith("error: standard output cannot be written: File too large")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("arguments", [("--help",), ("recipes",), ("recipes", "demo")])
def test_output_that_nobody_reads(arguments: tuple[str, ...]) -> None:
    read, write = os.pipe()
    os.close(read)
    done = process("-m", "strop", *arguments, stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_closed_streams_are_not_taken_by_files(tmp_path: Path) -> None:
    """The next file would be number 1, and take what a library prints."""
    code = """
import os, strop.app
from strop.cli import main
strop.app.app = lambda: open("said", "w").write(str(os.open("x", os.O_CREAT)))
main()
"""
    process("-c", code, cwd=tmp_path, preexec_fn=lambda: [os.close(number) for number in (0, 1, 2)])
    assert int((tmp_path / "said").read_text()) > 2


@pytest.mark.parametrize("name", COMMANDS)
def test_no_argument_is_refused_for_what_the_machine_does_not_let_be_read(name: str) -> None:
    """Click would say of it that the argument is wrong, exit code 2: who opens the file says what the system says."""
    given = [option.type_descriptor for option in load_command(name).params]
    paths = [each.parameter_info for each in given if each.annotation is Path]
    assert not [info.help for info in paths if info.readable]
