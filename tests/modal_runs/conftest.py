"""A fake Modal for each test, and strop's command line led to it."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fake_modal import SECRETS, FakeModal
from tiny_runs import environment
from waiting import PATIENCE


@pytest.fixture
def modal(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[FakeModal]:
    """A fake Modal; `pytest.mark.program(file)` has containers run that instead of strop."""
    folder = tmp_path / "modal"
    folder.mkdir()
    marker = request.node.get_closest_marker("program")
    environment = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if marker is not None:
        environment["FAKE_STROP"] = str(Path(__file__).parents[1] / "support" / marker.args[0])
    with FakeModal(folder, SECRETS, environment).running() as fake:
        yield fake


@pytest.fixture
def start(modal: FakeModal, tmp_path: Path) -> Callable[..., "subprocess.Popen[str]"]:
    """Start a module's command line, `strop` by default, as a client of the fake."""

    def start(*arguments: object, module: str = "strop") -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", module, *map(str, arguments)],
            env={key: value for key, value in environment(tmp_path / "cache").items() if not key.startswith("MODAL_")}
            | modal.client_env,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )

    return start


@pytest.fixture
def client(start: Callable[..., "subprocess.Popen[str]"]) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Run a command line to its end."""

    def client(*arguments: object, module: str = "strop") -> "subprocess.CompletedProcess[str]":
        process = start(*arguments, module=module)
        try:
            out, errors = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
        return subprocess.CompletedProcess(process.args, process.returncode, out, errors)

    return client
