"""Text generation: a list of prompts -> their answers, whole or as they grow, and a chat with one model."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from strop.data.examples import Example
from strop.data.prompts import as_question
from strop.data.template import Template
from strop.evaluation.pool import Pool, Prompt, most_slots
from strop.evaluation.sampling import Sampling
from strop.model.decoder import Decoder
from strop.model.lora import LoraAdapter


@dataclass(frozen=True, slots=True)
class GeneratedAnswer:
    """The answer to one prompt: its ids without the stop token, and whether it ended with one."""

    ids: list[int]
    stopped: bool


def generate(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    stop_ids: Collection[int],
    max_new_tokens: int,
    slots: int | None = None,
) -> list[GeneratedAnswer]:
    """Answer every prompt greedily; results are in the order of the prompts, for any number of slots."""
    written: list[list[int]] = [[] for _ in prompts]
    stopped = [False] * len(prompts)
    for row, token in stream(decoder, prompts, stop_ids, max_new_tokens, slots=slots):
        if token in stop_ids:
            stopped[row] = True
        else:
            written[row].append(token)
    return [GeneratedAnswer(*pair) for pair in zip(written, stopped, strict=True)]


def stream(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    stop_ids: Collection[int],
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    top_p: float = 1.0,
    slots: int | None = None,
) -> Iterator[tuple[int, int]]:
    """Yield (index of the prompt, next token) as answers grow; a stop token is yielded and ends its answer.

    Args:
        decoder: With or without its LoRA terms enabled; must not change until the last token.
        prompts: Token ids, at least one each. If there are more prompts than slots, the longest go first.
        stop_ids: Tokens that end an answer.
        max_new_tokens: Longest answer to a prompt, in tokens.
        temperature: 0 takes the likeliest token; above 0, samples from softmax(logits / temperature).
        seed: Seed of the sampling; a prompt's random numbers depend only on it and on the prompt's index.
        top_p: Sample only from the likeliest tokens with this total probability.
        slots: Sequences that run at once; None means as many as memory allows.

    Raises:
        OutOfMemoryError: There is not enough memory for a single sequence.
    """
    sampling = Sampling(temperature, top_p, seed)
    if not prompts or max_new_tokens < 1:
        return
    pool = Pool(decoder, stop_ids, slots=min(slots or most_slots(decoder.device), len(prompts)))
    for row in sorted(range(len(prompts)), key=lambda i: -len(prompts[i])):
        pool.add(Prompt(prompts[row], max_new_tokens, sampling, row))
    while not pool.is_idle:
        for prompt, token in pool.advance():
            if isinstance(token, Exception):
                raise token
            yield prompt.row, token


@dataclass(frozen=True, slots=True)
class ChatSession:
    """A loaded model that answers questions, each independent of the others.

    Attributes:
        max_new_tokens: Longest answer.
        temperature: 0 always takes the likeliest token.
    """

    adapter: LoraAdapter
    template: Template
    max_new_tokens: int
    temperature: float

    def stream(self, question: str | Example, tuned: bool = True) -> Iterator[str]:
        """The answer to a question, piece by piece.

        Args:
            question: The user's text; under the alpaca template, an instruction and, after the heading "### Input:",
                its input. Or a row, which is asked up to its last answer.
            tuned: False asks the base model.

        Raises:
            DataError: The template has no place for something of the row.
        """
        self.adapter.enable(tuned)
        example = as_question(self.template.name, question) if isinstance(question, str) else question
        prompt_ids = self.template.encode_prompt(example)
        ids: list[int] = []
        shown = ""
        for _, token in stream(
            self.adapter.decoder, [prompt_ids], self.template.stop_ids, self.max_new_tokens, self.temperature
        ):
            if token in self.template.stop_ids:
                return
            ids.append(token)
            text = self.template.tokenizer.decode(ids, skip_special_tokens=True)
            if not text.endswith("\ufffd"):  # a character whose last bytes are still missing
                yield text[len(shown) :]
                shown = text
