"""Tests in a forked child, over a copy of the tree.

A new Python takes 3 to 5 seconds to import torch, transformers and pytest; a child of a process that has them takes
none. Nothing of strop is imported before the fork, so the child reads the copy's edited file, and so does every program
that a test starts.
"""

import gc
import importlib.util
import os
import pickle
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from mutant import ROOT, Mutant

os.environ |= {"TRITON_INTERPRET": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}


def preload(names: Iterable[str] = ("torch", "transformers", "hypothesis")) -> None:
    """Import libraries once for all children, which then need not; and spare their garbage collector these objects."""
    for name in names:
        with suppress(Exception):  # parts of packages that are imported in one order only
            importlib.import_module(name)
    gc.collect()
    gc.freeze()


def _libraries() -> list[str]:
    """The modules that were imported and are neither strop's nor the tests'."""
    homes = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    return [name for name, module in sys.modules.items() if (getattr(module, "__file__", "") or "").startswith(homes)]


@contextmanager
def copied_tree() -> Iterator["Tree"]:
    """The files that git has or would have, elsewhere."""
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    with tempfile.TemporaryDirectory(prefix="strop-mutants-") as folder:
        root = Path(folder, "tree")
        for name in filter(None, names.split("\0")):
            if (ROOT / name).is_file():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, root / name)
        (root / ".venv").symlink_to(sys.prefix)
        yield Tree(root)


class Tree:
    """A copy of the repository in which files are edited and tests are run."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextmanager
    def edited(self, mutant: Mutant) -> Iterator[None]:
        path = self.root / "src/strop" / mutant.file
        sound = path.read_text("utf-8")
        _write(path, mutant.applied(sound))
        try:
            yield
        finally:
            _write(path, sound)

    def test(self, tests: Sequence[str], limit: float, plugin: Any = None) -> "Outcome":
        """Run tests up to the first that fails.

        Args:
            tests: Paths or node ids, relative to tests.
            limit: Seconds after which they are killed.
            plugin: For pytest; what it has become comes back with the outcome.
        """
        log, answer = (self.root.parent / name for name in ("log", "answer"))
        answer.unlink(missing_ok=True)
        began, child = time.monotonic(), os.fork()
        if child == 0:
            self._in_child(tests, log, answer, plugin)
        code = _wait(child, began + limit)
        libraries, plugin = pickle.loads(answer.read_bytes()) if answer.exists() else ([], None)
        return Outcome(code, time.monotonic() - began, log.read_text("utf-8", "replace"), libraries, plugin)

    def _in_child(self, tests: Sequence[str], log: Path, answer: Path, plugin: Any) -> None:
        code = 70
        try:
            os.setsid()
            with log.open("wb") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            os.chdir(self.root)
            temporary = self.root.parent / "tmp"
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            tempfile.tempdir = os.environ["TMPDIR"] = str(temporary)
            os.environ["PYTHONPATH"] = str(self.root / "src")
            sys.path.insert(0, str(self.root / "src"))
            options = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "--hypothesis-seed=0", "-m", "not gpu"]
            options += ["--assert=plain", "--tb=short"]  # to explain a difference of two large values can take minutes
            plugins = [_FirstFailure(), *([plugin] if plugin else [])]
            code = int(pytest.main([*options, *(f"tests/{name}" for name in tests)], plugins))
            answer.write_bytes(pickle.dumps((_libraries(), plugin)))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


class _FirstFailure:
    """Keeps hypothesis from looking for a smaller failing example, which can take minutes, and from remembering it."""

    def pytest_sessionstart(self) -> None:  # the profile of tests/conftest.py is loaded by now, and no test is
        phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
        hypothesis.settings.register_profile("first failure", deadline=None, database=None, phases=phases)
        hypothesis.settings.load_profile("first failure")


class FailingError(Exception):
    """Tests could not be run, or fail on the sound tree; with what pytest printed."""


class Outcome:
    """How a run of tests ended.

    Attributes:
        code: pytest's exit status; None if it ran into the limit or was killed.
        seconds: How long it took.
        log: What it printed.
        libraries: What was imported by then that no edit changes.
        plugin: As it was at the end.
    """

    def __init__(self, code: int | None, seconds: float, log: str, libraries: list[str], plugin: Any) -> None:
        self.code, self.seconds, self.log, self.libraries, self.plugin = code, seconds, log, libraries, plugin

    @property
    def passed(self) -> bool:
        return self.code == 0

    def judged(self) -> "Outcome":
        """The same, if it is the tests' own verdict and not pytest's, which could not run them as asked."""
        if self.code in (4, 5, 70):
            raise FailingError(self.log[-3000:])
        return self

    def sound(self) -> "Outcome":
        """The same, if all tests passed."""
        if not self.passed:
            raise FailingError(f"tests fail without any edit:\n{self.log[-3000:]}")
        return self


def _write(path: Path, text: str) -> None:
    """Change a source file; its compiled form, which Python trusts for the same second and size, goes."""
    path.write_text(text, "utf-8")
    Path(importlib.util.cache_from_source(str(path))).unlink(missing_ok=True)


def _wait(child: int, deadline: float) -> int | None:
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None
