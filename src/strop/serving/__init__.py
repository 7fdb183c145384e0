"""A tuned model as an OpenAI-compatible endpoint on this machine, and the client that `strop chat URL` is.

client imports the standard library alone; everything else needs the extra `serve`.
"""

from importlib.util import find_spec

from strop.errors import RecipeError


def require_server() -> None:
    """See that the server's libraries are installed.

    Raises:
        RecipeError: They are not; names the extra that brings them.
    """
    if find_spec("starlette") is None or find_spec("uvicorn") is None:
        raise RecipeError("this needs starlette and uvicorn: pip install 'strop[serve]'")
