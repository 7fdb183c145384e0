"""Examples -> token ids, and which of them are learned.

Text is tokenised and labelled segment by segment, so ids are never searched for markers. The prompt's ids are those of
the prompt alone, because generation starts from exactly these.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from strop.data.chat_template import ChatTemplate, Sample
from strop.data.examples import Conversation, Example, Message, Text, Tokens
from strop.data.prompts import (
    ALPACA,
    ALPACA_WITH_INPUT,
    Segment,
    TemplateName,
    as_segments,
    as_turns,
    resolve_template,
)
from strop.data.rows.columns import Format
from strop.data.tokenizer import (
    bos_to_prepend,
    chat_template_of,
    load_tokenizer,
    read_stop_ids,
    special_text_pattern,
)
from strop.errors import DataError, ModelError

TrainOn = Literal["completion", "all"]


@dataclass(frozen=True, slots=True)
class Encoded:
    """A sample as tokens.

    Attributes:
        input_ids: int32 (n,).
        learned: bool (n,); token i is a target of the loss. Never token 0, which nothing predicts.
        num_turns: How many of a conversation's turns it holds; 0 for all of the row.
    """

    input_ids: NDArray[np.int32]
    learned: NDArray[np.bool_]
    num_turns: int = 0


def load_template(
    folder: Path,
    name: str,
    formats: Collection[Format],
    train_on: TrainOn = "completion",
    chat_template: str | None = None,
    system: str | None = None,
) -> "Template":
    """The template for a model folder and rows of some formats.

    Args:
        folder: A vetted local folder.
        name: A template, or `auto`.
        formats: Of all rows of the run.
        train_on: See `Template`.
        chat_template: The source of one that is used in place of the model's own.
        system: See `Template`.

    Raises:
        ModelError, RecipeError: As `load_tokenizer`, `resolve_template` and `Template` do.
    """
    tokenizer = load_tokenizer(folder)
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    resolved = resolve_template(name, formats, chat_template_of(tokenizer) is not None)
    return Template(tokenizer, resolved, train_on, read_stop_ids(folder, tokenizer), system)


class Template:
    """How rows become tokens for one tokenizer.

    Args:
        tokenizer: From `load_tokenizer`.
        name: `chat`, `alpaca` or `plain`.
        train_on: `completion` learns each answer up to its last stop token, `all` learns everything but BOS.
        stop_ids: Ids that end generation (`read_stop_ids`); `chat` adds the token that
            ends a turn.
        system: The system message that training gave to conversations without one (data.system); prompts get it too.

    Attributes:
        chat: The model's chat template; None under `alpaca` and `plain`.
        stop_ids: All ids that end generation.
        bos_id: The id that every sample starts with exactly once, or None if the model uses none.
        fingerprint: SHA-256 over everything that determines ids and labels, including the tokenizer.

    Raises:
        ModelError: The tokenizer lacks an eos or a usable chat template.
    """

    def __init__(
        self,
        tokenizer: Any,
        name: TemplateName,
        train_on: TrainOn,
        stop_ids: Iterable[int] = (),
        system: str | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.name = name
        self.train_on = train_on
        self.system = system
        self.bos_id = bos_to_prepend(tokenizer)
        self.stop_ids = frozenset(stop_ids)
        self.special_text = special_text_pattern(tokenizer)
        self.chat: ChatTemplate | None = None
        self._controls: tuple[str, ...] = ()
        if name == "chat":
            source = chat_template_of(tokenizer)
            if source is None:
                raise ModelError("this model's tokenizer has no chat template")
            self.chat = ChatTemplate(tokenizer, source)
            # The first behind an answer ends its turn; the last behind a call, because markup may come before it.
            self.stop_ids |= {*self._controls_behind("assistant text", self.chat.probe[-1][0])[:1]}
            self.stop_ids |= {*self._controls_behind("strop_probe_place", self.chat.call_probe)[-1:]}
            self._controls = self._cutting_tokens("".join(text for text, _ in self.chat.probe))
        elif tokenizer.eos_token_id is None:
            raise ModelError(f"the tokenizer has no eos token, but the {name} template ends answers with one")
        else:
            self.stop_ids |= {int(tokenizer.eos_token_id)}
        self.fingerprint = self._fingerprint()

    def encode(self, examples: Sequence[Example]) -> list[list[Encoded]]:
        """The samples of each example, usually one; faster for many at once.

        Raises:
            DataError: An example cannot be rendered; with several, the error does not say which.
        """
        samples = self._samples(examples)
        tokenised = iter(self._tokenised([sample for row in samples for sample in row]))
        return [
            [self._label(example, *part) for _ in row for part in next(tokenised)]
            if not isinstance(example, Tokens)
            else [self._given(example)]
            for example, row in zip(examples, samples, strict=True)
        ]

    def encode_prompt(self, example: Example) -> list[int]:
        """The ids that generation starts from: everything before the last answer, which may be missing.

        Raises:
            DataError: The example cannot be rendered.
        """
        return self.encode_text(self.prompt(example))

    def prompt(self, example: Example) -> str:
        """The text that generation starts from, without a BOS that the tokenizer adds; see `encode_prompt`."""
        if self.chat and not isinstance(example, Text | Tokens):
            return self.chat.prompt(self.as_chat(example))
        segments = as_segments(self.name, example)
        return segments[0][0] if len(segments) > 1 else ""

    def as_chat(self, example: Example) -> Conversation:
        """A question as the chat template gets it: with training's system message, if it has none of its own."""
        chat = _as_chat(example)
        if self.system is None or chat.messages[0].role == "system":
            return chat
        return replace(chat, messages=(Message("system", self.system), *chat.messages))

    def encode_text(self, text: str) -> list[int]:
        """The ids of a text on its own, after BOS if the model uses one."""
        return self._with_bos(self._encode_texts([text])[0])

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens dropped."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def decode_all(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens written out."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=False))

    def _samples(self, examples: Sequence[Example]) -> list[list[Sample]]:
        """The samples of each example as text; none of one that is tokenised already."""
        found: dict[int, list[Sample]] = {}
        if self.chat:
            turned = [i for i, example in enumerate(examples) if not isinstance(example, Text | Tokens)]
            split = self.chat.split([_as_chat(examples[i]) for i in turned], self.train_on == "all")
            found = dict(zip(turned, split, strict=True))
        for i, example in enumerate(examples):
            if i not in found:
                found[i] = [] if isinstance(example, Tokens) else [Sample(as_segments(self.name, example), 0)]
        return [found[i] for i in range(len(examples))]

    def _given(self, example: Tokens) -> Encoded:
        """A row that is tokenised already, unchanged.

        Raises:
            DataError: A token is not in the vocabulary.
        """
        if not all(0 <= token < len(self.tokenizer) for token in example.input_ids):
            raise DataError(f"not token ids: this model's are 0 to {len(self.tokenizer) - 1:,}")
        learned = np.array(example.learned, dtype=np.bool_)
        if self.train_on == "all":
            learned[:] = True
        learned[:1] = False
        return Encoded(np.array(example.input_ids, dtype=np.int32), learned)

    def _encode_texts(self, texts: list[str]) -> list[list[int]]:
        backend = self.tokenizer.backend_tokenizer
        return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]

    def _tokenised(self, samples: list[Sample]) -> list[list[tuple[Sample, list[list[int]]]]]:
        """Each sample with the ids of its segments; in its place one for each answer, where prompts need it.

        An answer that begins with a blank line follows the newline that ends its prompt. In the prompts of later
        answers, which are tokenised as one text when they are asked, both are one token in some vocabularies.
        """
        found = []
        encoded = self._encode_segments([sample.segments for sample in samples])
        for sample, segments in zip(samples, encoded, strict=True):
            learned = [k for k in range(1, len(segments), 2) if k not in sample.context]
            in_prompts = segments[1 : max(learned, default=0)]
            if self.train_on != "all" and not all(is_apart for _, is_apart in in_prompts):
                parts = sample.apart()
                segments_of = self._encode_segments([part.segments for part in parts])
                found.append([(part, [ids for ids, _ in each]) for part, each in zip(parts, segments_of, strict=True)])
            else:
                found.append([(sample, [ids for ids, _ in segments])])
        return found

    def _encode_segments(self, rows: list[list[Segment]]) -> list[list[tuple[list[int], bool]]]:
        """Ids of every segment as the continuation of the one before it, and whether no token would span the cut.

        ids(before + segment) minus ids(before), so that SentencePiece puts no space before an answer. If a token
        would span the cut (generation could not produce it), the segment is tokenised after a newline instead, and if
        that merges too, on its own. `before` begins at the last control token of the text before, because tokenizers
        treat the text between two of them on its own: so no text is tokenised twice.
        """
        befores = [[self._since_control(text) for text, _ in row[:-1]] for row in rows]
        texts = dict.fromkeys(row[0][0] for row in rows)
        for row, before in zip(rows, befores, strict=True):
            for n, text in enumerate(before):
                texts[text] = texts[text + row[n + 1][0]] = None
        known = dict(zip(texts, self._encode_texts(list(texts)), strict=True))
        return [
            [
                self._continuation(before[n - 1], text, known) if n else (known[text], True)
                for n, (text, _) in enumerate(row)
            ]
            for row, before in zip(rows, befores, strict=True)
        ]

    def _since_control(self, text: str) -> str:
        """A text from its last control token on; all of it if there is none."""
        return text[max(0, *(text.rfind(token) for token in self._controls)) :] if self._controls else text

    def _continuation(self, before: str, text: str, known: dict[str, list[int]]) -> tuple[list[int], bool]:
        joint, prefix = known[before + text], known[before]
        if joint[: len(prefix)] == prefix:
            return joint[len(prefix) :], True
        prefix, joint, alone = self._encode_texts(["\n", "\n" + text, text])
        return (joint[len(prefix) :] if joint[: len(prefix)] == prefix else alone), False

    def _label(self, example: Example, sample: Sample, ids: list[list[int]]) -> Encoded:
        tokens: list[int] = []
        learned: list[bool] = []
        for n, ((_, is_answer), part) in enumerate(zip(sample.segments, ids, strict=True)):
            tokens += part
            count = self._num_learned(part) if is_answer else 0
            rest = self.train_on == "all" and n not in sample.context
            learned += [True] * count + [rest] * (len(part) - count)
        eos = self.tokenizer.eos_token_id
        if eos is not None and (not self.chat or isinstance(example, Text)) and tokens[-1:] != [eos]:
            tokens.append(eos)
            learned.append(True)
        if self.train_on != "all":
            # Tokens after the last learned one teach nothing, and no earlier token attends to them.
            end = max((i + 1 for i, is_learned in enumerate(learned) if is_learned), default=0)
            tokens, learned = tokens[:end], learned[:end]
        with_bos = self._with_bos(tokens)
        mask = np.array([False] * (len(with_bos) - len(tokens)) + learned, dtype=np.bool_)
        mask[:1] = False
        return Encoded(np.array(with_bos, dtype=np.int32), mask, sample.num_turns)

    def _num_learned(self, answer: list[int]) -> int:
        """An answer is learned up to its last stop token: ChatML's newline after `<|im_end|>` is not."""
        if not self.chat:
            return len(answer)
        return next((i for i in range(len(answer), 0, -1) if answer[i - 1] in self.stop_ids), len(answer))

    def _with_bos(self, ids: list[int]) -> list[int]:
        return ids if self.bos_id is None or ids[:1] == [self.bos_id] else [self.bos_id, *ids]

    def _controls_behind(self, mark: str, text: str) -> list[int]:
        """The ids of the control tokens behind a mark in a text; none if it is not there."""
        _, found, tail = text.rpartition(mark)
        added = self.tokenizer.backend_tokenizer.get_added_tokens_decoder()
        return [token for token in self._encode_texts([tail])[0] if token in added] if found else []

    def _cutting_tokens(self, text: str) -> tuple[str, ...]:
        """Control tokens in a text that the tokenizer finds before all else, and that leave the text before them be."""
        added = self.tokenizer.backend_tokenizer.get_added_tokens_decoder().values()
        return tuple(
            token.content
            for token in added
            if token.content in text and token.special and not (token.normalized or token.lstrip or token.single_word)
        )

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


def _as_chat(example: Example) -> Conversation:
    return example if isinstance(example, Conversation) else Conversation(as_turns(example))
