"""A container's process: Modal's own entrypoint, with the Volumes where this machine has them."""

import functools
import os
import runpy
import sys
from pathlib import Path

from strop.cloud import modal_app
from strop.cloud.attempt import Pace, run_attempt
from strop.cloud.job import Places

modal_app.PLACES = Places(Path(os.environ["FAKE_MODAL_ROOT"]))
program = (sys.executable, os.environ["FAKE_STROP"]) if "FAKE_STROP" in os.environ else (sys.executable, "-m", "strop")
modal_app.run_attempt = functools.partial(run_attempt, pace=Pace(0.05, 0.2), program=program)
runpy.run_module("modal._container_entrypoint", run_name="__main__")
