"""Request bodies of OpenAI's API: what is understood, and a message for everything else."""

import json
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr, ValidationError


class ApiError(Exception):
    """A request that gets no answer but OpenAI's error object.

    Attributes:
        status: Of HTTP.
        param: The parameter that is at fault, with a dot before each key or index inside it.
        code: OpenAI's, such as model_not_found.
    """

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def to_json(self) -> dict[str, Any]:
        """The body of the answer."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class StreamOptions(_Body):
    """What a stream shall hold beside the text."""

    include_usage: StrictBool = False


class TextPart(_Body):
    """A piece of a message's content; nothing but text can be read."""

    type: Literal["text"]
    text: StrictStr


class ChatMessage(_Body):
    """One turn."""

    role: Literal["system", "user", "assistant"]
    content: StrictStr | list[TextPart]

    @property
    def text(self) -> str:
        """The content, its parts joined as they are."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class GenerationRequest(_Body):
    """What both kinds of request have. A parameter that strop cannot honour is allowed only where it asks nothing."""

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
        """Tokens to generate at most, or None where the request leaves it open."""
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
    """The body of /v1/completions: text that is gone on with as it stands, or its token ids."""

    prompt: StrictStr | list[StrictInt] | list[StrictStr]
    best_of: StrictInt = Field(1, ge=1, le=1)
    echo: Literal[False] = False


Request = TypeVar("Request", bound=GenerationRequest)


def parse(body: bytes, kind: type[Request]) -> Request:
    """A request from its body; a parameter that is null is one that was not given.

    Raises:
        ApiError: 400, naming the parameter.
    """
    try:
        values = json.loads(body.decode())
        json.dumps(values, ensure_ascii=False).encode()  # half a surrogate pair is in no text
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON in UTF-8: {type(error).__name__}") from None
    if not isinstance(values, dict):
        raise ApiError(400, "the body must be a JSON object")
    try:
        request = kind.model_validate({key: value for key, value in values.items() if value is not None})
    except ValidationError as error:
        raise _explained(error) from None
    if request.stream_options and not request.stream:
        raise ApiError(400, "stream_options goes with stream: true", "stream_options")
    if len(request.stops) > 4 or not all(request.stops):
        raise ApiError(400, "stop takes up to 4 texts, none of them empty", "stop")
    return request


def _explained(error: ValidationError) -> ApiError:
    first = error.errors(include_url=False)[0]
    # Of a union, pydantic adds the names of its members to the place.
    param = ".".join(str(part) for part in first["loc"] if not _is_member(part))
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"{param}: strop serve does not support this parameter; leave it out", param)
    return ApiError(400, f"{param}: {first['msg']}", param)


def _is_member(part: int | str) -> bool:
    return isinstance(part, str) and (part in ("str", "int", "float", "TextPart") or "[" in part)
