"""How many threads compute, and how they wait: what the system and the user say."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from strop import threads
from waiting import PATIENCE

ALLOWED = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
SET = ("GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "RAYON_NUM_THREADS")


def system(root: Path, group: str, files: dict[str, str]) -> Path:
    """A root with the control groups of a process."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(group, encoding="utf-8")
    for name, text in files.items():
        (root / "sys/fs/cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "sys/fs/cgroup" / name).write_text(text, encoding="utf-8")
    return root


V1 = "9:name=systemd:/\n4:memory:/a\n2:cpuacct,cpu:/docker/7f\n0::/\n"
CASES = {
    "v2, half a processor": ("0::/\n", {"cpu.max": "50000 100000\n"}, 0.5),
    "v2, no limit": ("0::/\n", {"cpu.max": "max 100000\n"}, None),
    "v2, a process's own group": ("0::/a/b\n", {"a/b/cpu.max": "100000 100000\n"}, 1),
    "v2, a group around it": ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "100000 100000\n"}, 1),
    "v2, the smallest": ("0::/a\n", {"a/cpu.max": "900000 100000", "cpu.max": "100000 100000\n"}, 1),
    "v1": (
        V1,
        {"cpuacct,cpu/docker/7f/cpu.cfs_quota_us": "20000", "cpuacct,cpu/docker/7f/cpu.cfs_period_us": "100000"},
        0.2,
    ),
    "v1, seen from inside": (
        V1,
        {"cpuacct,cpu/cpu.cfs_quota_us": "100000\n", "cpuacct,cpu/cpu.cfs_period_us": "100000\n"},
        1,
    ),
    "v1, no limit": (V1, {"cpuacct,cpu/cpu.cfs_quota_us": "-1\n", "cpuacct,cpu/cpu.cfs_period_us": "100000\n"}, None),
    "another group's limit": ("0::/a\n", {"b/cpu.max": "100000 100000\n"}, None),
    "nonsense": ("0::/\n", {"cpu.max": "\n"}, None),
    "no groups": ("", {}, None),
}


@pytest.mark.parametrize("case", CASES)
def test_processors_are_those_of_affinity_and_quota(case: str, tmp_path: Path) -> None:
    group, files, quota = CASES[case]
    found = threads.processors(system(tmp_path, group, files))
    assert found == (ALLOWED if quota is None else 1)


def test_a_larger_quota_rounds_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_allowed", lambda: 16)
    assert threads.processors(system(tmp_path, "0::/\n", {"cpu.max": "250000 100000"})) == 3


def settled(**given: str) -> dict[str, str]:
    """The variables of a process in which strop is used before torch is loaded."""
    environment = {name: value for name, value in os.environ.items() if name not in SET} | given
    code = "import os, strop; strop.train; print(*(f'{k}={v}' for k, v in sorted(os.environ.items())), sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    variables = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    return {name: variables[name] for name in SET if name in variables}


def test_threads_sleep_and_their_number_stays_torchs() -> None:
    found = settled()
    assert int(found["GOMP_SPINCOUNT"]) < 300_000
    assert found["KMP_BLOCKTIME"] == "1"
    if threads.processors() == ALLOWED:
        assert found.keys() == {"GOMP_SPINCOUNT", "KMP_BLOCKTIME"}, "another number makes sums in another order"


@pytest.mark.parametrize("given", [{"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "7"}, {"KMP_BLOCKTIME": "9"}])
def test_what_the_user_has_set_stays(given: dict[str, str]) -> None:
    found = settled(**given)
    assert {name: found.get(name) for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")} == {
        "OMP_WAIT_POLICY": None,
        "GOMP_SPINCOUNT": None,
        "KMP_BLOCKTIME": None,
    } | given


def test_a_quota_sets_the_number_unless_the_user_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(threads, "_allowed", lambda: 64)
    monkeypatch.setattr(threads, "processors", lambda: 2)
    environment = {"OMP_NUM_THREADS": "5"}
    threads.settle(environment)
    assert (environment["OMP_NUM_THREADS"], environment["RAYON_NUM_THREADS"]) == ("5", "2")


def test_a_process_that_has_loaded_torch_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", sys)
    environment: dict[str, str] = {}
    threads.settle(environment)
    assert environment == {}
