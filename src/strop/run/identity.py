"""What a run was started from: it is resumed only from the same, and only from its own checkpoints."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from strop.errors import CheckpointError


def run_mark(run_id: str | None, fingerprints: Mapping[str, str], recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint's state has under `run`: which run it is of.

    Args:
        run_id: From run.json.
        fingerprints: Of rows, model and prompt, by what they are of.
        recipe: `Recipe.identity`.
    """
    mark: dict[str, Any] = json.loads(json.dumps({"id": run_id, "fingerprints": dict(fingerprints), "recipe": recipe}))
    return mark  # as a checkpoint gives it back


def of_another_run(theirs: Any, ours: Mapping[str, Any], any_id: bool) -> str | None:
    """Why a checkpoint is of another run.

    Args:
        theirs: What it has under `run`; an older strop's has nothing, and is taken for this run's.
        ours: This run's mark.
        any_id: run.json was lost, so that this run's id is new: what was made from the same is this run's.

    Returns:
        A sentence without a subject; None if it is of this run.
    """
    if not isinstance(theirs, dict):
        return None
    if not any_id and theirs.get("id") != ours["id"]:
        return f"it is of another run, {theirs.get('id')}; this one is {ours['id']}"
    changed = [
        *(key for key, value in ours["recipe"].items() if (theirs.get("recipe") or {}).get(key, value) != value),
        *(key for key, value in ours["fingerprints"].items() if (theirs.get("fingerprints") or {}).get(key) != value),
    ]
    return f"it is of another run: not the same {', '.join(changed)}" if changed else None


_NEW_MARKS = ("stop tokens", "tokenizer")
"""What the runs of an older strop have no fingerprint of."""


def refuse_changes(stored: Mapping[str, str], current: Mapping[str, str], recipe_changes: Sequence[str]) -> None:
    """Refuse to continue a run whose inputs are not what they were.

    Args:
        stored: Fingerprints by what they are of, from the manifest.
        current: The same, as they are now.
        recipe_changes: Differences of the recipes that matter for the result, one a line.

    Raises:
        CheckpointError: Something differs; says what.
    """
    faults = [f"  recipe: {change}" for change in recipe_changes]
    faults += [
        f"  {name}: not the content that the run began with ({stored.get(name, 'none')[:12]} -> {mark[:12]})"
        for name, mark in {**dict.fromkeys(stored, "none"), **current}.items()
        if stored.get(name, mark if name in _NEW_MARKS else None) != mark
    ]
    if faults:
        raise CheckpointError(
            "this run cannot be continued, because what it was started from has changed:\n"
            + "\n".join(faults)
            + "\nPut it back, or start a new run with another train.output_dir."
        )
