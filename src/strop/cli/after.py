"""After a run: its scores, its answers, its adapter in another form, and its page."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from strop.cli.app import Place, RunArgument, app
from strop.errors import RecipeError
from strop.recipe import load_recipe

if TYPE_CHECKING:  # these import torch
    from strop.evaluation.session import ChatSession
    from strop.serving.client import EndpointSession


@app.command()
def evaluate(
    run: RunArgument,
    rows: Annotated[int, typer.Option(min=0, help="Rows to answer with each model; 0 for the loss alone.")] = 32,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 96,
    numeric_tolerance: Annotated[
        float, typer.Option(min=0.0, help="How far off a number may be, as a share of the right one: 0.01 is 1%.")
    ] = 0.0,
    group_by: Annotated[
        str | None, typer.Option(metavar="KEY", help="Also score the rows of each value of this key by themselves.")
    ] = None,
    answers: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write every answer to FILE: .parquet, .jsonl or .csv.")
    ] = None,
    examples: Annotated[int, typer.Option(min=0, help="Answers to print side by side.")] = 4,
) -> None:
    """Held-out loss, and generated answers against the references: base beside tuned, with 95% intervals.

    The figures are also written to evaluation.json in the run folder, with every answer. What they mean:
    docs/evaluation.md.
    """
    from strop import api
    from strop.present import after as present
    from strop.present import console

    result = api.evaluate(api.Run(run), rows, max_new_tokens, numeric_tolerance, group_by, answers, console.note)
    present.evaluation(result, examples)
    if answers:
        present.answers_written(answers, result)


@app.command("lm-eval", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def lm_eval(
    context: typer.Context,
    run: RunArgument,
    base: Annotated[bool, typer.Option("--base", help="Score the base model instead.")] = False,
) -> None:
    """Public benchmarks on the tuned model, by lm-evaluation-harness (`pip install 'strop[lm-eval]'`).

    All further options are those of `lm-eval run`, for example: `strop lm-eval runs/my --tasks gsm8k --limit 100`.
    """
    from strop import api
    from strop.api import harness

    harness.lm_eval(api.Run(run), context.args, tuned=not base)


@app.command()
def chat(
    run: Annotated[str, typer.Argument(metavar="RUN|URL", help="A run folder, or an endpoint of `strop serve`'s.")],
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="Ask once and leave.")] = None,
    example: Annotated[bool, typer.Option("--example", help="Ask a question from the held-out rows.")] = False,
    compare: Annotated[bool, typer.Option("--compare", help="Answer with the base model too.")] = False,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 0.0,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 256,
) -> None:
    """Talk to the tuned model, in the template it was trained on: of a run folder, or of an endpoint.

    An endpoint's key is taken from STROP_API_KEY, Modal's proxy token from MODAL_PROXY_TOKEN_ID and
    MODAL_PROXY_TOKEN_SECRET.
    """
    from strop import api
    from strop.present import after as present

    if example:
        prompt = api.held_out_question(api.Run(Path(run)))
    session = _session(run, max_new_tokens, temperature)
    if prompt is None:
        present.conversation(session, compare)
    else:
        present.answers(session, prompt, compare, show_prompt=example)


def _session(run: str, max_new_tokens: int, temperature: float) -> "ChatSession | EndpointSession":
    from strop import api

    if run.startswith(("http://", "https://")):
        return api.chat_with_endpoint(run, max_new_tokens, temperature)
    return api.chat(api.Run(Path(run)), max_new_tokens, temperature)


@app.command()
def serve(
    run: RunArgument,
    host: Annotated[str, typer.Option(help="Address to listen on; others than this machine need a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 8000,
    api_key_env: Annotated[
        str | None, typer.Option(metavar="NAME", help="Environment variable with the key that callers must give.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer where a request names no limit.")] = 256,
    on: Annotated[Place, typer.Option(help="Serve here, or with vLLM on a GPU of Modal's (docs/serving.md).")] = (
        Place.here
    ),
    gpu: Annotated[str | None, typer.Option(help="With --on modal: the GPU; by default the recipe's first.")] = None,
    stop: Annotated[bool, typer.Option("--stop", help="With --on modal: take the endpoint down.")] = False,
) -> None:
    """Answer OpenAI's API with the tuned model and its base: here, for a quick try, or on Modal with vLLM.

    On Modal the endpoint outlives this command; nothing is up, or costs, while nobody asks.
    """
    from strop import api
    from strop.present import after as present

    if on is Place.modal:
        if (host, port, api_key_env, max_new_tokens) != ("127.0.0.1", 8000, None, 256):
            raise RecipeError("--host, --port, --api-key-env and --max-new-tokens are for serving here")
        return _serve_on_modal(run, gpu, stop)
    if gpu or stop:
        raise RecipeError("--gpu and --stop go with --on modal")
    api.serve(
        api.Run(run),
        host,
        port,
        api_key_env,
        max_new_tokens,
        lambda name, url: present.serving(name, url, api_key_env),
    )


def _serve_on_modal(run: Path, gpu: str | None, stop: bool) -> None:
    from strop import api
    from strop.modal_runs import require_modal
    from strop.present import after as present
    from strop.present import console

    require_modal()
    from strop.modal_runs import serving

    recipe = api.Run(run).recipe
    if stop:
        return console.note(f"stopped {serving.stop(run)}; nothing of it is up any more")
    if gpu is not None:
        recipe = load_recipe(run / "recipe.yaml", [f"modal.gpu={gpu}"])
    present.deployed(run, serving.deploy(run, recipe, console.note))


@app.command()
def export(
    run: RunArgument,
    to: Annotated[
        Literal["adapter", "merged", "gguf"],
        typer.Option(
            help="An adapter for PEFT and vLLM; base and adapter as one checkpoint, or for llama.cpp, Ollama."
        ),
    ] = "adapter",
    layout: Annotated[
        Literal["fused", "split"] | None,
        typer.Option(help="With --to adapter: fit Phi-3's other checkpoint, microsoft's (fused) or unsloth's (split)."),
    ] = None,
    base: Annotated[str | None, typer.Option(help="With --layout: that base's name, for adapter_config.json.")] = None,
    quantise: Annotated[
        Literal["f16", "q8_0", "q4_k_m"] | None,
        typer.Option(help="With --to gguf: how weights are stored. [default: q8_0]"),
    ] = None,
    dequantise: Annotated[
        bool, typer.Option("--dequantise", help="Merge a 4-bit run onto its rounded weights, made bfloat16.")
    ] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where the new folder goes.")] = None,
) -> None:
    """Write the trained model for other programs, and try it there before it is put in place.

    The export is loaded by PEFT, transformers or llama.cpp in a process of its own and has to give the same prompt
    ids, stop tokens, answers and logits as the trained model. What was measured is in its parity.json; an export that
    differs is removed (exit code 9). See docs/exports.md.
    """
    from strop import api
    from strop.present import after as present

    present.exported(api.export(api.Run(run), to, layout, base, output, quantise, dequantise), base)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, finished or not.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where it goes. [default: report.html in the run's folder]")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Serve it on 127.0.0.1, kept up to date.")] = False,
    port: Annotated[int, typer.Option(help="With --watch: where. 0 takes a free one.")] = 0,
) -> None:
    """One page about a run, or several beside each other: curves, answers, data, recipe, cost.

    It is one HTML file that needs no network. Every run writes its own at its end.
    """
    from strop import api
    from strop.present import after as present

    if watch and output is not None:
        raise RecipeError("--output goes without --watch, which serves the page and writes none")
    chosen = [api.Run(run) for run in runs]
    if watch:
        present.served(api.watch(chosen, port))
    else:
        present.reported(api.report(chosen, output))
