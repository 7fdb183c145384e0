"""The shapes of a row, checked field by field and turned into examples."""

from collections.abc import Callable, Mapping
from typing import Any

from strop.data.examples import Alpaca, Conversation, Example, Message, PromptCompletion, Text, Tokens
from strop.data.rows import masks
from strop.data.rows.calls import read_tools
from strop.data.rows.columns import REQUIRED, Format, Shape, optional_columns, shape_of
from strop.data.rows.fields import RowError, get, is_empty, objects, parsed, text
from strop.data.rows.turns import read_content, read_turns, with_masks

_MEDIA = frozenset(("images", "image", "videos", "video", "audios", "audio"))
_PREFERENCE = ("chosen", "rejected")
_EXTRAS = ("tools", "functions", "documents")
_MASKS = masks.MASK_KEYS | {*masks.UNDESIRABLE}
_TOKENS = {"input_ids", "labels", "assistant_masks", "completion_mask", "attention_mask"}
_TRAILING = "turns after the last learned answer"


class RowReader:
    """Reads the rows of one source as examples.

    Args:
        shape: Of the rows.
        system: The system message of conversations and instructions that have none.
    """

    def __init__(self, shape: Shape, system: str | None = None) -> None:
        self._shape = shape
        self._system = system or ""
        self._convert = _CONVERTERS[shape.format]
        self._required = {part: shape.columns.get(part, part) for part in REQUIRED[shape.format]}

    def read(self, row: dict[str, Any]) -> tuple[Example, tuple[str, ...]]:
        """A row as an example, and the paths of its keys that are not used.

        Raises:
            RowError: A field is missing, null, not text or empty where it must not be; a key asks for what strop
                cannot do.
        """
        self._refuse(row)
        unused: set[str] = set()
        columns = self._columns(row)
        example = self._convert(row, columns, self._system, unused)
        return example, tuple(sorted(unused | self._unused(row, columns)))

    def _columns(self, row: dict[str, Any]) -> Mapping[str, str]:
        """Each part of this row and its column; the optional ones differ from row to row."""
        if self._shape.chosen:
            return self._shape.columns
        columns = dict(self._shape.columns)
        for part, names in optional_columns(tuple(row), self._shape.format).items():
            there = [name for name in names if name not in columns.values() and not is_empty(row[name])]
            if len(there) > 1:
                both = " and ".join(map(repr, there))
                raise RowError(f"two columns for one part: {both} could both be the {part}; say with data.columns")
            if there:
                columns[part] = there[0]
        return columns

    def _refuse(self, row: dict[str, Any]) -> None:
        for key in row.keys() & _MEDIA:
            if not is_empty(row[key]):
                raise RowError(f"not supported: '{key}': strop trains on text only")
        if not self._shape.chosen and any(not is_empty(row.get(key)) for key in _PREFERENCE):
            raise RowError(_preference(row, self._shape))
        if self._required and not any(name in row for name in self._required.values()):
            other = None if self._shape.chosen else shape_of(row)
            if other:
                raise RowError(
                    f"mixed shapes: this row has the keys of {other.format} "
                    f"({', '.join(map(repr, other.columns.values()))}), but the data is read as {self._shape.format}"
                )

    def _unused(self, row: dict[str, Any], columns: Mapping[str, str]) -> set[str]:
        used = {*columns.values(), *self._required.values(), *_MASKS, *_MEDIA}
        if self._shape.format == "tokens":
            used |= _TOKENS
        elif self._shape.format != "text":
            used.update(_EXTRAS)
        return {key for key in row.keys() - used if not is_empty(row[key])}


def _preference(row: Mapping[str, Any], shape: Shape) -> str:
    """Why a row with two answers is refused, and what to write to learn one of them."""
    turns = shape.columns.get("messages")
    ways = [f"data.columns={{prompt: {turns or 'prompt'}, completion: chosen}} learns the better one"]
    if shape.format in ("messages", "sharegpt"):
        ways.append(f"data.columns={{messages: {turns}}} learns {turns} alone")
    there = " and ".join(repr(key) for key in _PREFERENCE if not is_empty(row.get(key)))
    return f"preference rows: {there} are answers to choose from, and strop learns one; {', '.join(ways)}"


def _alpaca(row: dict[str, Any], columns: Mapping[str, str], system: str, unused: set[str]) -> Example:
    question, answer = columns.get("instruction", "instruction"), columns.get("output", "output")
    if isinstance(row.get(question), list | dict) or isinstance(row.get(answer), list | dict):
        return _joined_turns(row, question, answer, columns, system, unused)
    masks.of_row(row)
    found = Alpaca(
        text(row, question, "empty instruction"),
        _optional(row, columns, "input"),
        text(row, answer, "empty answer"),
    )
    asked = found.instruction + (f"\n\n{found.input}" if found.input else "")
    return _with_context(row, columns, system, asked, found.output) or found


def _prompt_completion(row: dict[str, Any], columns: Mapping[str, str], system: str, unused: set[str]) -> Example:
    question, answer = columns.get("prompt", "prompt"), columns.get("completion", "completion")
    if isinstance(row.get(question), list | dict) or isinstance(row.get(answer), list | dict):
        return _joined_turns(row, question, answer, columns, system, unused)
    masks.of_row(row)
    found = PromptCompletion(text(row, question, "empty prompt"), text(row, answer, "empty answer"))
    return _with_context(row, columns, system, found.prompt, found.completion) or found


def _with_context(
    row: dict[str, Any], columns: Mapping[str, str], system: str, question: str, answer: str
) -> Conversation | None:
    """A conversation, if the row has more than a question and an answer: a system message, earlier turns, tools."""
    start = _optional(row, columns, "system") or system
    before = _history(row.get(columns["history"])) if "history" in columns else []
    tools, documents = _extras(row)
    if not (start or before or tools or documents):
        return None
    messages = [Message("system", start)] if start else []
    turns = (*messages, *before, Message("user", question), Message("assistant", answer))
    return Conversation(turns, tools, documents)


def _history(value: Any) -> list[Message]:
    """Earlier turns: LLaMA-Factory's pairs, whose answers it learns too, or turns with roles."""
    if is_empty(value):
        return []
    turns = parsed(value, "'history'")
    if isinstance(turns, list) and turns and isinstance(turns[0], dict):
        return read_turns(turns, "history", set())
    if not isinstance(turns, list) or not all(
        isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(part, str) for part in pair)
        for pair in turns
    ):
        raise RowError("bad history: 'history' must be a list of pairs of a question and its answer")
    return [message for q, a in turns for message in (Message("user", q), Message("assistant", a))]


def _joined_turns(
    row: dict[str, Any], question: str, answer: str, columns: Mapping[str, str], system: str, unused: set[str]
) -> Example:
    """A prompt of turns and its completion, as turns or text (TRL's conversational prompt and completion)."""
    asked, said = _turns(get(row, question)), _turns(get(row, answer))
    before = [Message("user", asked)] if isinstance(asked, str) else read_turns(asked, question, unused)
    after = [Message("assistant", said)] if isinstance(said, str) else read_turns(said, answer, unused)
    repeated = [(m.role, m.content) for m in before]
    if [
        (m.role, m.content) for m in after[: len(before)]
    ] == repeated:  # UltraFeedback's `chosen` begins with the prompt
        after = after[len(before) :]
    # The prompt is not learned, whatever it contains: this is what the two columns say.
    context = [Message(m.role, m.content, m.reasoning, m.tool_calls, m.name, m.tool_call_id, False) for m in before]
    return _conversation([*context, *after], row, columns, system, unused)


def _turns(value: Any) -> Any:
    """A single turn as a list of one."""
    return [value] if isinstance(value, dict) else value


def _messages(row: dict[str, Any], columns: Mapping[str, str], system: str, unused: set[str]) -> Example:
    key = columns.get("messages", "messages")
    messages = read_turns(parsed(get(row, key), f"'{key}'"), key, unused)
    return _conversation(messages, row, columns, system, unused)


def _conversation(
    messages: list[Message], row: dict[str, Any], columns: Mapping[str, str], system: str, unused: set[str]
) -> Conversation:
    if not any(message.role == "assistant" for message in messages):
        raise RowError("no answer: no turn is from assistant")
    messages = with_masks(messages, masks.of_row(row, len(messages)))
    learned = [i for i, m in enumerate(messages) if m.learned and m.role == "assistant"]
    if not learned:
        raise RowError("not to be learned: every answer is marked as context; data.on_bad_row=skip leaves it out")
    if any(m.role != "assistant" for m in messages[learned[-1] + 1 :]):
        unused.add(_TRAILING)
    messages = messages[: learned[-1] + 1]
    start = _optional(row, columns, "system")
    if start and messages[0].role == "system":
        if messages[0].content != start:
            raise RowError(f"two system messages: '{columns['system']}' and the first turn")
    elif start or (system and messages[0].role != "system"):
        messages = [Message("system", start or system), *messages]
    return Conversation(tuple(messages), *_extras(row))


def _extras(row: dict[str, Any]) -> tuple[tuple[dict[str, Any], ...], tuple[dict[str, Any], ...]]:
    """A row's tools and documents."""
    documents = [] if is_empty(row.get("documents")) else objects(row["documents"], "'documents'")
    return read_tools(row), tuple(documents)


def _optional(row: dict[str, Any], columns: Mapping[str, str], part: str) -> str:
    """A text that may be missing or null; a system message may also come in parts."""
    key = columns.get(part)
    if key is None or is_empty(row.get(key)):
        return ""
    if part == "system" and isinstance(row[key], list | dict):
        value = row[key]
        return read_content(value.get("parts", value) if isinstance(value, dict) else value, " of the system").text
    return text(row, key)


def _document(row: dict[str, Any], columns: Mapping[str, str], system: str, unused: set[str]) -> Example:
    masks.of_row(row)
    return Text(text(row, columns.get("text", "text"), "empty text"))


def _tokens(row: dict[str, Any], columns: Mapping[str, str], system: str, unused: set[str]) -> Example:
    """Ids with TRL's masks or Hugging Face's labels; padding is dropped."""
    ids = _integers(row, "input_ids")
    learned = [True] * len(ids)
    for key in ("assistant_masks", "completion_mask"):
        if not is_empty(row.get(key)):
            learned = [bool(mask) and was for mask, was in zip(_of_length(row, key, len(ids)), learned, strict=True)]
    if not is_empty(row.get("labels")):
        labels = _of_length(row, "labels", len(ids))
        if any(label not in (-100, token) for label, token in zip(labels, ids, strict=True)):
            raise RowError("bad labels: each must be -100 or the token at its place")
        learned = [label != -100 and was for label, was in zip(labels, learned, strict=True)]
    if not is_empty(row.get("attention_mask")):
        seen = _of_length(row, "attention_mask", len(ids))
        ids = [token for token, mask in zip(ids, seen, strict=True) if mask]
        learned = [flag for flag, mask in zip(learned, seen, strict=True) if mask]
    if not any(learned[1:]):
        raise RowError("not to be learned: no token of this row is learned")
    return Tokens(tuple(ids), tuple(learned))


def _integers(row: dict[str, Any], key: str) -> list[int]:
    value = get(row, key)
    if not isinstance(value, list) or not all(type(item) in (int, bool) for item in value):
        raise RowError(f"not token ids: '{key}' must be a list of integers")
    return value


def _of_length(row: dict[str, Any], key: str, length: int) -> list[int]:
    value = _integers(row, key)
    if len(value) != length:
        raise RowError(f"mask does not fit: '{key}' has {len(value)} values for {length} tokens")
    return value


_CONVERTERS: dict[Format, Callable[[dict[str, Any], Mapping[str, str], str, set[str]], Example]] = {
    "alpaca": _alpaca,
    "messages": _messages,
    "sharegpt": _messages,
    "prompt_completion": _prompt_completion,
    "text": _document,
    "tokens": _tokens,
}
