"""A container's process: Modal's own entrypoint, with the Volumes where this machine has them."""

import functools
import os
import runpy
import sys
from pathlib import Path

from modal._runtime import asgi

from strop.modal_runs import modal_app, serving_app
from strop.modal_runs.attempt import Pace, run_attempt
from strop.modal_runs.remote_run import Places

modal_app.PLACES = Places(Path(os.environ["FAKE_MODAL_ROOT"]))
program = (sys.executable, os.environ["FAKE_STROP"]) if "FAKE_STROP" in os.environ else (sys.executable, "-m", "strop")
modal_app.run_attempt = functools.partial(run_attempt, pace=Pace(0.05, 0.2), program=program)
if "FAKE_WEB_PORT" in os.environ:
    serving_app.PLACES = modal_app.PLACES
    serving_app.start = functools.partial(serving_app.start, port=int(os.environ["FAKE_WEB_PORT"]))
    asgi.get_ip_address = lambda interface: "127.0.0.1"  # not every machine has eth0
runpy.run_module("modal._container_entrypoint", run_name="__main__")
