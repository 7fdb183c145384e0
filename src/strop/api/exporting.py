"""A run's adapter in the form that another program loads, tried out in that program before it is put in place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from strop.api.answering import tuned_model
from strop.api.card import write_card
from strop.errors import RecipeError

if TYPE_CHECKING:
    from pathlib import Path

    from strop.api.run import Run
    from strop.data.template import Template
    from strop.exporting.gguf.file import Quantisation
    from strop.exporting.layout import Layout
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
    run: Run,
    to: Form = "adapter",
    layout: Layout | None = None,
    base: str | None = None,
    output: Path | None = None,
    quantisation: Quantisation | None = None,
    dequantise: bool = False,
) -> Exported:
    """Write what a run has trained for other programs; checked in that program, and whole or absent.

    Args:
        run: A finished run.
        to: `adapter` for PEFT and vLLM, `merged` for base and adapter as one bfloat16 checkpoint, `gguf` for both as
            one file for llama.cpp, with a Modelfile for Ollama.
        layout: With `adapter`: for a base checkpoint of the other layout, `fused` with qkv_proj and gate_up_proj
            (microsoft/Phi-3-mini-4k-instruct) or `split` (unsloth/Phi-3-mini-4k-instruct).
        base: With `layout`: that base's name, for adapter_config.json.
        output: Where it goes; by default beside the run's adapter.
        quantisation: With `gguf`: how matrices are stored, q8_0 unless said otherwise.
        dequantise: Merge a 4-bit run's adapter onto the weights as NF4 rounded them, made bfloat16.

    Raises:
        RecipeError: The run has no adapter, options do not go together, the output exists, or a package is missing.
        ParityError: The export does not answer as the trained model does.
    """
    from strop.exporting.parity.gate import require_consumer
    from strop.exporting.staged import refuse_existing

    if not (run.adapter_path / "adapter_config.json").exists():
        raise RecipeError(f"{run.path} has no adapter yet; `strop train {run.path}` goes on with it")
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
    return _export(run, to, kind, target, quantisation)


def _other_layout(run: Run, layout: Layout, base: str | None, output: Path | None) -> Path:
    from strop.data.template import load_template
    from strop.exporting.layout import convert_layout
    from strop.model.checkpoint.locate import locate_model
    from strop.model.checkpoint.vet import vet_model_folder
    from strop.model.config import read_config

    model = run.recipe.model
    model_folder = locate_model(model.model_name_or_path, model.revision)
    config = read_config(vet_model_folder(model_folder))
    target = output or run.path / f"adapter-{layout}"
    convert_layout(run.adapter_path, target, layout, config, base)
    if base:
        template = load_template(model_folder, run.recipe.data.template, run.manifest["format"])
        write_card(run, target, "adapter", template, model_folder, base)
    return target


def _export(run: Run, to: Form, kind: str, target: Path, quantisation: Quantisation) -> Exported:
    from strop.data.template import load_template
    from strop.exporting.parity.gate import check_parity
    from strop.exporting.prompting import write_tokenizer
    from strop.exporting.staged import staged_folder
    from strop.model.checkpoint.locate import locate_model

    recipe = run.recipe
    base = locate_model(recipe.model.model_name_or_path, recipe.model.revision)
    template = load_template(base, recipe.data.template, run.manifest["format"])
    context = _context(run, base) if to == "gguf" else recipe.model.max_seq_length
    # In a call of its own: the decoder's memory is free again before anything is written.
    reference = _reference(run, base, template, context)
    with staged_folder(target) as work:
        if to == "gguf":
            _write_gguf(run, base, template, work, quantisation, context)
        elif to == "merged":
            _write_merged(run, base, work)
        else:
            _copy_adapter(run, work)
        if to != "gguf":
            write_tokenizer(template, base, work)
        parity = check_parity(kind, work, base if to == "adapter" else None, reference)
        write_card(run, work, to, template, base)
    return Exported(target, parity)


def _context(run: Run, base: Path) -> int:
    """Tokens up to which llama.cpp computes what was trained."""
    from strop.exporting.gguf.shape import usable_context
    from strop.model.checkpoint.vet import vet_model_folder
    from strop.model.config import read_config

    lengths = run.manifest["data"].get("lengths", {})
    return usable_context(read_config(vet_model_folder(base)), lengths.get("max", run.recipe.model.max_seq_length))


def _write_gguf(run: Run, base: Path, template: Template, work: Path, quantisation: Quantisation, context: int) -> None:
    import re

    from strop.exporting.gguf.file import write_gguf
    from strop.exporting.merge import merged_model
    from strop.exporting.prompting import modelfile

    title = re.sub(r"[^\w.-]+", "-", run.path.resolve().name)
    file = work / f"{title}-{quantisation}.gguf"
    with merged_model(base, run.adapter_path, run.recipe.model.load_in_4bit) as model:
        write_gguf(model, template, file, quantisation, title, context)
    (work / "Modelfile").write_text(modelfile(file.name, template, context), encoding="utf-8")


def _copy_adapter(run: Run, work: Path) -> None:
    import shutil

    from strop.exporting.adapter import CONFIG_FILE, WEIGHTS_FILE

    for name in (WEIGHTS_FILE, CONFIG_FILE):
        shutil.copyfile(run.adapter_path / name, work / name)


def _write_merged(run: Run, base: Path, work: Path) -> None:
    from strop.exporting.merge import merged_model, write_merged

    with merged_model(base, run.adapter_path, run.recipe.model.load_in_4bit) as model:
        write_merged(model, work)


def _reference(run: Run, base: Path, template: Template, context: int) -> Reference:
    from strop.api.trying import ask, questions_for

    return ask(tuned_model(run, base).decoder, template, questions_for(run, template, context))
