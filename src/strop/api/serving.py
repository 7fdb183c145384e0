"""A run's model as an OpenAI-compatible endpoint on this machine."""

from __future__ import annotations

import os
from contextlib import closing
from datetime import datetime
from typing import TYPE_CHECKING

from strop.api.answering import chat
from strop.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from strop.api.run import Run


def serve(
    run: Run,
    host: str,
    port: int,
    api_key_env: str | None,
    max_new_tokens: int,
    ready: Callable[[str, str], None],
) -> None:
    """Answer OpenAI's API with the tuned model, and with the base model under the name `base`, until Ctrl-C.

    Args:
        run: A finished run; its folder's name is the model's.
        host: Address to listen on; one that others can reach needs a key.
        port: 0 takes any that is free.
        api_key_env: Name of the environment variable that holds the key which callers must give.
        max_new_tokens: Longest answer where a request names no limit.
        ready: Called with the model's name and the endpoint's URL once it answers.

    Raises:
        RecipeError: The run is not finished, the port is taken, or the key is missing.
    """
    from strop.serving import require_server

    require_server()
    from strop.serving.app import BASE, Served, build_app
    from strop.serving.server import Guard, bind, is_loopback
    from strop.serving.server import run as answer
    from strop.serving.worker import GenerationWorker

    api_key = _api_key(api_key_env)
    if not is_loopback(host) and api_key is None:
        raise RecipeError(f"--host {host} can be reached by others: name the variable of a key with --api-key-env")
    name = run.path.resolve().name
    if name == BASE:
        raise RecipeError(f"{run.path}: {BASE!r} is the base model's name at the endpoint; rename the run folder")
    with closing(bind(host, port)) as taken:
        session = chat(run)
        config = session.adapter.decoder.config
        worker = GenerationWorker(session.adapter, session.template)
        created = datetime.fromisoformat(run.manifest["created"])
        served = Served(
            name,
            int(created.timestamp()),
            worker,
            session.template,
            config.max_positions,
            min(config.vocab_size, len(session.template.tokenizer)),
            max_new_tokens,
        )
        app = build_app(served, Guard(not is_loopback(host), api_key))
        taken.listen(128)  # so that who calls when told it is ready finds it so
        shown = f"[{host}]" if ":" in host else host
        ready(name, f"http://{shown}:{taken.getsockname()[1]}")
        answer(app, taken, worker.close)
        worker.join()


def _api_key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable, "")
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise RecipeError(f"--api-key-env {variable}: that variable must hold a key of printable ASCII, without spaces")
    return key
