"""A run that is killed again and again ends in the same bits as one that never was.

Each trial forks this process (torch is imported once), so a trial costs what its training costs. The child is killed
with SIGKILL either at a random moment or from inside a file operation of the checkpoint, then another is started on
the same folder, until one finishes.
"""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import strop
from strop.errors import StropError
from strop.evaluation import samples
from strop.recipe import Recipe, load_recipe
from tiny_runs import metrics, write_recipe
from waiting import until_step

IS_SOAK = "SOAK_MINUTES" in os.environ
RANDOM_TRIALS = 32 if IS_SOAK else 12
WRITES = range(1, 29, 1 if IS_SOAK else 3)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # forked children cannot use the parent's thread pool
    samples.MAX_NEW_TOKENS = samples.MOST_NEW_TOKENS = 4


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recipe]:
    """A finished run and its recipe."""
    folder = tmp_path_factory.mktemp("undisturbed")
    os.environ["STROP_CACHE"] = str(folder / "cache")
    recipe = load_recipe(str(write_recipe(folder, eval_steps=4, load_best_model_at_end=True, save_steps=2)))
    strop.train(recipe)  # in this process, so that no child has to import what training takes
    return recipe.output_dir, recipe


def in_child(recipe: Recipe, prepare: Callable[[], None] = lambda: None, kill: Callable[[], None] | None = None) -> int:
    """Train in a forked child; returns its exit status, negative for the signal that ended it.

    Args:
        recipe: What to train.
        prepare: Called in the child first.
        kill: Returns when the child is to be killed, if it has not ended by itself.
    """
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            prepare()
            strop.train(recipe)
            status = 0
        except StropError as error:
            print(error)
            status = error.exit_code
        finally:
            os._exit(status)
    if kill is not None:
        kill()
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def some_time_after(step: int, run: Path, draw: random.Random) -> Callable[[], None]:
    """Wait until a run has recorded a step, and then for up to the time of a few steps."""

    def wait() -> None:
        until_step(run, step)
        time.sleep(draw.uniform(0, 0.05))

    return wait


def die_at_call(number: int) -> Callable[[], None]:
    """Make the child kill itself at its n-th fsync or rename: inside a checkpoint or a manifest."""

    def prepare() -> None:
        count = 0

        def patch(name: str) -> None:
            real = getattr(os, name)

            def counted(*args: Any, **kwargs: Any) -> Any:
                nonlocal count
                count += 1
                if count == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **kwargs)

            setattr(os, name, counted)

        for name in ("fsync", "rename", "replace"):
            patch(name)

    return prepare


def assert_same_run(run: Path, want: Path) -> None:
    assert metrics(run) == metrics(want)
    assert (run / "samples.jsonl").read_bytes() == (want / "samples.jsonl").read_bytes()
    name = "adapter_model.safetensors"
    assert (run / "adapter" / name).read_bytes() == (want / "adapter" / name).read_bytes()


def elsewhere(recipe: Recipe, folder: Path) -> Recipe:
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"output_dir": str(folder)})})


def test_killed_at_random_moments(undisturbed: tuple[Path, Recipe], tmp_path: Path) -> None:
    want, recipe = undisturbed
    draw = random.Random(0)
    kills = 0
    for trial in range(RANDOM_TRIALS):
        run = tmp_path / str(trial)
        for _ in range(draw.randint(1, 3)):
            kill = some_time_after(draw.randint(1, 11), run, draw)
            kills += in_child(elsewhere(recipe, run), kill=kill) == -signal.SIGKILL
        assert in_child(elsewhere(recipe, run)) == 0
        assert_same_run(run, want)
        shutil.rmtree(run)
    assert kills >= RANDOM_TRIALS


def test_killed_inside_every_file_operation(undisturbed: tuple[Path, Recipe], tmp_path: Path) -> None:
    want, recipe = undisturbed
    for number in WRITES:
        run = tmp_path / str(number)
        assert in_child(elsewhere(recipe, run), die_at_call(number)) == -signal.SIGKILL, "fewer file operations"
        assert in_child(elsewhere(recipe, run)) == 0
        assert_same_run(run, want)
        shutil.rmtree(run)


def test_another_seed_is_another_run(undisturbed: tuple[Path, Recipe], tmp_path: Path) -> None:
    """The control: the comparison above can fail."""
    want, recipe = undisturbed
    other = elsewhere(recipe, tmp_path / "run")
    other = other.model_copy(update={"train": other.train.model_copy(update={"seed": 43})})
    assert in_child(other) == 0
    with pytest.raises(AssertionError):
        assert_same_run(tmp_path / "run", want)
