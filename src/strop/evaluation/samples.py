"""A model's answers to a few held-out questions while it is being trained."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from strop.data.store import SampleStore
from strop.data.template import Template
from strop.evaluation.generate import stream
from strop.evaluation.score import split_question
from strop.model.decoder import Decoder
from strop.run.records import Sample

MAX_NEW_TOKENS, MOST_NEW_TOKENS = 64, 256
"""Longest sample: enough to see what an answer looks like, and a limit for untrained models, which ramble. Where the
reference is longer, as long as that, so that an answer gets to its end; but never more than the second."""

Generate = Callable[[Sequence[Sequence[int]], frozenset[int], int], Sequence[Sequence[int]]]
"""Prompts, stop tokens, most new tokens -> each prompt's greedy continuation, up to and including a stop token."""


@dataclass(frozen=True)
class SampledRows:
    """The first held-out rows, whose questions are asked at every evaluation.

    Attributes:
        store: The held-out samples.
        questions: As written in the rows, in the store's order.
    """

    store: SampleStore
    template: Template
    questions: Sequence[str]

    def answered(self, step: int, generate: Generate) -> list[Sample]:
        """The current model's greedy answer to each question, recorded under this step."""
        stop_ids = self.template.stop_ids
        pairs = [split_question(self.store[i], stop_ids) for i in range(len(self.questions))]
        longest = max((len(answer) + 1 for _, answer in pairs), default=0)
        limit = max(MAX_NEW_TOKENS, min(longest, MOST_NEW_TOKENS))
        answers = generate([prompt for prompt, _ in pairs], stop_ids, limit)
        return [
            Sample(
                step=step,
                row=str(self.store.origin(i)),
                question=question,
                reference=self._text(pairs[i][1]),
                text=self._text([token for token in answers[i] if token not in stop_ids]),
            )
            for i, question in enumerate(self.questions)
        ]

    def _text(self, ids: Sequence[int]) -> str:
        return str(self.template.tokenizer.decode(ids, skip_special_tokens=True)).strip()


def greedily(decoder: Decoder, check_stop: Callable[[], None]) -> Generate:
    """Greedy answers of the plain decoder; `check_stop` is called between tokens and may raise to end early.

    Draws no random numbers, changes no parameters, and restores the decoder's mode.
    """

    def generate(prompts: Sequence[Sequence[int]], stop_ids: frozenset[int], max_new_tokens: int) -> list[list[int]]:
        written: list[list[int]] = [[] for _ in prompts]
        was_training = decoder.training
        try:
            for row, token in stream(decoder, prompts, stop_ids, max_new_tokens):
                check_stop()
                written[row].append(token)
        finally:
            decoder.train(was_training)
        return written

    return generate
