"""After a run: its scores, its answers, its adapter in another form, and its page."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from strop.cli.app import RunArgument, app
from strop.errors import RecipeError


@app.command()
def evaluate(
    run: RunArgument,
    rows: Annotated[int, typer.Option(help="Answers to generate with each model; 0 for the loss alone.")] = 32,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 96,
    examples: Annotated[int, typer.Option(help="Answers to print side by side.")] = 3,
) -> None:
    """Held-out loss, and generated answers against the references: base beside tuned.

    The table is also written to evaluation.json in the run folder, with every answer.
    """
    from strop import api
    from strop.present import after as present
    from strop.present import console

    result = api.evaluate(api.Run(run), num_generated=rows, max_new_tokens=max_new_tokens, note=console.note)
    present.evaluation(result, examples)


@app.command()
def chat(
    run: RunArgument,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="Ask once and leave.")] = None,
    example: Annotated[bool, typer.Option("--example", help="Ask a question from the held-out rows.")] = False,
    compare: Annotated[bool, typer.Option("--compare", help="Answer with the base model too.")] = False,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 0.0,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 256,
) -> None:
    """Talk to the tuned model, in the template it was trained on."""
    from strop import api
    from strop.present import after as present

    if example:
        prompt = api.held_out_question(api.Run(run))
    session = api.chat(api.Run(run), max_new_tokens, temperature)
    if prompt is None:
        present.conversation(session, compare)
    else:
        present.answers(session, prompt, compare, show_prompt=example)


@app.command()
def export(
    run: RunArgument,
    layout: Annotated[Literal["fused", "split"], typer.Option(help="Of the base that the adapter is to fit.")],
    base: Annotated[str | None, typer.Option(help="Name of that base, for adapter_config.json.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where the new adapter folder goes.")] = None,
) -> None:
    """Write the adapter for Phi-3's other checkpoint layout, exactly.

    fused: microsoft's, with qkv_proj and gate_up_proj. split: unsloth's, with q, k, v and gate, up apart.
    """
    from strop import api
    from strop.present import after as present

    present.exported(api.export(api.Run(run), layout, base, output), base)


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
