"""Runs give the same bits as when they were recorded: a change that keeps behaviour keeps all of them."""

import json
import os
import platform
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from golden_runs import PINNED
from waiting import PATIENCE

HERE = Path(__file__).parent


def runs(which: str, folder: Path) -> dict[str, Any]:
    """The current results of the runs, made in a process whose arithmetic is pinned."""
    command = [sys.executable, str(HERE / "golden_runs.py"), which, str(folder)]
    done = subprocess.run(
        command, env=os.environ | PINNED, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(json.loads(done.stdout))


def differing(found: dict[str, Any], recorded: dict[str, Any]) -> list[str]:
    """The runs that differ from the recorded ones, and how."""
    names = sorted(found.keys() | recorded.keys())
    return [
        f"{name}: {recorded.get(name)} -> {found.get(name)}" for name in names if found.get(name) != recorded.get(name)
    ]


@pytest.mark.slow
def test_cpu_runs_match_the_recorded_ones(tmp_path: Path) -> None:
    recorded = json.loads((HERE / "cpu.json").read_text())
    if platform.machine() != "x86_64" or torch.__version__.partition("+")[0] != recorded["torch"].partition("+")[0]:
        pytest.skip(f"recorded with torch {recorded['torch']} on x86-64")
    found = runs("cpu", tmp_path)["runs"]
    assert not differing(found, recorded["runs"])
    assert found["resumed"] == found["dropout"], "a resumed run equals an uninterrupted one"
    assert found["checkpointing"] == found["phi3"], "recomputed activations equal kept ones"
    different = ("phi3", "llama3", "qwen3", "dropout", "adamw-8bit", "epochs", "all-learned", "nf4")
    assert len({found[name]["adapter"] for name in different}) == len(different), "each option changes the adapter"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_runs_match_the_recorded_ones(tmp_path: Path) -> None:
    recorded = json.loads((HERE / "gpu.json").read_text()).get(torch.cuda.get_device_name())
    if recorded is None or torch.__version__ != recorded["torch"]:
        pytest.skip("recorded on other GPUs, or with another torch")
    found = runs("gpu", tmp_path)["runs"]
    if new := found.keys() - recorded["runs"].keys():
        warnings.warn(f"not recorded yet on this GPU: {', '.join(sorted(new))}", stacklevel=1)
    assert not differing({name: found[name] for name in found if name not in new}, recorded["runs"])
    for precision in ("float8", "bfloat16", "nf4"):
        assert found[f"{precision}-captured"] == found[f"{precision}-fused"] != found[f"{precision}-plain"]


def test_a_changed_run_is_detected() -> None:
    recorded = json.loads((HERE / "cpu.json").read_text())["runs"]
    assert not differing(recorded, recorded)
    changed = recorded | {"phi3": recorded["phi3"] | {"adapter": "0"}}
    assert [line.partition(":")[0] for line in differing(changed, recorded)] == ["phi3"]
    assert len(differing({}, recorded)) == len(recorded)
