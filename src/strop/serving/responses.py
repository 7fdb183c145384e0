"""OpenAI's JSON for answers: complete ones, and the chunks of a stream."""

import json
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from strop.serving.requests import ApiError, ChatRequest, CompletionRequest, GenerationRequest
from strop.serving.worker import Piece


@dataclass(frozen=True, slots=True)
class Answer:
    """Formats the answer to one request.

    Attributes:
        num_prompt_tokens: Reported in the usage.
    """

    request: GenerationRequest
    num_prompt_tokens: int
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, text: str, last: Piece) -> dict[str, Any]:
        """The complete answer as one object."""
        content = {"message": {"role": "assistant", "content": text}} if self._is_chat else {"text": text}
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": last.finish_reason}
        return self._object("", [choice]) | {"usage": self._usage(last)}

    def first_events(self) -> Iterator[bytes]:
        """The events before any text: in a chat, the role of the speaker."""
        if self._is_chat:
            yield self._event([self._chunk({"role": "assistant", "content": ""}, None)])

    def events(self, piece: Piece) -> Iterator[bytes]:
        """The events for a piece; those of the last piece end the stream."""
        if piece.text:
            yield self._event([self._chunk(self._delta(piece.text), None)])
        if piece.finish_reason:
            yield self._event([self._chunk(self._delta(""), piece.finish_reason)])
            if self._includes_usage:
                yield self._event([], self._usage(piece))
            yield b"data: [DONE]\n\n"

    def _delta(self, text: str) -> dict[str, Any]:
        if self._is_chat:
            return {"content": text} if text else {}
        return {"text": text}

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
        content = {"delta": delta} if self._is_chat else delta
        return {"index": 0, **content, "logprobs": None, "finish_reason": finish_reason}

    def _event(self, choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> bytes:
        contents = self._object(".chunk", choices) | ({"usage": usage} if self._includes_usage else {})
        return as_event(contents)

    def _object(self, suffix: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind, prefix = ("chat.completion" + suffix, "chatcmpl-") if self._is_chat else ("text_completion", "cmpl-")
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
    def _is_chat(self) -> bool:
        assert isinstance(self.request, ChatRequest | CompletionRequest)
        return isinstance(self.request, ChatRequest)

    @property
    def _includes_usage(self) -> bool:
        options = self.request.stream_options
        return options is not None and options.include_usage


def as_event(contents: dict[str, Any]) -> bytes:
    """Format a server-sent event."""
    return b"data: " + json.dumps(contents).encode() + b"\n\n"


def failed_event(error: ApiError) -> bytes:
    """The last event of a stream whose answer failed; OpenAI's client raises it."""
    return as_event(error.to_json())
