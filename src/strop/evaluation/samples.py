"""What a model answers to a few held-out questions while it is being trained."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from strop.data.store import SampleStore
from strop.data.template import Template
from strop.evaluation.generate import stream
from strop.evaluation.score import split_question
from strop.model.decoder import Decoder
from strop.run.records import Sample

MAX_NEW_TOKENS = 64
"""Longest sample: enough to see what an answer looks like, and a bound on what an untrained model rambles on."""

Generate = Callable[[Sequence[Sequence[int]], frozenset[int], int], Sequence[Sequence[int]]]
"""Prompts, stop tokens and the most new tokens -> what follows each prompt greedily, up to and with a stop token."""


@dataclass(frozen=True)
class SampledRows:
    """The first held-out rows, whose questions are asked again at every evaluation.

    Attributes:
        store: The held-out samples.
        questions: In the rows' own words, in the store's order.
    """

    store: SampleStore
    template: Template
    questions: Sequence[str]

    def answered(self, step: int, generate: Generate) -> list[Sample]:
        """The greedy answer to each question, by a model with the weights of this step."""
        stop_ids = self.template.stop_ids
        pairs = [split_question(self.store[i], stop_ids) for i in range(len(self.questions))]
        answers = generate([prompt for prompt, _ in pairs], stop_ids, MAX_NEW_TOKENS)
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
    """Answers of the plain decoder as it is; `check_stop` is called between tokens and may raise to end early.

    Draws no random number, changes no parameter, and leaves the decoder in the mode in which it was.
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
