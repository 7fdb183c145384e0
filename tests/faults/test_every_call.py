"""A whole process, from its first file call to its last, failed or killed at any of them: then the same command again.

Here some calls are drawn for each command and fault. `make faults` tries every call (hours).
"""

import errno
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

import fault_shim
from fault_shim import Kind
from fault_sweep import COMMANDS, FAULTS, Sweep
from fault_trials import FaultServer, fresh
from fault_verdicts import ADAPTER, wrong_at_end

EVERY = os.environ.get("STROP_FAULTS") == "all"
DRAWN = {
    ("train", "killed"): 3,
    ("train", "no space once"): 2,
    ("train", "no space for good"): 2,
    ("train", "input/output error once"): 2,
    ("train", "input/output error for good"): 1,
    ("train", "unreadable once"): 1,
    ("train", "permission denied for good"): 1,
    ("train", "read-only for good"): 1,
    ("train", "a short write"): 1,
    ("train, resumed", "killed"): 2,
    ("train, resumed", "no space for good"): 1,
    ("train, resumed", "unreadable once"): 1,
    ("train, finished", "no space once"): 1,
    ("evaluate", "killed"): 1,
    ("evaluate", "no space for good"): 1,
    ("evaluate", "read-only for good"): 1,
    ("export", "no space once"): 1,
    ("report", "killed"): 1,
    ("report", "input/output error once"): 1,
    ("init", "no space once"): 1,
    ("check", "no space for good"): 1,
}
"""How many calls are drawn of each; what is not here is for `make faults`."""


def points(sweep: Sweep, command: str, fault: str) -> list[int]:
    """The calls to strike."""
    every = range(1, sweep.calls(command, fault) + 1)
    return list(every) if EVERY else random.Random(f"{command} {fault}").sample(every, DRAWN[command, fault])


@pytest.mark.parametrize(
    ("command", "fault"), [(c, f) for c in COMMANDS for f in FAULTS] if EVERY else DRAWN, ids=lambda name: name
)
def test_struck_at_a_call_and_run_again(sweep: Sweep, command: str, fault: str) -> None:
    wrong, tried = {}, points(sweep, command, fault)
    for at in tried:
        answer, found = sweep.trial(command, fault, at)
        if found:
            wrong[f"call {at}: {answer.hit}"] = found
    assert not wrong, f"{len(wrong)} of {len(tried)}: {wrong}"


SPOILT = {
    "is missing": lambda folder: (folder / "run/report.html").unlink(),
    "is left over": lambda folder: (folder / "run/.tmp-report.html").write_text("x"),
    "/ is left over": lambda folder: (folder / "run/checkpoints/.tmp-removed-step-00000002").mkdir(),
    "adapter_model.safetensors differs": lambda folder: flip(folder / ADAPTER),
    "samples.jsonl differs": lambda folder: flip(folder / "run/samples.jsonl"),
    "does not verify": lambda folder: flip(folder / "run/checkpoints/step-00000004/state.json"),
    "README.md differs": lambda folder: (folder / "run/adapter/README.md").write_text(""),
    "metrics.jsonl differs": lambda folder: (folder / "run/metrics.jsonl").write_text(""),
    "status is None": lambda folder: (folder / "run/run.json").write_text("{}"),
}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("said", SPOILT)
def test_the_control_each_thing_that_must_hold_can_fail(sweep: Sweep, said: str, tmp_path: Path) -> None:
    want = sweep.want("train")
    folder = fresh(tmp_path / "spoilt", want)
    assert wrong_at_end(folder, want) == []
    SPOILT[said](folder)
    assert any(said in each for each in wrong_at_end(folder, want))


STEPS = """
import ctypes, os, sys, fault_shim
root, at, mode, error = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
os.chdir(root)
state = fault_shim.shared_state()
fault_shim.arm(state, fault_shim.Fault(mode, fault_shim.CHANGES, error, at), os.getcwd())
try:
    os.mkdir("a")
    with open("a/b", "wb", 0) as file:
        print("wrote", file.write(b"0123456789"), flush=True)
        os.fsync(file.fileno())
        file.truncate(4)
    os.rename("a/b", root + "/a/c")
    os.link("a/c", "a/d")
    os.chmod("a/c", 0o600)
    os.unlink("a/c")
    os.open("a/d", os.O_RDONLY)
    open("/dev/null", "w").write("outside")
except OSError as error:
    print("failed", error.errno)
print("counted", *state.of_kind)
"""


def steps(server_library: Path, root: Path, at: int = 0, mode: str = "count", error: int = 0) -> tuple[int, list[str]]:
    root.mkdir()
    support = str(Path(fault_shim.__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", STEPS, str(root), str(at), mode, str(error)],
        capture_output=True,
        text=True,
        env=os.environ | {"LD_PRELOAD": str(server_library), "PYTHONPATH": support},
        check=False,
    )
    return done.returncode, done.stdout.splitlines()


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if fault_shim.COMPILER is None:
        pytest.skip("there is no C compiler to make the shim with")
    return fault_shim.compile_shim(tmp_path_factory.mktemp("shim"))


def test_the_shim_counts_each_kind_of_call_under_its_root_alone(library: Path, tmp_path: Path) -> None:
    _, said = steps(library, tmp_path / "root")
    counted = dict(zip(Kind, map(int, said[-1].split()[1:]), strict=True))
    assert counted == dict.fromkeys(Kind, 1)


def test_the_shim_strikes_at_the_call_that_it_is_told(library: Path, tmp_path: Path) -> None:
    """Calls of CHANGES: mkdir, open, write, fsync, truncate, close, rename, link, chmod, unlink."""
    for at in range(1, 11):
        _, said = steps(library, tmp_path / str(at), at, "fail once", errno.ENOSPC)
        assert f"failed {errno.ENOSPC}" in said
        assert ("wrote 10" in said) == (at > 3)
        assert (tmp_path / str(at) / "a" / "d").exists() == (at > 8)
    assert "failed" not in " ".join(steps(library, tmp_path / "11", 11, "fail once", errno.ENOSPC)[1])
    assert steps(library, tmp_path / "killed", 7, "kill")[0] == -9
    assert sorted(os.listdir(tmp_path / "killed" / "a")) == ["b"]
    assert "wrote 5" in steps(library, tmp_path / "short", 3, "short")[1]


def test_a_struck_run_is_told_from_one_that_was_not(server: FaultServer, sweep: Sweep) -> None:
    """The control: a fault beyond the last call strikes nothing."""
    answer, wrong = sweep.trial("report", "killed", sweep.calls("report", "killed") + 1)
    assert (answer.hits, answer.status, wrong) == (0, 0, [])
