"""The allocator's setting is strop's own, unless the user has one."""

import sys

import pytest

from strop.model.precision import grow_segments


@pytest.mark.skipif(sys.platform != "linux", reason="torch has it on Linux only")
@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}),
        ({"PYTORCH_ALLOC_CONF": "backend:native"}, {"PYTORCH_ALLOC_CONF": "backend:native"}),
        ({"PYTORCH_CUDA_ALLOC_CONF": "backend:native"}, {"PYTORCH_CUDA_ALLOC_CONF": "backend:native"}),
    ],
    ids=["none", "the user's", "the user's, under the older name"],
)
def test_what_the_environment_says_stands(
    environment: dict[str, str], expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = dict(environment)
    monkeypatch.setattr("os.environ", found)
    grow_segments()
    assert found == expected
