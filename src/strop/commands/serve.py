"""`strop serve`: a run's model behind OpenAI's API, on this machine or on Modal."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from strop.commands import console
from strop.commands.console import Place, Printing, RunArgument, aside
from strop.commands.load import load_tuned
from strop.commands.run import Run
from strop.errors import RecipeError
from strop.modal_runs import require_modal
from strop.recipe import load_recipe
from strop.run.folder import now
from strop.serving import require_server

if TYPE_CHECKING:
    from strop.modal_runs.serving import Deployed


def serve(
    run: Run,
    *,
    host: str,
    port: int,
    api_key_env: str | None,
    max_new_tokens: int,
    ready: Callable[[str, str], None],
) -> None:
    """Serve the tuned model with OpenAI's API, and the base model under the name `base`, until Ctrl-C.

    Args:
        run: A finished run; its folder's name is the model's.
        host: Address to listen on; one that others can reach needs a key.
        port: 0 takes any that is free.
        api_key_env: Name of the environment variable that holds the key which callers must give.
        max_new_tokens: Longest answer if a request names no limit.
        ready: Called with the model's name and the endpoint's URL once it answers.

    Raises:
        RecipeError: The run is not finished, the port is taken, or the key is missing.
    """
    require_server()
    from strop.serving.app import BASE, Served, build_app
    from strop.serving.server import Guard, bind, is_loopback, server_of
    from strop.serving.worker import GenerationWorker

    api_key = _api_key(api_key_env)
    if not is_loopback(host) and api_key is None:
        raise RecipeError(f"--host {host} can be reached by others: name the variable of a key with --api-key-env")
    name = run.path.resolve().name
    if name == BASE:
        raise RecipeError(f"{run.path}: {BASE!r} is the base model's name at the endpoint; rename the run folder")
    with closing(bind(host, port)) as taken:
        with Printing().waiting("loading the model"):
            tuned = load_tuned(run, aside)
        config = tuned.adapter.decoder.config
        worker = GenerationWorker(tuned.adapter, tuned.template.stop_ids)
        created = datetime.fromisoformat(run.manifest.created or now())
        served = Served(
            name,
            int(created.timestamp()),
            worker,
            tuned.template,
            config.max_positions,
            min(config.vocab_size, len(tuned.template.tokenizer)),
            max_new_tokens,
        )
        app = build_app(served, Guard(not is_loopback(host), api_key))
        taken.listen(128)  # so that whoever is told that it is ready can connect
        shown = f"[{host}]" if ":" in host else host
        ready(name, f"http://{shown}:{taken.getsockname()[1]}")
        server_of(app, worker.close).run(sockets=[taken])
        worker.join()


def _api_key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable, "")
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise RecipeError(f"--api-key-env {variable}: that variable must hold a key of printable ASCII, without spaces")
    return key


def command(
    run: RunArgument,
    host: Annotated[
        str, typer.Option(help="Address to listen on; one that other machines can reach needs a key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 8000,
    api_key_env: Annotated[
        str | None, typer.Option(metavar="NAME", help="Environment variable with the key that callers must give.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer if a request names no limit.")] = 256,
    on: Annotated[Place, typer.Option(help="Serve here, or with vLLM on a GPU of Modal's (docs/serving.md).")] = (
        Place.here
    ),
    gpu: Annotated[str | None, typer.Option(help="With --on modal: the GPU; by default the recipe's first.")] = None,
    stop: Annotated[bool, typer.Option("--stop", help="With --on modal: take the endpoint down.")] = False,
) -> None:
    """Serve the tuned model and its base with OpenAI's API: here, for a quick try, or on Modal with vLLM.

    On Modal the endpoint outlives this command; while nobody asks, no container is up and nothing is billed.
    """
    if on is Place.modal:
        if (host, port, api_key_env, max_new_tokens) != ("127.0.0.1", 8000, None, 256):
            raise RecipeError("--host, --port, --api-key-env and --max-new-tokens are for serving here")
        return _on_modal(run, gpu, stop)
    if gpu or stop:
        raise RecipeError("--gpu and --stop go with --on modal")
    serve(
        Run(run),
        host=host,
        port=port,
        api_key_env=api_key_env,
        max_new_tokens=max_new_tokens,
        ready=lambda name, url: _print_ready(name, url, api_key_env),
    )


def _on_modal(run: Path, gpu: str | None, stop: bool) -> None:
    require_modal()
    from strop.modal_runs.serving import deploy, take_down

    recipe = Run(run).recipe
    if stop:
        return console.note(f"stopped {take_down(run)}; nothing of it is running any more")
    if gpu is not None:
        recipe = load_recipe(run / "recipe.yaml", [f"modal.gpu={gpu}"])
    _print_deployed(run, deploy(run, recipe, console.note))


def _print_ready(name: str, url: str, api_key_env: str | None) -> None:
    """Once `strop serve` answers: where, and how to call it."""
    header = f' -H "Authorization: Bearer ${api_key_env}"' if api_key_env else ""
    body = f'{{"model": "{name}", "messages": [{{"role": "user", "content": "..."}}]}}'
    key = f"STROP_API_KEY=${api_key_env} " if api_key_env else ""
    for line in (
        f"serving {name} (tuned) and base on {url}/v1. Ctrl-C ends",
        f"curl {url}/v1/chat/completions -H 'Content-Type: application/json'{header} -d '{body}'",
        f"{key}strop chat {url} --compare",
    ):
        console.note(line)


def _print_deployed(run: Path, endpoint: Deployed) -> None:
    """After `strop serve --on modal`: where, for how much, how to call it and how to end it."""
    body = f'{{"model": "{endpoint.name}", "messages": [{{"role": "user", "content": "..."}}]}}'
    token = '-H "Modal-Key: $MODAL_PROXY_TOKEN_ID" -H "Modal-Secret: $MODAL_PROXY_TOKEN_SECRET"'
    for line in (
        f"serving {endpoint.name} (tuned) and base on {endpoint.url}/v1",
        f"${endpoint.dollars_an_hour:.2f} an hour while its {endpoint.gpu} is up: from the first request, which waits "
        f"some minutes, until {endpoint.idle_seconds} s after the last; nothing otherwise ({endpoint.price_source})",
        "Only callers with a proxy token are let in (modal workspace proxy-tokens create):",
        "export MODAL_PROXY_TOKEN_ID=wk-... MODAL_PROXY_TOKEN_SECRET=ws-...",
        f"curl {endpoint.url}/v1/chat/completions -H 'Content-Type: application/json' {token} -d '{body}'",
        f"strop chat {endpoint.url} --compare",
        f"To end it: strop serve {run} --on modal --stop",
    ):
        console.note(line)
