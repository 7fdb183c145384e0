"""Settings that hold for every test."""

import fcntl
import os
import random
import signal
from collections.abc import Iterator
from importlib.util import find_spec

import hypothesis
import pytest
import torch

if not torch.cuda.is_available():
    # Triton's own helpers become interpreted or compiled ones when it is first imported, which peft may do.
    os.environ["TRITON_INTERPRET"] = "1"
    if find_spec("triton"):  # it has builds for Linux only
        import fast_interpreter

        fast_interpreter.install()

# Two test processes share two cores whose speed varies fourfold; a deadline would measure the machine.
hypothesis.settings.register_profile("strop", deadline=None)
hypothesis.settings.load_profile("strop")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shuffle", type=int, metavar="SEED", help="run the tests in another order")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("shuffle") is not None:
        random.Random(config.getoption("shuffle")).shuffle(items)
    if config.getoption("loadgroup", False):  # in a worker of `--dist loadgroup`
        for item in items:
            if file := _file_whose_fixtures_it_needs(item):
                item.add_marker(pytest.mark.xdist_group(file))


def _file_whose_fixtures_it_needs(item: pytest.Item) -> str | None:
    """The test's file if it makes things once for all of its tests: they go to one worker, and others alone."""
    file = item.nodeid.partition("::")[0]
    definitions = item._fixtureinfo.name2fixturedefs.values()  # type: ignore[attr-defined]
    needed = any(each.scope == "module" and each.baseid == file for same_name in definitions for each in same_name)
    return file.replace("/", "-") if needed else None


@pytest.fixture(autouse=True)
def _shares_the_gpu(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Workers share a GPU. A test marked `whole_gpu` takes its memory: it waits for the others, and they for it."""
    if request.node.get_closest_marker("gpu") is None:
        yield
        return
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    with (folder / "gpu.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if request.node.get_closest_marker("whole_gpu") else fcntl.LOCK_SH)
        yield


# A shell's background job ignores Ctrl-C, and so would every process that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
