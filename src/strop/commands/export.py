"""`strop export`: a run's model in the form that another program loads, tried in that program before it is kept."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape
from rich.table import Table

from strop.commands.arguments import as_path, as_run, require_choice
from strop.commands.card import write_card
from strop.commands.console import Printing, RunArgument, out
from strop.commands.load import load_run_template, load_trained
from strop.commands.run import Run
from strop.errors import RecipeError
from strop.exporting.staged import refuse_existing, staged_export
from strop.model.pretrained.folder import ModelFolder, open_model
from strop.run.reporter import Reporter, reporter_for

if TYPE_CHECKING:
    from strop.data.template import Template
    from strop.exporting.gguf.file import Quantisation
    from strop.exporting.layout import Layout
    from strop.exporting.merge import MergedModel
    from strop.exporting.parity.gate import Parity, Reference
    from strop.reporting.usage import Form

_NF4_REFUSED = (
    "this adapter was trained on NF4 weights and makes up for their rounding: on other weights it is another model, "
    "and to round the merged ones to 4 bits again loses part of what was learned. Serve the adapter on the 4-bit base; "
    "or give --dequantise to merge onto the rounded weights: exact, and larger than the 4-bit base"
)


@dataclass(frozen=True)
class Exported:
    """An export in place.

    Attributes:
        folder: Where it is.
        parity: What the gate measured; None for an adapter in the other layout, whose base need not be here.
    """

    folder: Path
    parity: Parity | None


def export(
    run: Run | str | Path,
    to: Form = "adapter",
    *,
    layout: Layout | None = None,
    base: str | None = None,
    output: str | Path | None = None,
    quantisation: Quantisation | None = None,
    dequantise: bool = False,
    reporter: Reporter | None = None,
    quiet: bool = False,
) -> Exported:
    """Write the trained model for another program, and try it there first: the export is complete or absent.

    Args:
        run: A finished run, or its folder.
        to: `adapter` for PEFT and vLLM, `merged` for base and adapter as one bfloat16 checkpoint, `gguf` for both as
            one file for llama.cpp, with a Modelfile for Ollama.
        layout: With `adapter`: for a base checkpoint of the other layout, `fused` with qkv_proj and gate_up_proj
            (microsoft/Phi-3-mini-4k-instruct) or `split` (unsloth/Phi-3-mini-4k-instruct).
        base: With `layout`: that base's name, for adapter_config.json.
        output: The folder to write; by default beside the run's adapter.
        quantisation: With `gguf`: how matrices are stored, q8_0 unless said otherwise.
        dequantise: Merge a 4-bit run's adapter onto the weights as NF4 rounded them, made bfloat16.
        reporter: Told of what takes a while; by default lines are printed.
        quiet: Print nothing.

    Raises:
        RecipeError: The run has no adapter, options do not go together, the output exists, or a package is missing.
        ParityError: The export does not answer as the trained model does.
    """
    reporter = reporter_for(reporter, quiet)
    with reporter.waiting("loading torch"):
        from strop.exporting.parity.gate import require_consumer

    run, output = as_run(run), as_path("output", output)
    require_choice("to", to, ("adapter", "merged", "gguf"))
    require_choice("layout", layout, (None, "fused", "split"))
    require_choice("quantisation", quantisation, (None, "f16", "q8_0", "q4_k_m"))
    if base and not layout:
        raise RecipeError("--base goes with --layout: any other export is of the base that the run names")
    run.require_adapter(reporter.note)
    if to != "adapter" and (layout or base):
        raise RecipeError("--layout and --base are for --to adapter: the others keep the layout of the run's base")
    if to != "gguf" and quantisation:
        raise RecipeError("--quantise is for --to gguf; the others keep the weights' types")
    if layout:
        return Exported(_other_layout(run, layout, base, output), None)
    quantisation = quantisation or "q8_0"
    nf4 = run.recipe.model.load_in_4bit
    kind = {"gguf": f"gguf-{quantisation}", "adapter": "adapter-nf4" if nf4 else "adapter"}.get(to, to)
    target = output or run.path / ("adapter-export" if to == "adapter" else kind)
    require_consumer(kind)
    refuse_existing(target)
    if nf4 and to != "adapter" and not dequantise:
        raise RecipeError(_NF4_REFUSED)
    return _export(run, to, kind, target, quantisation, reporter)


def command(
    run: RunArgument,
    to: Annotated[
        Literal["adapter", "merged", "gguf"],
        typer.Option(
            help="An adapter for PEFT and vLLM; or base and adapter merged into one checkpoint, or into one GGUF file."
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
    output: Annotated[Path | None, typer.Option("--output", "-o", readable=False, help="The folder to write.")] = None,
) -> None:
    """Write the trained model for other programs, and try it there before it is put in place.

    The export is loaded by PEFT, transformers or llama.cpp in a process of its own and has to give the same prompt
    ids, stop tokens, answers and logits as the trained model. Its parity.json holds the measurements; an export that
    differs is removed (exit code 9). See docs/exports.md.
    """
    exported = export(
        Run(run),
        to,
        layout=layout,
        base=base,
        output=output,
        quantisation=quantise,
        dequantise=dequantise,
        reporter=Printing(),
    )
    _print_exported(exported, base)


def _other_layout(run: Run, layout: Layout, base: str | None, output: Path | None) -> Path:
    from strop.exporting.layout import convert_layout

    model = open_model(run.recipe.model)
    target = output or run.path / f"adapter-{layout}"
    with staged_export(target) as work:
        convert_layout(run.adapter_path, work, layout, model.config, base)
        if base:
            write_card(run, work, "adapter", load_run_template(run, model), model, base)
    return target


def _export(run: Run, to: Form, kind: str, target: Path, quantisation: Quantisation, reporter: Reporter) -> Exported:
    from strop.exporting.adapter import copy_adapter
    from strop.exporting.merge import merged_model, write_merged
    from strop.exporting.parity.gate import check_parity
    from strop.exporting.prompting import write_tokenizer

    base = open_model(run.recipe.model)
    template = load_run_template(run, base)
    context = _context(run, base) if to == "gguf" else run.recipe.model.max_seq_length
    # In a call of its own: the decoder's memory is free again before anything is written.
    with reporter.waiting("asking the trained model what the export is compared with"):
        reference = _reference(run, base, template, context, to, reporter)
    with staged_export(target) as work:
        with reporter.waiting(f"writing the {kind} export"):
            if to == "adapter":
                copy_adapter(run.adapter_path, work)
            else:
                with merged_model(base, run.adapter_path, run.recipe.model.load_in_4bit) as model:
                    if to == "merged":
                        write_merged(model, work)
                    else:
                        _write_gguf(run, model, template, work, quantisation, context)
            if to != "gguf":
                write_tokenizer(template, base.path, work)
        with reporter.waiting("trying the export in a process of its own"):
            parity = check_parity(kind, work, base.path if to == "adapter" else None, reference)
        write_card(run, work, to, template, base)
    return Exported(target, parity)


def _context(run: Run, base: ModelFolder) -> int:
    """Tokens up to which llama.cpp computes what was trained."""
    from strop.exporting.gguf.metadata import usable_context

    lengths = run.manifest.data.lengths if run.manifest.data else None
    return usable_context(base.config, lengths.max if lengths else run.recipe.model.max_seq_length)


def _write_gguf(
    run: Run, model: MergedModel, template: Template, work: Path, quantisation: Quantisation, context: int
) -> None:
    from strop.exporting.gguf.file import write_gguf
    from strop.exporting.prompting import modelfile

    title = re.sub(r"[^\w.-]+", "-", run.path.resolve().name)
    file = work / f"{title}-{quantisation}.gguf"
    write_gguf(model, template, file, quantisation, title, context)
    (work / "Modelfile").write_text(modelfile(file.name, template, context), encoding="utf-8")


def _reference(
    run: Run, base: ModelFolder, template: Template, context: int, to: Form, reporter: Reporter
) -> Reference:
    from strop.exporting.parity.reference import ask, questions_for, spelt_the_same

    questions = questions_for(run.recipe.data, template, context)
    if to == "gguf" and (kept := spelt_the_same(questions, template)) and len(kept) < len(questions):
        lost = len(questions) - len(kept)
        reporter.note(
            f"{lost} of {len(questions)} prompts are not in NFC: llama.cpp gives these other ids; they are left out"
        )
        questions = kept
    return ask(load_trained(run, base).decoder, template, questions)


def _print_exported(result: Exported, base: str | None) -> None:
    """After `strop export`: where it is, and how near to the trained model its consumer finds it."""
    if result.parity is None:
        record = (
            "" if base else "\nIts adapter_config.json names no base: give --base, or name the base where you load it"
        )
        out.print(f"adapter: {escape(str(result.folder))} (read back and checked){record}")
        return
    parity = result.parity
    table = Table("", "measured", "limit", title=f"parity: {parity.kind} in {parity.consumer}", title_justify="left")
    table.add_row("same prompt ids", f"{parity.same_prompts} of {parity.num_prompts}", "all")
    table.add_row("stops at", ", ".join(map(str, parity.stop_ids)), "all")
    parting = f"; parted by {parity.widest_parting:.2g} nats" if parity.same_answers < parity.num_answers else ""
    table.add_row(
        "same greedy answers", f"{parity.same_answers} of {parity.num_answers}{parting}", f"{parity.limits.tie:g} nats"
    )
    table.add_row("KL divergence, nats", f"{parity.distance.kl:.2g}", f"{parity.limits.kl:g}")
    table.add_row("same likeliest token", f"{parity.distance.top1:.1%}", f"{parity.limits.top1:.0%}")
    table.add_row("error of the logits", f"{parity.distance.logits:.2g}", f"{parity.limits.logits:g}")
    out.print(table)
    out.print(f"{parity.kind}: {escape(str(result.folder))}")
