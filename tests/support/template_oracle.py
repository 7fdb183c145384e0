"""What training on a row must give, found with transformers alone: each learned answer, and what comes before it."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from unittest import mock

from real_templates import FAMILIES
from template_rows import Row, is_learned, native

DATE = {"date_string": "26 Jul 2024"}
# strop's own day, where templates ask for today's.
DAY = mock.patch("transformers.utils.chat_template_utils.datetime", mock.Mock(now=lambda: datetime(2024, 7, 26)))


@dataclass(frozen=True)
class Answer:
    """One learned answer.

    Attributes:
        turn: Its place in the row's messages.
        prompt: What the template gives for all turns before it, with a generation prompt.
        text: What follows up to and including the stop token.
        prompt_ids: The ids of `prompt` alone, as generation starts from them.
        ids: The ids of `text` behind `prompt`, or None where a token spans the two.
        in_whole: Whether the whole row's text holds this prompt and this answer as they are here.
    """

    turn: int
    prompt: str
    text: str
    prompt_ids: list[int]
    ids: list[int] | None
    in_whole: bool


class Oracle:
    """Expected answers of rows for one tokenizer with a real template."""

    def __init__(self, name: str, tokenizer: Any) -> None:
        self.name, self.tokenizer = name, tokenizer
        self.stops = [str(tokenizer.eos_token), *FAMILIES[name].stops]

    def answers(self, row: Row) -> list[Answer]:
        """The learned answers of a row, in order."""
        messages = native(row)
        learned = [k for k, turn in enumerate(row["messages"]) if is_learned(turn)]
        whole = self.render(row, messages[: learned[-1] + 1], False)  # later turns teach nothing
        return [self._answer(row, messages, k, whole) for k in learned]

    def render(self, row: Row, messages: list[Row], generation_prompt: bool) -> str:
        with DAY:
            text: str = self.tokenizer.apply_chat_template(
                messages,
                tools=row.get("tools"),
                documents=row.get("documents"),
                add_generation_prompt=generation_prompt,
                tokenize=False,
                **DATE,
            )
        return text

    def ids(self, text: str) -> list[int]:
        """As apply_chat_template tokenises what it rendered."""
        found: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    def _answer(self, row: Row, messages: list[Row], k: int, whole: str) -> Answer:
        prompt = self.render(row, messages[:k], True)
        upto = self.render(row, messages[: k + 1], False)
        text = self._text(row, messages[k], prompt, upto)
        if not whole.startswith(prompt + text) and self._ends_twice(text):
            text = text.removesuffix(self.tokenizer.eos_token)  # Phi-3 writes eos behind whichever turn is last
        text = self._to_stop(text)
        before, joint = self.ids(prompt), self.ids(prompt + text)
        behind = joint[len(before) :] if joint[: len(before)] == before else None
        return Answer(k, prompt, text, before, behind, whole.startswith(prompt + text))

    def _text(self, row: Row, turn: Row, prompt: str, upto: str) -> str:
        """The answer behind its prompt.

        Where the template writes the turns before an answer in another way than in the answer's prompt (Mistral moves
        the system message, Hermes adds a newline, R1 and QwQ take `<think>` back), the answer is read off the shortest
        conversation instead: a question, and this turn.
        """
        if upto.startswith(prompt):
            return upto[len(prompt) :]
        thought, said = _parted(turn) if prompt.endswith("<think>\n") else ("", turn)
        question = [{"role": "user", "content": "?"}]
        short = {**row, "documents": None, "tools": row.get("tools") if self.name == "hermes-3" else None}
        start = self.render(short, question, True).removesuffix("<think>\n")
        answer = self.render(short, [*question, said], False)
        assert answer.startswith(start), (start, answer)
        if not prompt.endswith("<think>\n"):
            return answer[len(start) :]
        # Newlines behind the reasoning are the template's, not the answer's, as in Qwen3's own template.
        return f"{thought}\n</think>\n\n{answer[len(start) :].lstrip(chr(10))}"

    def _ends_twice(self, text: str) -> bool:
        return text.removesuffix(self.tokenizer.eos_token).rstrip().endswith(tuple(self.stops))

    def _to_stop(self, text: str) -> str:
        """Up to and including the last stop token: ChatML's newline after it is not learned."""
        end = max((text.rfind(stop) + len(stop) for stop in self.stops if stop in text), default=len(text))
        return text[:end]


def _parted(turn: Row) -> tuple[str, Row]:
    """An answer's reasoning, from its field or from `<think>` tags, and the turn without it."""
    thought = turn.get("reasoning_content") or turn.get("thinking") or ""
    said = {key: value for key, value in turn.items() if key not in ("reasoning_content", "thinking")}
    if not thought and "</think>" in said["content"]:
        head, _, tail = said["content"].rpartition("</think>")
        thought, said["content"] = head.rpartition("<think>")[2].strip("\n"), tail.lstrip("\n")
    return thought, said
