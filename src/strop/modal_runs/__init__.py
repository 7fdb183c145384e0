"""Runs and endpoints on Modal: the same `strop train`, in a container that may be preempted at any moment.

    launch      uploads what the recipe names on this machine, starts the run and follows it; entrypoint: `modal run`
    modal_app   the app: image, Volumes, one function
    attempt     what that function does, as plain Python: runs `strop train` as a child and watches it
    follow      the log and the result of a run, from any machine and across lost connections
    pull        brings the run folder back, whole
    serving     an endpoint for a finished run

Nothing outside this package imports modal, which is optional; within it, modules import it when they need it.
"""

from importlib.util import find_spec

from strop.errors import RecipeError


def require_modal() -> None:
    """Check that Modal's client is installed.

    Raises:
        RecipeError: It is not; the message names the extra to install.
    """
    if find_spec("modal") is None:
        raise RecipeError("this command needs Modal's client: pip install 'strop[modal]', then `modal setup`")
