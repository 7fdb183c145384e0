"""The app of training runs: one image, three Volumes, one function.

Launcher and container both import it, so it must not import torch.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import modal

from strop.modal_runs.attempt import run_attempt
from strop.modal_runs.remote_run import CACHE_VOLUME, DATA_VOLUME, RUNS_VOLUME, Places, TrainingJob

PLACES = Places()
LOCK_FILE = Path(__file__).with_name("requirements.lock")
MAX_RETRIES = 10
"""The most that Modal allows. An attempt that runs out of time or crashes uses one up; a preemption does not."""

data_volume = modal.Volume.from_name(DATA_VOLUME, create_if_missing=True, version=2)
runs_volume = modal.Volume.from_name(RUNS_VOLUME, create_if_missing=True, version=2)
cache_volume = modal.Volume.from_name(CACHE_VOLUME, create_if_missing=True, version=2)

# torch's wheels include CUDA, and Triton its own assembler, so a CUDA base image would only be larger. debian_slim has
# gcc, which Triton needs to launch a kernel.
image = (
    modal.Image.debian_slim(python_version="3.12")
    .uv_pip_install(requirements=[str(LOCK_FILE)], extra_options="--require-hashes", uv_version="0.13.9")
    .env(
        {
            "HF_HOME": str(PLACES.cache / "huggingface"),
            "STROP_CACHE": str(PLACES.cache / "strop"),
            "TRITON_CACHE_DIR": str(PLACES.cache / "triton"),
            "TORCHINDUCTOR_CACHE_DIR": str(PLACES.cache / "inductor"),
            "PYTHONUNBUFFERED": "1",
        }
    )
    .add_local_python_source("strop", ignore=~modal.FilePatternMatcher("**/*.py", "**/reporting/assets/*"))
)

app = modal.App("strop")


class RunsVolume:
    """The runs Volume as an attempt sees it."""

    def reload(self) -> None:
        """See `Storage`."""
        with _as_os_error():
            runs_volume.reload()

    def commit(self) -> None:
        """See `Storage`."""
        with _as_os_error():
            runs_volume.commit()

    def read(self, path: str) -> bytes:
        """See `Storage`. Asks Modal, not the mount, where a reload is refused while the child's files are open."""
        with _as_os_error():
            return b"".join(runs_volume.read_file(path))


@contextmanager
def _as_os_error() -> Iterator[None]:
    try:
        yield
    except (modal.exception.Error, RuntimeError) as error:  # Modal raises RuntimeError if it refuses a commit or reload
        raise OSError(str(error)) from error


@app.function(
    image=image,
    volumes={
        str(PLACES.data): data_volume.with_mount_options(read_only=True),
        str(PLACES.runs): runs_volume,
        str(PLACES.cache): cache_volume,
    },
    retries=modal.Retries(max_retries=MAX_RETRIES, initial_delay=0.0, backoff_coefficient=1.0),
    timeout=86400,
    single_use_containers=True,
    cpu=2.0,  # reserved; tokenising may use more if the host has it
    memory=16384,
)
def train(job: dict[str, Any]) -> dict[str, Any]:
    """Make one attempt at a job; the launcher sets GPU, timeout and secrets with `with_options`."""
    return asdict(run_attempt(TrainingJob(**job), PLACES, RunsVolume()))
