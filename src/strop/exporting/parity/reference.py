"""What an export is compared with: prompts from the run's data, and the trained model's answers to them."""

from collections.abc import Sequence

import torch

from strop.data.examples import Example, Text
from strop.data.prompts import as_json, as_segments, as_turns
from strop.data.sources import held_out_examples, held_out_key
from strop.data.template import Template
from strop.errors import RecipeError
from strop.evaluation.generate import generate
from strop.exporting.parity.gate import Question, Reference
from strop.microbatch.tree import Tree
from strop.model.decoder import Decoder
from strop.recipe import DataSection

_PROMPTS, _NEW_TOKENS = 6, 24
"""Enough to reveal any fault in the weights, few enough for a CPU."""


def ask(decoder: Decoder, template: Template, questions: Sequence[Question]) -> Reference:
    """Let a model answer greedily, and compute its logits on the answers."""
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


def questions_for(data: DataSection, template: Template, context: int) -> list[Question]:
    """The first distinct, short enough prompts of held-out rows, or of training rows if none are held out.

    Args:
        data: The run's rows.
        template: The training template.
        context: The most tokens of a prompt and its answer together.

    Raises:
        RecipeError: No row has such a prompt.
    """
    longest = context - _NEW_TOKENS
    questions: dict[tuple[int, ...], Question] = {}
    for _, example in held_out_examples(data):
        question = _question(template, example)
        if 0 < len(question.ids) <= longest:
            questions.setdefault(tuple(question.ids), question)
        if len(questions) == _PROMPTS:
            break
    if not questions:
        raise RecipeError(
            f"no row of {held_out_key(data)} has a prompt of at most {longest} tokens to test the export with"
        )
    return list(questions.values())


def _question(template: Template, example: Example) -> Question:
    if isinstance(example, Text):  # it is all answer; its beginning serves as a prompt
        text = example.text[:100]
        [[encoded]] = template.encode([Text(text)])
        return Question(None, text, [int(token) for token in encoded.input_ids[:-1]])
    ids = template.encode_prompt(example)
    if template.name != "chat":
        return Question(None, as_segments(template.name, example)[0][0], ids)
    turns = as_turns(example)
    asked = turns[:-1] if turns[-1].role == "assistant" else turns
    return Question([as_json(turn) for turn in asked], "", ids)
