"""`strop pull`: the folder of a run on Modal, brought here."""

from __future__ import annotations

from strop.commands import console
from strop.commands.console import RunArgument
from strop.modal_runs import require_modal


def command(run: RunArgument) -> None:
    """Fetch the folder of a run on Modal: checkpoints, metrics and, once it has finished, the adapter."""
    require_modal()
    from strop.modal_runs.pull import pull

    pull(run, console.note)
