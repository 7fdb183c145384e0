"""What an export is compared with: prompts from the run's data, and the trained model's answers to them."""

import json
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from itertools import islice

import torch

from strop.data.examples import Conversation, Example, Row, Text, Tokens
from strop.data.prompts import as_text, as_turns
from strop.data.sources import held_out_key, held_out_sources, read_examples
from strop.data.template import Template
from strop.errors import DataError, RecipeError
from strop.evaluation.generate import generate
from strop.exporting.parity.gate import Question, Reference
from strop.microbatch.tree import Tree
from strop.model.decoder import Decoder
from strop.recipe import DataSection

_ANSWERS, _NEW_TOKENS = 6, 24
"""Enough to reveal any fault in the weights, few enough for a CPU."""

_ROWS = 100
"""Rows whose prompts are compared: rows with tools, with an input, with many turns may be rare."""


def ask(decoder: Decoder, template: Template, questions: Sequence[Question]) -> Reference:
    """Let a model answer the first questions greedily, and compute its logits on the answers."""
    answers, logits = [], []
    asked = questions[:_ANSWERS]
    for question, answer in zip(
        asked, generate(decoder, [question.ids for question in asked], template.stop_ids, _NEW_TOKENS), strict=True
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
    """The distinct, short enough prompts of the first held-out rows, or of training rows if none are held out.

    Of a conversation, the prompt of each learned answer.

    Args:
        data: The run's rows.
        template: The training template.
        context: The most tokens of a prompt and its answer together.

    Raises:
        RecipeError: No row has such a prompt.
    """
    longest = context - _NEW_TOKENS
    sources = held_out_sources(data)
    each = -(-_ROWS // len(sources))
    found: dict[str, Question] = {}
    for source in sources:
        rows = (row.example for row in read_examples([source], data.system) if isinstance(row, Row))
        fitting = ([q for q in _questions(template, row) if 0 < len(q.ids) <= longest] for row in rows)
        for questions in islice(filter(None, fitting), each):
            found |= {_key(question): question for question in questions}
    if not found:
        raise RecipeError(
            f"no row of {held_out_key(data)} has a prompt of at most {longest} tokens to test the export with"
        )
    by_ids: dict[str, list[Question]] = {}
    for question in found.values():
        by_ids.setdefault(str(question.ids), []).append(question)
    # The first are answered, so those that say the same in another way come last.
    return [first for first, *_ in by_ids.values()] + [other for _, *others in by_ids.values() for other in others]


def spelt_the_same(questions: Sequence[Question], template: Template) -> list[Question]:
    """The questions that a program which does not normalise text gives the same ids as the tokenizer, which may."""
    normalizer = json.loads(template.tokenizer.backend_tokenizer.to_str())["normalizer"]
    if '"NFC"' not in json.dumps(normalizer):
        return list(questions)
    return [q for q in questions if unicodedata.is_normalized("NFC", json.dumps(asdict(q), ensure_ascii=False))]


def _key(question: Question) -> str:
    return json.dumps(asdict(question))


def _questions(template: Template, example: Example) -> list[Question]:
    """The prompts of a row; none of one that is not trained on, because the template rejects it."""
    with suppress(DataError):
        if isinstance(example, Text | Tokens):
            return [_beginning(template, example)]
        if template.chat:
            chat = example if isinstance(example, Conversation) else Conversation(as_turns(example))
            return list(_of_answers(template, chat))
        ids = template.encode_prompt(example)
        asked = {"role": "user", "content": as_text(template.name, example)}
        return [Question([asked], None, ids), Question(None, template.prompt(example), ids)]
    return []


def _beginning(template: Template, example: Text | Tokens) -> Question:
    """A document is all answer; its beginning serves as a prompt."""
    if isinstance(example, Tokens):
        return Question(None, None, list(example.input_ids[: example.learned.index(True)] or example.input_ids[:1]))
    text = example.text[:100]
    [[encoded]] = template.encode([Text(text)])
    return Question(None, text, [int(token) for token in encoded.input_ids[:-1]])


def _of_answers(template: Template, chat: Conversation) -> Iterator[Question]:
    """The prompt of each learned answer; with training's system message also as those ask who leave it out."""
    for k, message in enumerate(chat.messages):
        if message.role != "assistant" or not message.learned:
            continue
        asked = replace(chat, messages=chat.messages[:k])
        yield _question(template, asked, template.encode_prompt(replace(asked, messages=chat.messages[: k + 1])))
        first, *rest = chat.messages[:k]
        if rest and first.role == "system" and first.content == template.system:
            bare = replace(asked, messages=tuple(rest))
            yield _question(template, bare, template.encode_prompt(bare))


def _question(template: Template, asked: Conversation, ids: list[int]) -> Question:
    assert template.chat
    messages = list(map(template.chat.turn, asked.messages))
    tools, documents = (list(map(dict, values)) or None for values in (asked.tools, asked.documents))
    return Question(messages, None, ids, tools, documents, dict(asked.template_kwargs))
