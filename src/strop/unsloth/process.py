"""Unsloth's process: the files that it reads (settings, rows and their order), and the pipes to it."""

import importlib.util
import json
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from strop.data.store import SampleStore
from strop.errors import RecipeError, StropError
from strop.microbatch.order import Order
from strop.model.lora import initial_tensors, resolve_targets
from strop.model.pretrained.folder import ModelFolder
from strop.recipe import Recipe, TrainSection
from strop.run.durable import replace_file
from strop.training.engine import dropout_seed
from strop.training.optim import learning_rate

LOADER = "STROP_UNSLOTH_LOADER"
"""Environment variable: `transformers` replaces Unsloth with plain transformers and PEFT, which run on any machine. So
everything here except Unsloth itself can be tested without a GPU."""

_AS_IT_IS = {
    *("per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate", "weight_decay", "optim"),
    *("adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"),
}
"""Keys that mean the same in TRL's trainer."""

_CHUNK = 1 << 16
"""Samples copied at a time."""


def choose_loader() -> str:
    """`unsloth`, or the loader that the environment variable names.

    Raises:
        RecipeError: It is not installed, or needs a GPU and there is none.
    """
    loader = os.environ.get(LOADER, "unsloth")
    if loader not in ("unsloth", "transformers"):
        raise RecipeError(f"{LOADER}={loader}: must be unsloth or transformers")
    needed = ("unsloth", "bitsandbytes") if loader == "unsloth" else ("peft",)
    if missing := [name for name in (*needed, "trl", "datasets") if importlib.util.find_spec(name) is None]:
        raise RecipeError(
            f"train.engine=unsloth: not installed: {', '.join(missing)}. Install them with: "
            "pip install 'strop[unsloth]', or remove train.engine"
        )
    if loader == "unsloth" and not torch.cuda.is_available():
        raise RecipeError("train.engine=unsloth: Unsloth needs a CUDA GPU, and there is none here; remove train.engine")
    return loader


def choose_dtype(recipe: Recipe, loader: str) -> str:
    """The type of the activations, and of the frozen weights unless they are NF4.

    Raises:
        RecipeError: The loader does not support the recipe's type on this machine.
    """
    asked = recipe.model.precision
    if loader == "transformers" and recipe.model.load_in_4bit:
        raise RecipeError(f"model.load_in_4bit=True: {LOADER}=transformers has no NF4; remove one of the two")
    if loader == "transformers":
        on_gpu = torch.cuda.is_available()
        return asked if asked != "auto" else "bfloat16" if on_gpu else "float32"
    if asked == "float32":
        raise RecipeError("model.precision=float32: train.engine=unsloth always uses bfloat16; remove model.precision")
    if torch.cuda.get_device_capability() < (8, 0):
        raise RecipeError("train.engine=unsloth: this GPU has no bfloat16; remove train.engine")
    return "bfloat16"


def write_job(
    folder: Path, recipe: Recipe, model: ModelFolder, train: SampleStore, held_out: SampleStore | None
) -> Path:
    """Write everything that the worker reads into a folder; returns the path of the job file.

    Raises:
        RecipeError: Unsloth is not installed, or cannot run here.
    """
    loader = choose_loader()
    section, config = recipe.train, model.config
    folder.mkdir(exist_ok=True)
    adapter, rows = folder / "initial.safetensors", folder / "rows.npz"
    save_file(initial_tensors(config, recipe.lora, section.seed), adapter)
    np.savez(rows, allow_pickle=False, **rows_of(section, train, held_out))
    lora = recipe.lora.model_dump(exclude={"target_modules"})
    job = {
        "loader": loader,
        "model": str(model.path.resolve()),
        "adapter": str(adapter.resolve()),
        "rows": str(rows.resolve()),
        "dtype": choose_dtype(recipe, loader),
        "load_in_4bit": recipe.model.load_in_4bit,
        "max_seq_length": recipe.model.max_seq_length,
        "gradient_checkpointing": section.gradient_checkpointing,
        "seed": section.seed,
        "lora": lora | {"target_modules": resolve_targets(config, recipe.lora.target_modules)},
        "trainer": section.model_dump(include=_AS_IT_IS) | {"output_dir": str(folder.resolve())},
    }
    path = folder / "job.json"
    replace_file(path, json.dumps(job, indent=1).encode())
    return path


def rows_of(section: TrainSection, train: SampleStore, held_out: SampleStore | None) -> dict[str, NDArray[Any]]:
    """The samples that a run visits, in which order, and each step's learning rate and seed.

    Returns:
        For `train` and `held_out`: the ids and labels of all samples, concatenated, int32, with label -100 where
        nothing is learned, and the samples' offsets in them. `order`: indices of the training samples. `rates` and
        `seeds`: one per step.
    """
    order = Order.of(section, len(train))
    num_steps = order.num_steps
    visits = replace(order, samples_per_step=num_steps * order.samples_per_step).samples(0)  # the run as one step
    visited, places = np.unique(visits, return_inverse=True)
    # Longest first: batches of similar lengths have little padding, and a batch that does not fit fails at once.
    held = np.argsort(-held_out.lengths, kind="stable") if held_out else np.empty(0, np.int64)
    return {
        **{f"train_{name}": array for name, array in _samples(train, visited).items()},
        **{f"held_out_{name}": array for name, array in _samples(held_out or train, held).items()},
        "order": places,
        "rates": np.array([learning_rate(step, section, num_steps) for step in range(num_steps)]),
        "seeds": np.array([dropout_seed(section.seed, step) for step in range(num_steps)], np.int64),
    }


def _samples(store: SampleStore, indices: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    ids, labels = [np.empty(0, np.int32)], [np.empty(0, np.int32)]
    for start in range(0, len(indices), _CHUNK):  # a sample is two views, and there may be millions
        chunk = [store[int(i)] for i in indices[start : start + _CHUNK]]
        ids.append(np.concatenate([sample.input_ids for sample in chunk]))
        learned = np.concatenate([sample.learned for sample in chunk])
        firsts = np.cumsum([0, *(len(sample.learned) for sample in chunk[:-1])])
        learned[firsts] = False  # nothing comes before them that could predict them
        labels.append(np.where(learned, ids[-1], np.int32(-100)))
    offsets = np.cumsum([0, *store.lengths[indices]], dtype=np.int64)
    return {"input_ids": np.concatenate(ids), "labels": np.concatenate(labels), "offsets": offsets}


_PATIENCE = 20.0
"""Seconds that a worker may take to exit by itself."""

_LAST_LINES = 12
"""Lines of the log that an error message shows."""


class WorkerFailed(Exception):
    """The worker could not do what it was asked to do; `what` is the kind of failure."""

    def __init__(self, what: str, message: str) -> None:
        super().__init__(message)
        self.what = what


class Worker:
    """A Python module in a process of its own; a context manager that leaves no process behind.

    Args:
        module: The module's name.
        job: The file that tells it what to do.
        folder: Its working folder; everything that it prints goes to `log` there.
        environment: Environment variables, added to this process's.

    Attributes:
        log: The file with its output.
    """

    def __init__(self, module: str, job: Path, folder: Path, environment: dict[str, str]) -> None:
        self.log = folder / "worker.log"
        # It works in another folder, so that files which libraries write do not litter the user's.
        inherited = [os.path.abspath(entry) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
        paths = [str(Path(__file__).parents[2]), *inherited]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, str(job.resolve())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=os.environ | environment | {"PYTHONPATH": os.pathsep.join(paths)},
                cwd=folder,
                start_new_session=True,  # this process, not the worker, handles Ctrl-C on the terminal
                text=True,
                encoding="utf-8",
            )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is not None:  # nobody needs its current work any more
            self._process.kill()
        self.close()

    def close(self) -> None:
        """Tell the process to end, and kill it if it does not; afterwards its memory is free."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def ask(self, what: str, **details: Any) -> dict[str, Any]:
        """Send a request and wait for the answer.

        Raises:
            WorkerFailed: The worker answered with a failure.
            StropError: The worker has died.
        """
        assert self._process.stdin is not None
        with suppress(OSError):  # it has died, but its last answer can still be read
            self._process.stdin.write(json.dumps({"ask": what, **details}) + "\n")
            self._process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """Wait for an answer; raises the same errors as `ask`."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise StropError(self._obituary())
        answer: dict[str, Any] = json.loads(line)
        if answer["answer"] == "failed":
            raise WorkerFailed(answer["what"], answer["message"])
        return answer

    def last_words(self) -> str:
        """The end of the log, indented, and the path of the whole log."""
        lines = self.log.read_text("utf-8", errors="replace").splitlines()[-_LAST_LINES:]
        return "\n".join(f"  {line}" for line in lines) + f"\nFull output: {self.log}"

    def _obituary(self) -> str:
        status = self._process.wait()
        how = f"was killed by signal {-status}" if status < 0 else f"ended with exit status {status}"
        return f"the training process {how}. Its last output:\n{self.last_words()}"
