"""What must hold of a folder after a fault, and after the same command has run again without one."""

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from fault_shim import Fault, Kind
from fault_trials import Answer
from strop.errors import StropError
from strop.run.checkpoint import STATE_FILE, TENSORS_FILE, is_intact
from tiny_runs import metrics

ADAPTER = "run/adapter/adapter_model.safetensors"
_TIMED = ("run.json", "run.lock", "metrics.jsonl", "report.html", "README.md")
"""Files that no two runs have alike, for what they hold of times and process ids."""


def wrong_at_end(folder: Path, want: Path) -> list[str]:
    """What is not as where nothing disturbed the command; both are folders of trials."""
    here, there = _files(folder), _files(want)
    wrong = [f"{name} is missing" for name in sorted(there - here)]
    wrong += [f"{name} is left over" for name in sorted(here - there)]
    wrong += [f"{path.relative_to(folder)}/ is left over" for path in folder.rglob(".tmp-*") if path.is_dir()]
    wrong += [f"{name} differs" for name in sorted(here & there) if not _is_same(folder / name, want / name)]
    wrong += [f"{path.name} does not verify" for path in folder.glob("run/checkpoints/step-*") if not is_intact(path)]
    if status(want) != status(folder):
        wrong.append(f"the run's status is {status(folder)}")
    return wrong


def _files(folder: Path) -> set[str]:
    """All of its files, but for stores that a killed process was building: others may be at it, so they stay a day."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir())
    return {str(path) for path in found if not any(part.startswith(".building-") for part in path.parts)}


def _is_same(path: Path, want: Path) -> bool:
    if path.name == "metrics.jsonl":
        return _is_same_but_for_time(path, want)
    if path.name in _TIMED or (path.suffix == ".json" and path.parent.name.startswith("step-")):
        return path.stat().st_size >= 0.8 * want.stat().st_size
    return path.read_bytes() == want.read_bytes() or _is_same_before_its_evaluation(path, want)


def _is_same_before_its_evaluation(path: Path, want: Path) -> bool:
    """Whether this is a checkpoint that was saved when a signal cut off the evaluation of its step.

    It lacks nothing but what that evaluation would have added, the best weights so far, and it is kept: to replace
    it by one with them would open an instant with neither.
    """
    if path.name != TENSORS_FILE or _evaluated_step(path) >= _evaluated_step(want):
        return False
    here, there = (
        {name: tensor for name, tensor in safetensors.torch.load_file(each).items() if not name.startswith("best")}
        for each in (path, want)
    )
    return here.keys() == there.keys() and all(torch.equal(here[name], there[name]) for name in here)


def _evaluated_step(tensors: Path) -> int:
    state: dict[str, Any] = json.loads(tensors.with_name(STATE_FILE).read_bytes())
    return int(state["evaluated_step"])


def _is_same_but_for_time(path: Path, want: Path) -> bool:
    with suppress(StropError):  # a damaged line
        return metrics(path.parent) == metrics(want.parent)
    return False


def wrong_when_struck(answer: Answer, fault: Fault, folder: Path, want: Path) -> list[str]:
    """What may not be after a command was struck: a traceback, another exit code, a state that is not true."""
    wrong = []
    inputs = (
        (2, 3) if fault.kinds == Kind.READ else ()
    )  # of recipe, rows and model, refused as any other fault of theirs
    if answer.status not in (*_ALLOWED[fault.mode], *inputs):
        wrong.append(f"exit {answer.status}")
    if "Traceback" in answer.output:
        wrong.append(f"traceback: {answer.output.strip().splitlines()[-1]}")
    if status(folder) == "finished" and digest(folder / ADAPTER) != digest(want / ADAPTER):
        wrong.append("called finished without its adapter")
    if answer.status == 0 and fault.mode.startswith("fail") and not _is_said(answer.output):
        wrong += [f"exit 0, nothing said, and {each}" for each in wrong_at_end(folder, want)]
    return wrong


_ALLOWED: dict[str, tuple[int, ...]] = {
    "count": (0,),
    "kill": (-9,),
    "fail once": (0, 10),
    "fail from": (0, 10),
    "short": (0,),
    "delay": (0,),
}


def _is_said(output: str) -> bool:
    return "cannot be" in output or "not written" in output or "could not" in output


def status(folder: Path) -> Any:
    """What run.json says, if there is one."""
    try:
        return json.loads((folder / "run" / "run.json").read_bytes()).get("status")
    except (OSError, ValueError):
        return None


def digest(path: Path) -> str | None:
    """SHA-256 of a file; None where there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None
