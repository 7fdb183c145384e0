"""The shapes of a row, checked field by field and turned into examples."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from strop.data.examples import Alpaca, Conversation, Example, Message, PromptCompletion, Text
from strop.data.prompts import as_turns
from strop.data.rows import masks
from strop.data.rows.calls import TOOL_KEYS, read_tools
from strop.data.rows.columns import PREFERENCE, REQUIRED, Format, Shape, better_answer, optional_columns, shape_of
from strop.data.rows.fields import RowError, get, is_empty, objects, parsed, text, unknown
from strop.data.rows.parts import read_content
from strop.data.rows.tokens import TOKEN_KEYS, read_tokens
from strop.data.rows.turns import read_turn, read_turns, with_masks

_MEDIA = frozenset(("images", "image", "videos", "video", "audios", "audio"))
_EXTRAS = frozenset((*TOOL_KEYS, "documents", "chat_template_kwargs"))
_MASKS = frozenset((*masks.ROW_KEYS, *masks.UNDESIRABLE))
_NAMES = {name.lower(): name for name in (*_MASKS, *_MEDIA, *PREFERENCE, *_EXTRAS)}
_KWARGS = "'chat_template_kwargs'"
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
        self._taken = frozenset(shape.columns.values())
        self.unseen = set(shape.columns.values()) if shape.chosen else set()
        """Columns that the recipe names and no row has had."""
        own: dict[Format, Iterable[str]] = {"tokens": TOKEN_KEYS, "text": ()}
        self._known = {*self._required.values(), *_MASKS, *_MEDIA, *own.get(shape.format, _EXTRAS)}

    def read(self, row: dict[str, Any]) -> tuple[Example, tuple[str, ...]]:
        """A row as an example, and the paths of its keys that are not used.

        Raises:
            RowError: A field is missing, null, not text or empty where it must not be; a key asks for what strop
                cannot do.
        """
        if names := _renames(tuple(row), self._taken):
            row = {names.get(key, key): value for key, value in row.items()}
        if self.unseen:
            self.unseen -= row.keys()
        self._refuse(row)
        unused: set[str] = set()
        columns = self._columns(row)
        example = self._convert(row, columns, self._system, unused)
        self._look_at_label(row, columns, unused)
        return example, tuple(sorted(unused | (unknown(row, self._known, "") - {*columns.values()})))

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
        if not self._shape.chosen and any(not is_empty(row.get(key)) for key in PREFERENCE):
            raise RowError(_preference(row, self._shape))
        if self._required and not any(name in row for name in self._required.values()):
            other = None if self._shape.chosen else shape_of(row)
            if other:
                raise RowError(
                    f"mixed shapes: this row has the keys of {other.format} "
                    f"({', '.join(map(repr, other.columns.values()))}), but the data is read as {self._shape.format}"
                )

    def _look_at_label(self, row: dict[str, Any], columns: Mapping[str, str], unused: set[str]) -> None:
        """Refuse an answer that is marked as undesirable; a document's label is its class.

        So is a number beside an instruction: KTO's rows have a prompt and a completion, or turns.
        """
        labels = {key: row[key] for key in masks.UNDESIRABLE if key in row and key not in columns.values()}
        is_class = self._shape.format == "alpaca" and type(labels.get("label")) in (int, float)
        if self._shape.format == "text" or is_class:
            unused |= unknown(labels, (), "")
        else:
            masks.refuse_undesirable(labels, unused)


@lru_cache(maxsize=1024)
def _renames(keys: tuple[str, ...], columns: frozenset[str]) -> dict[str, str]:
    """Which keys are others in another spelling, as `Images ` is images; columns and what a row has twice are not."""
    found: dict[str, str] = {}
    there = {*keys}
    for key in keys:
        name = _NAMES.get(key.strip().lower(), key)
        if name not in there and key not in columns:
            there.add(name)
            found[key] = name
    return found


def _preference(row: Mapping[str, Any], shape: Shape) -> str:
    """Why a row with two answers is refused, and what to write to learn one of them."""
    ways = [f"data.columns={better_answer(row)} learns the better one"]
    if turns := shape.columns.get("messages"):
        ways.append(f"data.columns={{messages: {turns}}} learns {turns} alone")
    there = " and ".join(repr(key) for key in PREFERENCE if not is_empty(row.get(key)))
    return f"preference rows: {there} are answers to choose from, and strop learns one; {', '.join(ways)}"


def _alpaca(row: dict[str, Any], columns: Mapping[str, str], system: str, unused: set[str]) -> Example:
    question, answer = columns.get("instruction", "instruction"), columns.get("output", "output")
    if isinstance(row.get(question), list | dict) or isinstance(row.get(answer), list | dict):
        return _joined_turns(row, question, answer, columns, system, unused)
    masks.of_row(row, unused)
    found = Alpaca(
        text(row, question, "empty instruction"),
        _optional(row, columns, "input"),
        text(row, answer, "empty answer"),
    )
    return _with_context(row, columns, system, found, unused)


def _prompt_completion(row: dict[str, Any], columns: Mapping[str, str], system: str, unused: set[str]) -> Example:
    question, answer = columns.get("prompt", "prompt"), columns.get("completion", "completion")
    if isinstance(row.get(question), list | dict) or isinstance(row.get(answer), list | dict):
        return _joined_turns(row, question, answer, columns, system, unused)
    if about := columns.get("input"):
        raise RowError(
            f"two columns for one part: '{question}' and '{about}' could both be what is asked; data.columns="
            f"{{instruction: {question}, input: {about}, output: {answer}}} asks both, "
            f"data.columns={{prompt: {question}, completion: {answer}}} only one"
        )
    masks.of_row(row, unused)
    found = PromptCompletion(text(row, question, "empty prompt"), text(row, answer, "empty answer"))
    return _with_context(row, columns, system, found, unused)


def _with_context(
    row: dict[str, Any], columns: Mapping[str, str], system: str, found: Alpaca | PromptCompletion, unused: set[str]
) -> Example:
    """A conversation, if the row has more than a question and its answer: a system message, earlier turns, tools."""
    before = _history(row.get(columns["history"]), columns["history"], unused) if "history" in columns else []
    extras = _extras(row, unused)
    turns = _with_system([*before, *as_turns(found)], row, columns, system, unused)
    return Conversation(tuple(turns), **extras) if len(turns) > 2 or extras else found


def _history(value: Any, key: str, unused: set[str]) -> list[Message]:
    """Earlier turns: LLaMA-Factory's pairs, whose answers it learns too, or turns with roles."""
    if is_empty(value):
        return []
    turns = parsed(value, f"'{key}'")
    if isinstance(turns, list) and turns and isinstance(turns[0], dict):
        return read_turns(turns, key, unused)
    if not isinstance(turns, list) or not all(
        isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(part, str) for part in pair)
        for pair in turns
    ):
        raise RowError(f"bad history: '{key}' must be a list of pairs of a question and its answer")
    return [message for q, a in turns for message in (Message("user", q), Message("assistant", a))]


def _joined_turns(
    row: dict[str, Any], question: str, answer: str, columns: Mapping[str, str], system: str, unused: set[str]
) -> Example:
    """A prompt of turns and its completion, as turns or text (TRL's conversational prompt and completion)."""
    for part in ("input", "history"):
        if part in columns:
            raise RowError(f"two columns for one part: '{columns[part]}' beside turns; write it into '{question}'")
    asked, said = _turns(get(row, question)), _turns(get(row, answer))
    before = [Message("user", asked)] if isinstance(asked, str) else read_turns(asked, question, unused)
    after = [Message("assistant", said)] if isinstance(said, str) else read_turns(said, answer, unused)
    if isinstance(asked, list) and any(masks.of_turn(turn, f" of '{question}'") for turn in asked):
        raise RowError(f"contradiction: a turn of '{question}' asks to be learned; write all turns into messages")
    repeated = [(m.role, m.content) for m in before]
    if [(m.role, m.content) for m in after[: len(before)]] == repeated:
        after = after[len(before) :]  # UltraFeedback's `chosen` begins with the prompt
    # The prompt is not learned, whatever it contains: this is what the two columns say.
    context = [replace(message, learned=False) for message in before]
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
    messages = with_masks(messages, masks.of_row(row, unused, len(messages)))
    learned = [i for i, m in enumerate(messages) if m.learned and m.role == "assistant"]
    if not learned:
        raise RowError("not to be learned: every answer is marked as context; data.on_bad_row=skip leaves it out")
    if any(m.role != "assistant" for m in messages[learned[-1] + 1 :]):
        unused.add(_TRAILING)
    messages = messages[: learned[-1] + 1]
    messages = _with_system(messages, row, columns, system, unused)
    return Conversation(tuple(messages), **_extras(row, unused))


def _with_system(
    messages: list[Message], row: dict[str, Any], columns: Mapping[str, str], system: str, unused: set[str]
) -> list[Message]:
    """Turns that begin with the row's system message, or with `system` if it has none."""
    start = _system(row, columns, unused)
    if messages[0].role != "system":
        return [Message("system", start or system), *messages] if start or system else messages
    if start and messages[0].content != start:
        raise RowError(f"two system messages: '{columns['system']}' and the first turn")
    return messages


def _extras(row: dict[str, Any], unused: set[str]) -> dict[str, Any]:
    """What a conversation has besides its turns, as far as the row has it."""
    if _EXTRAS.isdisjoint(row):
        return {}
    values = {} if is_empty(row.get("chat_template_kwargs")) else parsed(row["chat_template_kwargs"], _KWARGS)
    if not isinstance(values, dict):
        raise RowError(f"not an object: {_KWARGS}")
    found = {
        "tools": read_tools(row, unused),
        "documents": tuple(objects(row.get("documents"), "'documents'")),
        "template_kwargs": {name: value for name, value in values.items() if not is_empty(value)},
    }
    return {name: value for name, value in found.items() if value}


def _optional(row: dict[str, Any], columns: Mapping[str, str], part: str) -> str:
    """A text that may be missing or null."""
    key = columns.get(part)
    return "" if key is None or is_empty(row.get(key)) else text(row, key)


def _system(row: dict[str, Any], columns: Mapping[str, str], unused: set[str]) -> str:
    """The system message of a row: a text, or a turn or its parts as Bedrock and Gemini have them."""
    key = columns.get("system")
    value = None if key is None else row.get(key)
    if key is None or is_empty(value) or not isinstance(value, list | dict):
        return _optional(row, columns, "system")
    if isinstance(value, dict):
        [message] = read_turn({**value, "role": "system"}, f" of '{key}'", key, unused)
        return message.content
    found = read_content(value, f" of '{key}'", key, unused)
    if found.reasoning or found.calls or found.results:
        raise RowError(f"not text: '{key}' has more than text")
    return found.text


def _document(row: dict[str, Any], columns: Mapping[str, str], system: str, unused: set[str]) -> Example:
    masks.of_row(row, unused)
    return Text(text(row, columns.get("text", "text"), "empty text"))


def _tokens(row: dict[str, Any], columns: Mapping[str, str], system: str, unused: set[str]) -> Example:
    return read_tokens(row, unused)


_CONVERTERS: dict[Format, Callable[[dict[str, Any], Mapping[str, str], str, set[str]], Example]] = {
    "alpaca": _alpaca,
    "messages": _messages,
    "sharegpt": _messages,
    "prompt_completion": _prompt_completion,
    "text": _document,
    "tokens": _tokens,
}
