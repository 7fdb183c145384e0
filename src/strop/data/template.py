"""Examples -> token ids, and which of them are learned.

Text is tokenised and labelled segment by segment, so ids are never searched for markers. The prompt's ids are those of
the prompt alone, because generation starts from exactly these.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from strop.data.chat_template import ChatTemplate, Segment
from strop.data.examples import Example
from strop.data.prompts import (
    ALPACA,
    ALPACA_WITH_INPUT,
    TemplateName,
    as_segments,
    as_turns,
    resolve_template,
)
from strop.data.row_shapes import Format
from strop.data.tokenizer import (
    bos_to_prepend,
    chat_template_of,
    load_tokenizer,
    read_stop_ids,
    special_text_pattern,
)
from strop.errors import ModelError

TrainOn = Literal["completion", "all"]


@dataclass(frozen=True, slots=True)
class Encoded:
    """A row as tokens.

    Attributes:
        input_ids: int32 (n,).
        learned: bool (n,); token i is a target of the loss. Never token 0, which nothing predicts.
    """

    input_ids: NDArray[np.int32]
    learned: NDArray[np.bool_]


def load_template(folder: Path, name: str, format: Format, train_on: TrainOn = "completion") -> "Template":
    """The template for a model folder and rows of a format; `name` may be `auto`.

    Raises:
        ModelError, RecipeError: As `load_tokenizer`, `resolve_template` and `Template` do.
    """
    tokenizer = load_tokenizer(folder)
    resolved = resolve_template(name, format, chat_template_of(tokenizer) is not None)
    return Template(tokenizer, resolved, train_on, read_stop_ids(folder, tokenizer))


class Template:
    """How rows become tokens for one tokenizer.

    Args:
        tokenizer: From `load_tokenizer`.
        name: `chat`, `alpaca` or `plain`.
        train_on: `completion` learns each answer up to its last stop token, `all` learns everything but BOS.
        stop_ids: Ids that end generation (`read_stop_ids`); `chat` adds the token that
            ends a turn.

    Attributes:
        chat: The model's chat template; None under `alpaca` and `plain`.
        stop_ids: All ids that end generation.
        bos_id: The id that every sample starts with exactly once, or None if the model uses none.
        fingerprint: SHA-256 over everything that determines ids and labels, including the tokenizer.

    Raises:
        ModelError: The tokenizer lacks an eos or a usable chat template.
    """

    def __init__(self, tokenizer: Any, name: TemplateName, train_on: TrainOn, stop_ids: Iterable[int] = ()) -> None:
        self.tokenizer = tokenizer
        self.name = name
        self.train_on = train_on
        self.bos_id = bos_to_prepend(tokenizer)
        self.stop_ids = frozenset(stop_ids)
        self.special_text = special_text_pattern(tokenizer)
        self.chat: ChatTemplate | None = None
        if name == "chat":
            source = chat_template_of(tokenizer)
            if source is None:
                raise ModelError("this model's tokenizer has no chat template")
            self.chat = ChatTemplate(tokenizer, source)
            self.stop_ids |= self._turn_end(self.chat.probe)
        elif tokenizer.eos_token_id is None:
            raise ModelError(f"the tokenizer has no eos token, but the {name} template ends answers with one")
        else:
            self.stop_ids |= {int(tokenizer.eos_token_id)}
        self.fingerprint = self._fingerprint()

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """Tokens and labels of each example; faster for many at once.

        Raises:
            DataError: An example cannot be rendered; with several, the error does not say which.
        """
        segments = self._segments(examples)
        ids = self._encode_segments(segments)
        return [
            self._label(example, row, row_ids) for example, row, row_ids in zip(examples, segments, ids, strict=True)
        ]

    def encode_prompt(self, example: Example) -> list[int]:
        """The ids that generation starts from: everything before the last answer, which may be missing.

        Raises:
            DataError: The example cannot be rendered.
        """
        if self.chat:
            turns = as_turns(example)
            if turns[-1]["role"] == "assistant":
                turns = turns[:-1]
            [text] = self.chat.render([turns], True)
        else:
            segments = as_segments(self.name, example)
            text = segments[0][0] if len(segments) > 1 else ""
        return self.encode_text(text)

    def encode_text(self, text: str) -> list[int]:
        """The ids of a text on its own, after BOS if the model uses one."""
        return self._with_bos(self._encode_texts([text])[0])

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens dropped."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def _segments(self, examples: Sequence[Example]) -> list[list[Segment]]:
        if self.chat:
            return self.chat.split([as_turns(example) for example in examples])
        return [as_segments(self.name, example) for example in examples]

    def _encode_texts(self, texts: list[str]) -> list[list[int]]:
        backend = self.tokenizer.backend_tokenizer
        return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]

    def _encode_segments(self, rows: list[list[Segment]]) -> list[list[list[int]]]:
        """Ids of every segment, each as the continuation of the one before it.

        ids(before + segment) minus ids(before), so that SentencePiece puts no space before an answer. If a token
        would span the cut (generation could not produce it), the segment is tokenised after a newline instead, and if
        that merges too, on its own.
        """
        texts = dict.fromkeys(
            text
            for row in rows
            for n, (segment, _) in enumerate(row)
            for text in ([row[n - 1][0] + segment] if n else []) + ([segment] if n == 0 or n + 1 < len(row) else [])
        )
        known = dict(zip(texts, self._encode_texts(list(texts)), strict=True))
        return [
            [self._continuation(row[n - 1][0], text, known) if n else known[text] for n, (text, _) in enumerate(row)]
            for row in rows
        ]

    def _continuation(self, before: str, text: str, known: dict[str, list[int]]) -> list[int]:
        joint, prefix = known[before + text], known[before]
        if joint[: len(prefix)] == prefix:
            return joint[len(prefix) :]
        prefix, joint, alone = self._encode_texts(["\n", "\n" + text, text])
        return joint[len(prefix) :] if joint[: len(prefix)] == prefix else alone

    def _label(self, example: Example, segments: list[Segment], ids: list[list[int]]) -> Encoded:
        tokens: list[int] = []
        learned: list[bool] = []
        for (_, is_answer), part in zip(segments, ids, strict=True):
            tokens += part
            count = self._num_learned(part) if is_answer else 0
            learned += [True] * count + [False] * (len(part) - count)
        eos = self.tokenizer.eos_token_id
        if not self.chat and (not tokens or tokens[-1] != eos):
            tokens.append(eos)
            learned.append(True)
        if self.train_on == "all":
            learned = [True] * len(tokens)
        else:
            # Tokens after the last learned one teach nothing, and no earlier token attends to them.
            end = max((i + 1 for i, is_learned in enumerate(learned) if is_learned), default=0)
            tokens, learned = tokens[:end], learned[:end]
        with_bos = self._with_bos(tokens)
        mask = np.array([False] * (len(with_bos) - len(tokens)) + learned, dtype=np.bool_)
        mask[:1] = False
        return Encoded(np.array(with_bos, dtype=np.int32), mask)

    def _num_learned(self, answer: list[int]) -> int:
        """An answer is learned up to its last stop token: ChatML's newline after `<|im_end|>` is not."""
        if not self.chat:
            return len(answer)
        stops = [i + 1 for i, token in enumerate(answer) if token in self.stop_ids]
        return stops[-1] if stops else len(answer)

    def _with_bos(self, ids: list[int]) -> list[int]:
        return ids if self.bos_id is None or ids[:1] == [self.bos_id] else [self.bos_id, *ids]

    def _turn_end(self, probe: list[Segment]) -> frozenset[int]:
        """The control token that follows an answer: the first one after the probe's own text."""
        _, found, tail = probe[-1][0].rpartition("assistant text")
        added = self.tokenizer.backend_tokenizer.get_added_tokens_decoder()
        ids = self._encode_texts([tail])[0] if found else []
        return frozenset(next(([i] for i in ids if i in added), []))

    def _fingerprint(self) -> str:
        parts = [
            hashlib.sha256(self.tokenizer.backend_tokenizer.to_str().encode("utf-8")).hexdigest(),
            self.name,
            self.train_on,
            self.bos_id,
            self.tokenizer.eos_token_id,
            sorted(self.stop_ids),
            chat_template_of(self.tokenizer) if self.chat else [ALPACA, ALPACA_WITH_INPUT],
            self.chat.probe if self.chat else None,  # a template may print a date
        ]
        return hashlib.sha256(json.dumps(parts).encode("utf-8")).hexdigest()
