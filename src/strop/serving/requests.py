"""Request bodies of OpenAI's API -> checked parameters.

A parameter that strop does not support is rejected (`serving.parameters`); what a conversation may be is decided in
`serving.prompting`.
"""

import json
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
    field_validator,
    model_validator,
)

from strop.data.rows.fields import is_empty
from strop.serving.parameters import UNKNOWN, UNSUPPORTED, Endpoint, asks_for_nothing

_REASONS = {
    "parallel_tool_calls": "how many tools an answer calls cannot be forced; leave it out or send true",
    "tool_choice": 'a call cannot be forced: the model chooses ("auto"), or gets no tools ("none")',
}
"""What is said about parameters of which only some values are supported."""

_CONTAINERS = 100_000
"""Most lists and objects in a body, counted by their brackets: half a million take Python a second, in which it answers
nobody else."""

_DEPTH = 64
"""Levels of lists and objects in a body: tools have a dozen."""


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
    include_obfuscation: Literal[False] = False


class TextPart(_Body):
    """A part of a message's content; only text is supported."""

    type: Literal["text"]
    text: StrictStr


class ChatMessage(_Body):
    """One turn, in OpenAI's spelling; what else clients send back with an answer is accepted where it is empty."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: StrictStr | list[TextPart] | None = None
    reasoning_content: StrictStr | None = None
    reasoning: StrictStr | None = None
    tool_calls: list[dict[str, Any]] = Field(default_factory=list)
    tool_call_id: StrictStr | None = None
    name: StrictStr | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {key: item for key, item in value.items() if key in ("role", "content") or not is_empty(item)}


class GenerationRequest(_Body):
    """What both kinds of request share; for all that is not here, see `serving.parameters`.

    The last three name the caller to the server; no answer depends on them.
    """

    endpoint: ClassVar[Endpoint]

    model: StrictStr
    max_tokens: StrictInt | None = Field(None, ge=1)
    temperature: StrictFloat | StrictInt = Field(1.0, ge=0, le=2)
    top_p: StrictFloat | StrictInt = Field(1.0, gt=0, le=1)
    stop: StrictStr | list[StrictStr] = Field(default_factory=list, max_length=4096)
    seed: StrictInt | None = Field(None, ge=-(2**63), lt=2**63)
    stream: StrictBool = False
    stream_options: StreamOptions | None = None
    user: StrictStr | None = None
    safety_identifier: StrictStr | None = None
    prompt_cache_key: StrictStr | None = None

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

    endpoint = "chat"
    messages: list[ChatMessage] = Field(min_length=1)
    tools: list[dict[str, Any]] = Field(default_factory=list)
    tool_choice: Literal["auto", "none"] = "auto"
    parallel_tool_calls: Literal[True] = True
    documents: list[dict[str, Any]] = Field(default_factory=list)
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    max_completion_tokens: StrictInt | None = Field(None, ge=1)

    @field_validator("tools", "documents")
    @classmethod
    def _all_there(cls, value: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if not all(value):
            raise ValueError("an entry is empty")
        return value

    @property
    def limit(self) -> int | None:
        """See `GenerationRequest`; max_completion_tokens is the newer name."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class CompletionRequest(GenerationRequest):
    """The body of /v1/completions: text to continue, or its token ids."""

    endpoint = "completions"
    prompt: StrictStr | list[StrictInt] | list[StrictStr]


Request = TypeVar("Request", bound=GenerationRequest)


def parse(body: bytes, kind: type[Request]) -> Request:
    """Read a request from its body; a parameter set to null counts as not given.

    Raises:
        ApiError: 400, naming the parameter. 413; the body has too many lists and objects.
    """
    if body.count(b"[") + body.count(b"{") > _CONTAINERS:
        raise ApiError(413, f"the body has more than {_CONTAINERS:,} brackets")
    try:
        values = json.loads(body.decode())
        json.dumps(values, ensure_ascii=False).encode()  # rejects half of a surrogate pair, which no text contains
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON in UTF-8: {type(error).__name__}") from None
    if not isinstance(values, dict):
        raise ApiError(400, "the body must be a JSON object")
    if _is_deep(values):
        raise ApiError(400, f"the body is nested more than {_DEPTH} levels deep")
    try:
        request = kind.model_validate(_supported(values, kind))
    except ValidationError as error:
        raise _explained(error) from None
    if request.stream_options and not request.stream:
        raise ApiError(400, "stream_options needs stream: true", "stream_options")
    if len(request.stops) > 4 or not all(request.stops):
        raise ApiError(400, "stop takes up to 4 texts, none of them empty", "stop")
    return request


def _is_deep(value: Any) -> bool:
    """Whether a value has containers in more than `_DEPTH` levels; templates and checks descend by recursion."""
    level = [value]
    for _ in range(_DEPTH):
        level = [
            item
            for held in level
            if isinstance(held, dict | list)
            for item in (held.values() if isinstance(held, dict) else held)
        ]
    return any(isinstance(item, dict | list) for item in level)


def _supported(values: dict[str, Any], kind: type[GenerationRequest]) -> dict[str, Any]:
    """The parameters of a body that mean something here."""
    supported = {}
    for name, value in values.items():
        parameter = UNSUPPORTED[kind.endpoint].get(name, UNKNOWN)
        if name in kind.model_fields:
            if value is not None:
                supported[name] = value
        elif not asks_for_nothing(value, parameter):
            raise ApiError(400, parameter.refusal(name[:100]), name[:100], "unsupported_parameter")
    return supported


def _explained(error: ValidationError) -> ApiError:
    first = error.errors(include_url=False)[0]
    # Inside a union, pydantic adds the names of the union's members to the location.
    param = ".".join(str(part) for part in first["loc"] if not _is_member(part))
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"{param} means nothing to strop serve; leave it out", param)
    return ApiError(400, f"{param}: {_REASONS.get(param, first['msg'])}", param)


def _is_member(part: int | str) -> bool:
    return isinstance(part, str) and (part in ("str", "int", "float", "TextPart") or "[" in part)
