"""One table of GPUs, and what is read off it."""

import ast
from pathlib import Path

import pytest

import strop
from strop.gpus import GPUS, larger, modal_name, parse_gpu

SOURCE = Path(strop.__file__).parent


def test_every_row_is_whole() -> None:
    for name, gpu in GPUS.items():
        assert gpu.name == name
        assert ("bfloat16" in gpu.tflops) == (gpu.capability >= (8, 0)), name
        assert ("float8" in gpu.tflops) == (gpu.capability >= (8, 9)), name
        assert 1e11 < gpu.bandwidth < 1e13, name
    assert len({gpu.billing_key for gpu in GPUS.values()}) == len(GPUS)


def named_together(tree: ast.AST) -> set[str]:
    """The most GPU types that one collection or call of a file names."""
    kinds = (ast.Tuple, ast.List, ast.Set, ast.Dict, ast.Call)
    groups = [
        {part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and part.value in GPUS}
        for node in ast.walk(tree)
        if isinstance(node, kinds)
    ]
    return max(groups, key=len, default=set())


def test_no_other_file_has_a_table_of_gpus() -> None:
    files = {path.relative_to(SOURCE).as_posix(): ast.parse(path.read_text("utf-8")) for path in SOURCE.rglob("*.py")}
    assert [name for name, tree in files.items() if len(named_together(tree)) > 1] == ["gpus.py"]
    assert named_together(ast.parse("GIB = {'T4': 16, 'L4': 24}")) == {"T4", "L4"}


@pytest.mark.parametrize(
    ("gpu", "want"),
    [
        ("H100", ("H100", 1)),
        ("a100-80gb:4", ("A100-80GB", 4)),
        ("B200+", ("B200", 1)),
        ("A100:2", ("A100-40GB", 2)),
        ("a10g", ("A10", 1)),
    ],
)
def test_modal_s_gpu_strings(gpu: str, want: tuple[str, int]) -> None:
    assert parse_gpu(gpu) == want


def test_only_gpus_with_more_memory_come_after_one_that_was_too_small() -> None:
    assert larger(["A10", "h100:2", "L4:8", "B200+"], than="L4") == ["h100:2", "B200+"]
    assert larger(["H200", "A100-80GB"], than="H100!") == ["H200"]
    assert larger(list(GPUS), than="A100-40GB") == ["L40S", "A100-80GB", "RTX-PRO-6000", "H100", "H200", "B200"]
    for gpu in GPUS:
        assert larger([gpu], than=gpu) == []


@pytest.mark.parametrize(
    ("driver", "name"),
    [
        ("NVIDIA H200", "H200"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
        ("NVIDIA A100-SXM4-40GB", "A100-40GB"),
        ("Tesla T4", "T4"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA A10G", "A10"),
        ("NVIDIA A10", "A10"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "RTX-PRO-6000"),
        ("NVIDIA B200", "B200"),
        ("NVIDIA GeForce RTX 4090", None),
        ("CPU", None),
    ],
)
def test_a_driver_s_name_is_modal_s(driver: str, name: str | None) -> None:
    assert modal_name(driver) == name
