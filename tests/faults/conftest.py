"""What tests of faults share: the process that forks a child with strop loaded for each trial."""

from collections.abc import Iterator

import pytest

import fault_shim
from fault_sweep import Sweep
from fault_trials import FaultServer, fault_server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultServer]:
    """One for each worker of the tests."""
    if fault_shim.COMPILER is None:
        pytest.skip("there is no C compiler to make the shim with")
    scratch = tmp_path_factory.mktemp("server")
    with fault_server(fault_shim.compile_shim(scratch), scratch) as running:
        yield running


@pytest.fixture(scope="session")
def sweep(server: FaultServer, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """Folders to begin trials from, made when they are first asked for."""
    return Sweep(server, tmp_path_factory.mktemp("sweep"))
