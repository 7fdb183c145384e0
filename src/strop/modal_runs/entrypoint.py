"""The entry point for Modal's own command line; it does the same as `strop train RECIPE --on modal`.

modal run --detach -m strop.modal_runs.entrypoint --recipe phi3-census --overrides "train.max_steps=500"
"""

import shlex
from contextlib import nullcontext

from strop.errors import StropError
from strop.modal_runs.launch import Launch
from strop.modal_runs.modal_app import app
from strop.recipe import load_recipe
from strop.terminal import message


@app.local_entrypoint()
def main(recipe: str, overrides: str = "") -> None:
    """Train a recipe; overrides are keys to set, such as "train.max_steps=60 learning_rate=1e-4"."""
    try:
        loaded = load_recipe(recipe, shlex.split(overrides))
        # Modal's client has already opened the app, and prints the log.
        outcome = Launch(loaded, print, lambda text, source: None, nullcontext).run()
    except StropError as error:
        print(f"error: {message(str(error))}")
        raise SystemExit(error.exit_code) from None
    if outcome is not None and outcome.exit_code:
        raise SystemExit(outcome.exit_code)
