"""What an export is tried with: prompts of the run's data, and what the trained model answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from strop.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from strop.api.run import Run
    from strop.data.examples import Example
    from strop.data.template import Template
    from strop.exporting.parity.gate import Question, Reference
    from strop.model.decoder import Decoder

_PROMPTS, _NEW_TOKENS = 6, 24
"""Enough to see any fault of the weights, few enough for a CPU."""


def ask(decoder: Decoder, template: Template, questions: Sequence[Question]) -> Reference:
    """A model's greedy answers, and its logits on them."""
    import torch

    from strop.evaluation.generate import generate
    from strop.exporting.parity.gate import Reference
    from strop.microbatch.tree import Tree

    answers, logits = [], []
    for question, answer in zip(
        questions,
        generate(decoder, [question.ids for question in questions], template.stop_ids, _NEW_TOKENS),
        strict=True,
    ):
        ids = torch.tensor(question.ids + answer.ids, device=decoder.device)
        with torch.inference_mode():
            hidden = decoder.packed_hidden_states(ids, Tree.of((len(ids),)))[len(question.ids) - 1 :]
            row = decoder.logits(hidden).float().cpu().numpy()
        ended = [int(row[-1].argmax())] if answer.stopped else []
        logits.append(row if answer.stopped else row[:-1])
        answers.append(answer.ids + ended)
    dtype = str(decoder.dtype).removeprefix("torch.")
    return Reference(list(questions), answers, logits, sorted(template.stop_ids), _NEW_TOKENS, dtype)


def questions_for(run: Run, template: Template, context: int) -> list[Question]:
    """The first held-out prompts, or of the training rows where none are held out, that differ and are not too long.

    Args:
        run: A finished run.
        template: Of its training.
        context: Tokens that a prompt and its answer may have.

    Raises:
        RecipeError: No row has such a prompt.
    """
    from strop.data.examples import Fault
    from strop.data.sources import find_files, read_examples

    data = run.recipe.data
    longest = context - _NEW_TOKENS
    questions: dict[tuple[int, ...], Question] = {}
    for row in read_examples(find_files(data.validation_file or data.train_file), run.manifest["format"]):
        if isinstance(row, Fault):
            continue
        question = _question(template, row[1])
        if 0 < len(question.ids) <= longest:
            questions.setdefault(tuple(question.ids), question)
        if len(questions) == _PROMPTS:
            break
    if not questions:
        raise RecipeError(
            f"no row of {data.validation_file or data.train_file} has a prompt to try the export with, "
            f"of at most {longest} tokens"
        )
    return list(questions.values())


def _question(template: Template, example: Example) -> Question:
    from strop.data.examples import Text
    from strop.data.prompts import as_segments, as_turns
    from strop.exporting.parity.gate import Question

    if isinstance(example, Text):  # it is all answer; what it begins with stands for a prompt
        text = example.text[:100]
        [encoded] = template.encode([Text(text)])
        return Question(None, text, [int(token) for token in encoded.input_ids[:-1]])
    ids = template.encode_prompt(example)
    if template.name != "chat":
        return Question(None, as_segments(template.name, example)[0][0], ids)
    turns = as_turns(example)
    return Question(turns[:-1] if turns[-1]["role"] == "assistant" else turns, "", ids)
