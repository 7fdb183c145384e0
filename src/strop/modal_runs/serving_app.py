"""The app of `strop serve --on modal`: one image, one web server behind Modal's proxy. Containers import it too."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import modal

from strop.modal_runs.remote_run import CACHE_VOLUME, DATA_VOLUME, Places
from strop.modal_runs.vllm import PORT, ServingJob, start

PLACES = Places()
LOCK_FILE = Path(__file__).with_name("vllm.lock")
JOB_VARIABLE = "STROP_SERVING_JOB"
IDLE_SECONDS = 300
STARTUP_SECONDS = 1200
"""Enough to download weights that are not cached yet, and for vLLM to compile."""
_LONGEST_REQUEST = 3600
_CONCURRENT = 64

# vLLM compiles kernels when it starts, which needs CUDA's own compiler.
image = (
    modal.Image.from_registry("nvidia/cuda:12.9.0-devel-ubuntu22.04", add_python="3.12")
    .entrypoint([])
    .uv_pip_install(requirements=[str(LOCK_FILE)], extra_options="--require-hashes", uv_version="0.13.9")
    .env(
        {
            "HF_HOME": str(PLACES.cache / "huggingface"),
            "VLLM_CACHE_ROOT": str(PLACES.cache / "vllm"),
            "VLLM_NO_USAGE_STATS": "1",
            "PYTHONUNBUFFERED": "1",
        }
    )
    .add_local_python_source("strop")
)


def serve() -> None:
    """What the container runs: start vLLM. Modal waits for its port and sends requests there."""
    start(ServingJob(**json.loads(os.environ[JOB_VARIABLE])), PLACES)


def build_app(
    name: str, job: ServingJob, gpu: str, secrets: Sequence[str]
) -> "tuple[modal.App, modal.Function[..., Any, Any]]":
    """Build the app that serves a job: at most one container, none while idle, and only callers with a proxy token."""
    app = modal.App(name)
    web = modal.web_server(PORT, startup_timeout=STARTUP_SECONDS, requires_proxy_auth=True)
    function: modal.Function[..., Any, Any] = app.function(
        image=image,
        gpu=gpu,
        env={JOB_VARIABLE: json.dumps(asdict(job))},
        secrets=[modal.Secret.from_name(secret) for secret in secrets],
        volumes={
            str(PLACES.data): modal.Volume.from_name(DATA_VOLUME, create_if_missing=True, version=2).with_mount_options(
                read_only=True
            ),
            str(PLACES.cache): modal.Volume.from_name(CACHE_VOLUME, create_if_missing=True, version=2),
        },
        min_containers=0,
        max_containers=1,
        scaledown_window=IDLE_SECONDS,
        timeout=_LONGEST_REQUEST,
        startup_timeout=STARTUP_SECONDS,
        cpu=2.0,
        memory=16384,
    )(modal.concurrent(max_inputs=_CONCURRENT)(web(serve)))
    return app, function
