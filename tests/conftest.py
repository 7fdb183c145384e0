"""Settings that hold for every test."""

import os
import random
import signal
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


# A shell's background job ignores Ctrl-C, and so would every process that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
