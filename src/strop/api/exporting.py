"""A run's adapter in the form that another program loads, tried out in that program before it is put in place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from strop.api.answering import tuned_model
from strop.errors import RecipeError

if TYPE_CHECKING:
    from pathlib import Path

    from strop.api.run import Run
    from strop.data.examples import Example
    from strop.data.template import Template
    from strop.exporting.layout import Layout
    from strop.exporting.parity import Parity, Question, Reference

To = Literal["adapter", "merged"]

_PROMPTS, _NEW_TOKENS = 6, 24
"""What the gate asks: enough to see any fault of the weights, few enough for a CPU."""


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
    to: To = "adapter",
    layout: Layout | None = None,
    base: str | None = None,
    output: Path | None = None,
    dequantise: bool = False,
) -> Exported:
    """Write what a run has trained for other programs; checked in that program, and whole or absent.

    Args:
        run: A finished run.
        to: `adapter` for PEFT and vLLM, `merged` for base and adapter as one bfloat16 checkpoint.
        layout: With `adapter`: for a base checkpoint of the other layout, `fused` with qkv_proj and gate_up_proj
            (microsoft/Phi-3-mini-4k-instruct) or `split` (unsloth/Phi-3-mini-4k-instruct).
        base: With `layout`: that base's name, for adapter_config.json.
        output: Where it goes; by default beside the run's adapter.
        dequantise: Merge a 4-bit run's adapter onto the weights as NF4 rounded them, made bfloat16.

    Raises:
        RecipeError: The run has no adapter, options do not go together, the output exists, or a package is missing.
        ParityError: The export does not answer as the trained model does.
    """
    from strop.exporting.parity import require_consumer
    from strop.exporting.staged import refuse_existing

    if not (run.adapter_path / "adapter_config.json").exists():
        raise RecipeError(f"{run.path} has no adapter yet; `strop train {run.path}` goes on with it")
    if to != "adapter" and (layout or base):
        raise RecipeError("--layout and --base are for --to adapter: the others keep the layout of the run's base")
    if layout:
        return Exported(_other_layout(run, layout, base, output), None)
    target = output or run.path / ("adapter-export" if to == "adapter" else to)
    require_consumer(to)
    refuse_existing(target)
    if to == "merged":
        _refuse_nf4(run, dequantise)
    return _export(run, to, target)


def _other_layout(run: Run, layout: Layout, base: str | None, output: Path | None) -> Path:
    from strop.exporting.layout import convert_layout
    from strop.model.families import read_config
    from strop.model.locate import locate_model
    from strop.model.vet import vet_model_folder

    model = run.recipe.model
    config = read_config(vet_model_folder(locate_model(model.model_name_or_path, model.revision)))
    target = output or run.path / f"adapter-{layout}"
    convert_layout(run.adapter_path, target, layout, config, base)
    return target


def _refuse_nf4(run: Run, dequantise: bool) -> None:
    if run.recipe.model.load_in_4bit and not dequantise:
        raise RecipeError(
            "this adapter was trained on NF4 weights and makes up for their rounding: on other weights it is another "
            "model, and to round the merged ones to 4 bits again loses part of what was learned. Serve the adapter on "
            "the 4-bit base; or give --dequantise to merge onto the rounded weights, made bfloat16: exact, and four "
            "times as large as the 4-bit base"
        )


def _export(run: Run, to: To, target: Path) -> Exported:
    from strop.data.template import load_template
    from strop.exporting.carry import write_tokenizer
    from strop.exporting.parity import check_parity
    from strop.exporting.staged import staged_folder
    from strop.model.locate import locate_model

    recipe = run.recipe
    base = locate_model(recipe.model.model_name_or_path, recipe.model.revision)
    template = load_template(base, recipe.data.template, run.manifest["format"])
    reference = _reference(run, base, template)  # the decoder's memory is free again before anything is written
    with staged_folder(target) as work:
        if to == "adapter":
            _copy_adapter(run, work)
        else:
            _write_merged(run, base, work)
        write_tokenizer(template, base, work)
        parity = check_parity(to, work, base if to == "adapter" else None, reference)
    return Exported(target, parity)


def _copy_adapter(run: Run, work: Path) -> None:
    import shutil

    from strop.exporting.adapter import CONFIG_FILE, WEIGHTS_FILE

    for name in (WEIGHTS_FILE, CONFIG_FILE):
        shutil.copyfile(run.adapter_path / name, work / name)


def _write_merged(run: Run, base: Path, work: Path) -> None:
    from strop.exporting.merge import merged_model, write_merged

    with merged_model(base, run.adapter_path, run.recipe.model.load_in_4bit) as model:
        write_merged(model, work)


def _reference(run: Run, base: Path, template: Template) -> Reference:
    """The trained model's greedy answers to a few prompts, and its logits on them."""
    import torch

    from strop.evaluation.generate import generate
    from strop.exporting.parity import Reference
    from strop.ops.attention import Packing

    questions = _questions(run, template)
    decoder = tuned_model(run, base).decoder
    answers, logits = [], []
    for question, answer in zip(
        questions,
        generate(decoder, [question.ids for question in questions], template.stop_ids, _NEW_TOKENS),
        strict=True,
    ):
        ids = torch.tensor(question.ids + answer.ids, device=decoder.device)
        with torch.inference_mode():
            hidden = decoder.packed_hidden_states(ids, Packing.of((len(ids),)))[len(question.ids) - 1 :]
            row = decoder.logits(hidden).float().cpu().numpy()
        ended = [int(row[-1].argmax())] if answer.stopped else []
        logits.append(row if answer.stopped else row[:-1])
        answers.append(answer.ids + ended)
    dtype = str(decoder.dtype).removeprefix("torch.")
    return Reference(questions, answers, logits, sorted(template.stop_ids), _NEW_TOKENS, dtype)


def _questions(run: Run, template: Template) -> list[Question]:
    """The first held-out prompts, or of the training rows where none are held out, that differ and are not too long."""
    from strop.data.rows import Fault, find_files, read_examples

    data = run.recipe.data
    questions: dict[tuple[int, ...], Question] = {}
    for row in read_examples(find_files(data.validation_file or data.train_file), run.manifest["format"]):
        if isinstance(row, Fault):
            continue
        question = _question(template, row[1])
        if 0 < len(question.ids) <= run.recipe.model.max_seq_length - _NEW_TOKENS:
            questions.setdefault(tuple(question.ids), question)
        if len(questions) == _PROMPTS:
            break
    if not questions:
        raise RecipeError(
            f"no row of {data.validation_file or data.train_file} has a prompt to try the export with, "
            f"of at most {run.recipe.model.max_seq_length - _NEW_TOKENS} tokens"
        )
    return list(questions.values())


def _question(template: Template, example: Example) -> Question:
    from strop.data.examples import Text
    from strop.data.prompts import as_segments, as_turns
    from strop.exporting.parity import Question

    if isinstance(example, Text):  # it is all answer; what it begins with stands for a prompt
        text = example.text[:100]
        [encoded] = template.encode([Text(text)])
        return Question(None, text, [int(token) for token in encoded.input_ids[:-1]])
    ids = template.encode_prompt(example)
    if template.name != "chat":
        return Question(None, as_segments(template.name, example)[0][0], ids)
    turns = as_turns(example)
    return Question(turns[:-1] if turns[-1]["role"] == "assistant" else turns, "", ids)
