"""A process with strop loaded that forks a child for every command: a trial takes the command's time, not torch's.

It reads a JSON object a line and answers each with one. `FaultServer` in fault_trials.py is its other side.
"""

import importlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

import fault_shim
from privileges import obey_permissions
from strop import cli
from strop.evaluation import samples

_PATIENCE = 300.0
_run = subprocess.run


def command(arguments: list[str]) -> int:
    """The exit status of a command of strop, as the interpreter would end with it."""
    sys.argv = ["strop", *arguments]
    try:
        cli.main()
    except SystemExit as error:
        return int(error.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def child(request: dict[str, Any], state: fault_shim.State) -> None:
    """Run a command with a fault in wait for it, and end."""
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(request["folder"])
    os.environ["STROP_CACHE"] = str(Path(request["folder"], "cache"))
    fault_shim.set_clock_wrong(request["skew"])
    obey_permissions()
    if request["fault"] is not None:
        fault_shim.arm(state, fault_shim.Fault(**request["fault"]), Path(request["folder"]))
    status = command(request["arguments"])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def trial(request: dict[str, Any]) -> dict[str, Any]:
    """Fork, wait, and kill what has to be killed."""
    state = fault_shim.shared_state()
    pid = os.fork()
    if pid == 0:
        child(request, state)
    handle = os.pidfd_open(pid)
    for delay, number in request["signals"]:
        if not select.select([handle], [], [], delay)[0]:
            os.kill(pid, number)
    hung = not select.select([handle], [], [], _PATIENCE)[0]
    if hung:
        os.kill(pid, signal.SIGKILL)
    os.close(handle)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    counted = {"calls": list(state.of_kind), "hits": state.hits, "hit": state.hit.decode()}
    return {"status": "hung" if hung else status, **counted}


def here(request: dict[str, Any]) -> dict[str, Any]:
    """Run a command in this process, so that no child has to import what it takes."""
    os.chdir(request["folder"])
    os.environ["STROP_CACHE"] = str(Path(request["folder"], "cache"))
    return {"status": command(request["arguments"]), "calls": [], "hits": 0, "hit": ""}


def run_forked(arguments: list[str], **settings: Any) -> "subprocess.CompletedProcess[str]":
    """`subprocess.run` for strop's own modules in a fork: PEFT is imported once, and the fault strikes there too."""
    if arguments[1:2] != ["-m"]:
        return _run(arguments, **settings)
    module = importlib.import_module(arguments[2])
    for package in ("peft", "xllamacpp"):
        importlib.import_module(package)
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        os.dup2(write_end, 2)
        try:
            module.main(*arguments[3:])
            status = 0
        except BaseException:
            os.write(2, traceback.format_exc().encode()[-4096:])  # as much as a pipe takes that nobody reads yet
        finally:
            os._exit(status)
    os.close(write_end)
    with os.fdopen(read_end, errors="replace") as pipe:
        said = pipe.read()
    return subprocess.CompletedProcess(arguments, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), "", said)


def main() -> None:
    """Answer requests until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)  # a forked child has none of its parent's threads
    samples.MAX_NEW_TOKENS = 4
    subprocess.run = run_forked  # type: ignore[assignment]
    for line in sys.stdin:
        request = json.loads(line)
        began = time.monotonic()
        answer = (here if request["here"] else trial)(request)
        answers.write(json.dumps(answer | {"seconds": time.monotonic() - began}) + "\n")
        answers.flush()
    os._exit(0)  # nothing here has to be ended with care


if __name__ == "__main__":
    main()
