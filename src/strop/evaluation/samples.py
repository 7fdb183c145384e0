"""What a model answers to a few held-out questions while it is being trained."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from strop.data.store import SampleStore
from strop.data.template import Template
from strop.evaluation.generate import stream
from strop.evaluation.score import split_question
from strop.model.decoder import Decoder
from strop.run.samples import Sample

MAX_NEW_TOKENS = 64
"""Longest sample: enough to see what an answer looks like, and a bound on what an untrained model rambles on."""


@dataclass(frozen=True)
class Asked:
    """The first held-out rows, as they are asked again at every evaluation.

    Attributes:
        questions: In the rows' own words, in the store's order.
    """

    store: SampleStore
    template: Template
    questions: Sequence[str]

    def answers(self, decoder: Decoder, step: int, check_stop: Callable[[], None]) -> list[Sample]:
        """The plain decoder's greedy answer to each question, with the weights of this step.

        Draws no random number, changes no parameter, and leaves the decoder in the mode in which it was.

        Args:
            decoder: With its LoRA terms enabled.
            step: Updates made so far.
            check_stop: Called between tokens; may raise to end early.
        """
        stop_ids, decode = self.template.stop_ids, self.template.tokenizer.decode
        pairs = [split_question(self.store[i], stop_ids) for i in range(len(self.questions))]
        written: list[list[int]] = [[] for _ in pairs]
        was_training = decoder.training
        try:
            for row, token in stream(decoder, [prompt for prompt, _ in pairs], stop_ids, MAX_NEW_TOKENS):
                check_stop()
                written[row].append(token)
        finally:
            decoder.train(was_training)
        return [
            Sample(
                step=step,
                row=str(self.store.origin(i)),
                question=question,
                reference=str(decode(pairs[i][1], skip_special_tokens=True)).strip(),
                text=str(
                    decode([token for token in written[i] if token not in stop_ids], skip_special_tokens=True)
                ).strip(),
            )
            for i, question in enumerate(self.questions)
        ]
