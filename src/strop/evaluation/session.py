"""A chat with a model in the template it was trained on."""

from collections.abc import Iterator
from dataclasses import dataclass

from strop.data.prompts import as_question
from strop.data.template import Template
from strop.evaluation.generate import stream
from strop.model.lora import LoraAdapter


@dataclass(frozen=True, slots=True)
class ChatSession:
    """A loaded model that answers single questions, each on its own.

    Attributes:
        max_new_tokens: Longest answer.
        temperature: 0 always takes the likeliest token.
    """

    adapter: LoraAdapter
    template: Template
    max_new_tokens: int
    temperature: float

    def stream(self, prompt: str, tuned: bool = True) -> Iterator[str]:
        """The answer to a prompt, piece by piece.

        Args:
            prompt: The user's words; under the alpaca template an instruction and, after a blank line, its input.
            tuned: False asks the base model.
        """
        self.adapter.enable(tuned)
        prompt_ids = self.template.encode_prompt(as_question(self.template.name, prompt))
        ids: list[int] = []
        shown = ""
        for _, token in stream(
            self.adapter.decoder, [prompt_ids], self.template.stop_ids, self.max_new_tokens, self.temperature
        ):
            if token in self.template.stop_ids:
                return
            ids.append(token)
            text = self.template.tokenizer.decode(ids, skip_special_tokens=True)
            if not text.endswith("\ufffd"):  # a character whose last bytes are still to come
                yield text[len(shown) :]
                shown = text
