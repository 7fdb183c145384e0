"""Request bodies of OpenAI's API -> checked parameters and the token ids that training put before an answer.

A parameter that strop does not know is rejected, and so is a conversation that the run's template cannot express:

chat     the model's chat template: an optional system message, then user and assistant in turn, the last from the user
alpaca   one user message: an instruction and, after a blank line, its input; there are no other turns
plain    one user message, used as the prompt without changes
"""

import json
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr, ValidationError

from strop.data.examples import Conversation, Message
from strop.data.prompts import as_question
from strop.data.template import Template
from strop.errors import DataError


class ApiError(Exception):
    """A request that is answered with OpenAI's error object.

    Attributes:
        status: HTTP status.
        param: The parameter at fault, with a dot before each key or index inside it.
        code: OpenAI's code, such as model_not_found.
    """

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def to_json(self) -> dict[str, Any]:
        """The body of the response."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class StreamOptions(_Body):
    """What a stream includes besides the text."""

    include_usage: StrictBool = False


class TextPart(_Body):
    """A part of a message's content; only text is supported."""

    type: Literal["text"]
    text: StrictStr


class ChatMessage(_Body):
    """One turn."""

    role: Literal["system", "user", "assistant"]
    content: StrictStr | list[TextPart]

    @property
    def text(self) -> str:
        """The content, with its parts joined without a separator."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class GenerationRequest(_Body):
    """What both kinds of request share. Parameters that strop cannot honour are accepted only with a neutral value."""

    model: StrictStr
    max_tokens: StrictInt | None = Field(None, ge=1)
    temperature: StrictFloat | StrictInt = Field(1.0, ge=0, le=2)
    top_p: StrictFloat | StrictInt = Field(1.0, gt=0, le=1)
    stop: StrictStr | list[StrictStr] = Field(default_factory=list, max_length=4096)
    seed: StrictInt | None = Field(None, ge=-(2**63), lt=2**63)
    stream: StrictBool = False
    stream_options: StreamOptions | None = None
    n: StrictInt = Field(1, ge=1, le=1)
    user: StrictStr | None = None
    presence_penalty: StrictFloat | StrictInt = Field(0, ge=0, le=0)
    frequency_penalty: StrictFloat | StrictInt = Field(0, ge=0, le=0)
    logit_bias: dict[str, float] = Field(default_factory=dict, max_length=0)

    @property
    def limit(self) -> int | None:
        """The most tokens to generate, or None if the request sets no limit."""
        return self.max_tokens

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end the answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class ChatRequest(GenerationRequest):
    """The body of /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: StrictInt | None = Field(None, ge=1)
    logprobs: Literal[False] = False

    @property
    def limit(self) -> int | None:
        """See `GenerationRequest`; max_completion_tokens is the newer name."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class CompletionRequest(GenerationRequest):
    """The body of /v1/completions: text to continue, or its token ids."""

    prompt: StrictStr | list[StrictInt] | list[StrictStr]
    best_of: StrictInt = Field(1, ge=1, le=1)
    echo: Literal[False] = False


Request = TypeVar("Request", bound=GenerationRequest)


def parse(body: bytes, kind: type[Request]) -> Request:
    """Read a request from its body; a parameter set to null counts as not given.

    Raises:
        ApiError: 400, naming the parameter.
    """
    try:
        values = json.loads(body.decode())
        json.dumps(values, ensure_ascii=False).encode()  # rejects half of a surrogate pair, which no text contains
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON in UTF-8: {type(error).__name__}") from None
    if not isinstance(values, dict):
        raise ApiError(400, "the body must be a JSON object")
    try:
        request = kind.model_validate({key: value for key, value in values.items() if value is not None})
    except ValidationError as error:
        raise _explained(error) from None
    if request.stream_options and not request.stream:
        raise ApiError(400, "stream_options needs stream: true", "stream_options")
    if len(request.stops) > 4 or not all(request.stops):
        raise ApiError(400, "stop takes up to 4 texts, none of them empty", "stop")
    return request


def chat_prompt(template: Template, messages: Sequence[ChatMessage]) -> list[int]:
    """The ids that the answer to a conversation starts from.

    Raises:
        ApiError: 400; the template cannot express the conversation.
    """
    if template.name != "chat":
        if [message.role for message in messages] != ["user"]:
            raise ApiError(
                400,
                f"this model was trained with the {template.name} template, which takes a single user message, without "
                "a system message or earlier turns. Send one user message, or use /v1/completions",
                "messages",
            )
        return template.encode_prompt(as_question(template.name, messages[0].text))
    _check_order(messages)
    turns = tuple(Message(message.role, message.text) for message in messages)
    ids = _render(template, turns)
    if turns[0].role == "system" and ids == _render(template, turns[1:]):
        raise ApiError(400, "the model's chat template ignores system messages; send none", "messages.0")
    return ids


def text_prompt(template: Template, prompt: str | list[int] | list[str], vocabulary: int) -> list[int]:
    """The ids of a text to continue, after BOS if the model uses one; token ids are used as given.

    Raises:
        ApiError: 400; there are several texts, or something that is not a token id.
    """
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
        prompt = prompt[0]
    if isinstance(prompt, str):
        ids = template.encode_text(prompt)
    elif all(isinstance(token, int) and 0 <= token < vocabulary for token in prompt):
        ids = [int(token) for token in prompt]
    else:
        raise ApiError(400, f"prompt: send one text, or token ids from 0 to {vocabulary - 1}", "prompt")
    if not ids:
        raise ApiError(400, "prompt: it has no tokens, and this model has no BOS token to start from", "prompt")
    return ids


def _explained(error: ValidationError) -> ApiError:
    first = error.errors(include_url=False)[0]
    # Inside a union, pydantic adds the names of the union's members to the location.
    param = ".".join(str(part) for part in first["loc"] if not _is_member(part))
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"{param}: strop serve does not support this parameter; leave it out", param)
    return ApiError(400, f"{param}: {first['msg']}", param)


def _is_member(part: int | str) -> bool:
    return isinstance(part, str) and (part in ("str", "int", "float", "TextPart") or "[" in part)


def _render(template: Template, turns: tuple[Message, ...]) -> list[int]:
    try:
        return template.encode_prompt(Conversation(turns))
    except DataError as error:
        raise ApiError(400, str(error).replace("this row", "these messages"), "messages") from None


def _check_order(messages: Sequence[ChatMessage]) -> None:
    """Require the order of turns that training rows have, ending with a question."""
    start = 1 if messages[0].role == "system" else 0
    for number, message in enumerate(messages[start:]):
        expected = "assistant" if number % 2 else "user"
        if message.role != expected:
            where = f"messages.{start + number}"
            raise ApiError(400, f"{where} is from {message.role}; it must be from {expected}", f"{where}.role")
    if messages[-1].role != "user":
        raise ApiError(400, "the last message must be from user: strop cannot continue an answer", "messages")
