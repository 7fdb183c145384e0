"""OpenAI's JSON for answers: complete ones, and the chunks of a stream."""

import json
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from strop.data.examples import ToolCall
from strop.serving.answers import AnswerReader, Said
from strop.serving.requests import ApiError, GenerationRequest
from strop.serving.worker import Piece


@dataclass(slots=True)
class Answer:
    """Formats the answer to one request.

    Attributes:
        num_prompt_tokens: Reported in the usage.
        reader: Tells the parts of a chat's answer apart; None if the request is not a chat.
    """

    request: GenerationRequest
    num_prompt_tokens: int
    reader: AnswerReader | None
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))
    _text: str = ""
    _sent: Said = field(default_factory=lambda: Said(""))

    def whole(self, text: str, last: Piece) -> dict[str, Any]:
        """The complete answer as one object."""
        said = self._read(text)
        content = {"message": _message(said)} if self.reader else {"text": said.content}
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": _finish_reason(said, last)}
        return self._object("", [choice]) | {"usage": self._usage(last)}

    def first_events(self) -> Iterator[bytes]:
        """The events before any text: in a chat, the role of the speaker."""
        if self.reader:
            yield self._event([self._chunk({"role": "assistant", "content": ""}, None)])

    def events(self, piece: Piece) -> Iterator[bytes]:
        """The events for a piece; those of the last piece end the stream."""
        self._text += piece.text
        said = self._read(self._text) if piece.finish_reason or not self.reader else self.reader.so_far(self._text)
        for delta in self._deltas(said):
            yield self._event([self._chunk(delta, None)])
        self._sent = said
        if piece.finish_reason:
            yield self._event([self._chunk({} if self.reader else {"text": ""}, _finish_reason(said, piece))])
            if self._includes_usage:
                yield self._event([], self._usage(piece))
            yield b"data: [DONE]\n\n"

    def _read(self, text: str) -> Said:
        return self.reader.read(text) if self.reader else Said(text)

    def _deltas(self, said: Said) -> Iterator[dict[str, Any]]:
        """What has come since the last piece."""
        names = {"reasoning": "reasoning_content", "content": "content" if self.reader else "text"}
        for part, name in names.items():
            if new := getattr(said, part)[len(getattr(self._sent, part)) :]:
                yield {name: new}
        if said.calls:
            yield {"tool_calls": [{"index": i} | call for i, call in enumerate(_calls(said.calls))]}

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
        content = {"delta": delta} if self.reader else delta
        return {"index": 0, **content, "logprobs": None, "finish_reason": finish_reason}

    def _event(self, choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> bytes:
        contents = self._object(".chunk", choices) | ({"usage": usage} if self._includes_usage else {})
        return as_event(contents)

    def _object(self, suffix: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind, prefix = ("chat.completion" + suffix, "chatcmpl-") if self.reader else ("text_completion", "cmpl-")
        return {
            "id": prefix + self.id,
            "object": kind,
            "created": self.created,
            "model": self.request.model,
            "choices": choices,
        }

    def _usage(self, last: Piece) -> dict[str, int]:
        return {
            "prompt_tokens": self.num_prompt_tokens,
            "completion_tokens": last.num_tokens,
            "total_tokens": self.num_prompt_tokens + last.num_tokens,
        }

    @property
    def _includes_usage(self) -> bool:
        options = self.request.stream_options
        return options is not None and options.include_usage


def _message(said: Said) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": said.content}
    if said.reasoning:
        message["reasoning_content"] = said.reasoning
    if said.calls:
        message |= {"content": said.content or None, "tool_calls": _calls(said.calls)}
    return message


def _calls(calls: Sequence[ToolCall]) -> list[dict[str, Any]]:
    return [
        {
            "id": call.id,
            "type": "function",
            "function": {"name": call.name, "arguments": json.dumps(dict(call.arguments), ensure_ascii=False)},
        }
        for call in calls
    ]


def _finish_reason(said: Said, last: Piece) -> str | None:
    return "tool_calls" if said.calls and last.finish_reason == "stop" else last.finish_reason


def as_event(contents: dict[str, Any]) -> bytes:
    """Format a server-sent event."""
    return b"data: " + json.dumps(contents).encode() + b"\n\n"


def failed_event(error: ApiError) -> bytes:
    """The last event of a stream whose answer failed; OpenAI's client raises it."""
    return as_event(error.to_json())
