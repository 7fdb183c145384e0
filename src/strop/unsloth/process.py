"""Unsloth's process: what it reads (settings, rows and their order), and the pipes to it."""

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
from strop.training.engine import dropout_seed
from strop.training.optim import learning_rate

LOADER = "STROP_UNSLOTH_LOADER"
"""Environment variable: `transformers` puts plain transformers and PEFT in Unsloth's place, on any machine. It is how
everything here but Unsloth itself is tested without a GPU."""


_AS_IT_IS = {
    *("per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate", "weight_decay", "optim"),
    *("adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"),
}
"""Keys that mean the same to TRL's trainer."""

_CHUNK = 1 << 16
"""Samples gathered at a time."""


def choose_loader() -> str:
    """`unsloth`, or what the environment puts in its place.

    Raises:
        RecipeError: It is not installed, or there is no GPU for it.
    """
    loader = os.environ.get(LOADER, "unsloth")
    if loader not in ("unsloth", "transformers"):
        raise RecipeError(f"{LOADER}={loader}: it may be unsloth or transformers")
    needed = ("unsloth", "bitsandbytes") if loader == "unsloth" else ("peft",)
    if missing := [name for name in (*needed, "trl", "datasets") if importlib.util.find_spec(name) is None]:
        raise RecipeError(
            f"train.engine=unsloth: not installed: {', '.join(missing)}. Install what it needs with: "
            "pip install 'strop[unsloth]', or leave train.engine out"
        )
    if loader == "unsloth" and not torch.cuda.is_available():
        raise RecipeError("train.engine=unsloth: Unsloth needs a CUDA GPU and there is none; leave train.engine out")
    return loader


def choose_dtype(recipe: Recipe, loader: str) -> str:
    """The type of activations, and of the frozen weights unless they are NF4.

    Raises:
        RecipeError: Unsloth has no such type here.
    """
    asked = recipe.model.precision
    if loader == "transformers" and recipe.model.load_in_4bit:
        raise RecipeError(f"model.load_in_4bit=True: {LOADER}=transformers has no NF4; leave one of them out")
    if loader == "transformers":
        on_gpu = torch.cuda.is_available()
        return asked if asked != "auto" else "bfloat16" if on_gpu else "float32"
    if asked == "float32":
        raise RecipeError("model.precision=float32: with train.engine=unsloth it is bfloat16; leave it out")
    if torch.cuda.get_device_capability() < (8, 0):
        raise RecipeError("train.engine=unsloth: this GPU has no bfloat16; leave train.engine out")
    return "bfloat16"


def write_job(
    folder: Path, recipe: Recipe, model: ModelFolder, train: SampleStore, held_out: SampleStore | None
) -> Path:
    """Everything that the worker reads, into a folder; returns the job's file.

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
    path.write_text(json.dumps(job, indent=1), encoding="utf-8")
    return path


def rows_of(section: TrainSection, train: SampleStore, held_out: SampleStore | None) -> dict[str, NDArray[Any]]:
    """The samples that a run visits, the order of its visits, and each step's learning rate and seed.

    Returns:
        Of `train` and `held_out` each the ids and labels of all samples one after the other, int32, a label being -100
        where nothing is learned, and the offsets of the samples in them; `order`, indices of training samples;
        `rates` and `seeds`, one a step.
    """
    order = Order.of(section, len(train))
    num_steps = order.num_steps
    visits = replace(order, samples_per_step=num_steps * order.samples_per_step).samples(0)  # the run as one step
    visited, places = np.unique(visits, return_inverse=True)
    # Longest first: batches of equal length hold little padding, and what does not fit shows at once.
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
"""Seconds that a worker may take to end by itself."""
_LAST_LINES = 12
"""Lines of the log that an error message shows."""


class WorkerFailed(Exception):
    """The worker could not do what it was asked; `what` is the kind of failure."""

    def __init__(self, what: str, message: str) -> None:
        super().__init__(message)
        self.what = what


class Worker:
    """A module of strop run by itself, with a job to read; a context manager that leaves no process behind.

    Args:
        module: Its name.
        job: The file with its job.
        folder: Where it works; everything that it prints goes to `log` there.
        environment: Variables that it has beside this process's.

    Attributes:
        log: The file with its output.
    """

    def __init__(self, module: str, job: Path, folder: Path, environment: dict[str, str]) -> None:
        self.log = folder / "worker.log"
        # The working folder is another, so that what libraries write there does not litter the user's.
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
                start_new_session=True,  # Ctrl-C on the terminal is for this process to answer
                text=True,
                encoding="utf-8",
            )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is not None:  # nobody waits for what it is doing
            self._process.kill()
        self.close()

    def close(self) -> None:
        """Ask it to end, and see that it does; then its memory is free."""
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
        """Ask for something and wait for the answer.

        Raises:
            WorkerFailed: It says why not.
            StropError: It has died.
        """
        assert self._process.stdin is not None
        with suppress(OSError):  # it has died; what it said last is still to be read
            self._process.stdin.write(json.dumps({"ask": what, **details}) + "\n")
            self._process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """Wait for an answer; raises what `ask` does."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise StropError(self._obituary())
        answer: dict[str, Any] = json.loads(line)
        if answer["answer"] == "failed":
            raise WorkerFailed(answer["what"], answer["message"])
        return answer

    def last_words(self) -> str:
        """The end of its log, indented, and where the whole of it is."""
        lines = self.log.read_text("utf-8", errors="replace").splitlines()[-_LAST_LINES:]
        return "\n".join(f"  {line}" for line in lines) + f"\nIts whole output is in {self.log}."

    def _obituary(self) -> str:
        status = self._process.wait()
        how = f"was killed by signal {-status}" if status < 0 else f"ended with exit status {status}"
        return f"the training process {how}. Its last lines:\n{self.last_words()}"
