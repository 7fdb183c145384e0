"""A run on Modal: the same `strop train`, in a container that may be taken away at any moment.

    launch      uploads what the recipe names on this machine, starts the run and follows it
    modal_app   the app: image, Volumes, one function, and the entrypoint of `modal run`
    attempt     what that function does, as ordinary Python: it runs `strop train` as a child and watches it
    follow      the log and the result of a run, from anywhere and after a lost connection
    pull        the run folder, brought back whole

Nothing outside this package imports modal, and within it only the modules that talk to Modal do.
"""

from importlib.util import find_spec

from strop.errors import RecipeError


def require_modal() -> None:
    """See that Modal's client is installed.

    Raises:
        RecipeError: It is not; names the extra that brings it.
    """
    if find_spec("modal") is None:
        raise RecipeError("this needs Modal's client: pip install 'strop[modal]', then `modal setup`")
