"""The model that the tests of the training loop train."""

from pathlib import Path

import pytest

from tiny_models import write_checkpoint


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"), "smollm2")
