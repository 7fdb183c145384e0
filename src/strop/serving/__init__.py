"""`strop serve`: a tuned model behind OpenAI's API on this machine, and the client behind `strop chat URL`.

`client` imports only the standard library; everything else needs the extra `serve`.
"""

from importlib.util import find_spec

from strop.errors import RecipeError


def require_server() -> None:
    """Check that the server's libraries are installed.

    Raises:
        RecipeError: One is missing; the message names the extra to install.
    """
    if find_spec("starlette") is None or find_spec("uvicorn") is None:
        raise RecipeError("strop serve needs starlette and uvicorn: pip install 'strop[serve]'")
