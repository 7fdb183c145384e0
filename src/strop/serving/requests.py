"""Request bodies of OpenAI's API -> checked parameters and the token ids that training put before an answer.

A parameter that strop does not know is rejected, and so is a conversation that the run's template cannot express:

chat     what the model's chat template can say, read as training rows are; the last message is from user or tool
alpaca   one user message: an instruction and, after the heading "### Input:", its input; there are no other turns
plain    one user message, used as the prompt without changes
"""

import json
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

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

from strop.data.examples import Conversation, Example, Message
from strop.data.prompts import as_question
from strop.data.rows.calls import read_tools
from strop.data.rows.fields import RowError, is_empty
from strop.data.rows.turns import read_turns
from strop.data.template import Template
from strop.errors import DataError

_REASONS = {
    "chat_template": "the prompt is in the template of training",
    "reasoning_effort": "it would change the prompt away from training's",
    "functions": "write tools",
    "function_call": "write tools and tool_choice",
    "response_format": "strop does not force the form of an answer",
    "parallel_tool_calls": "strop does not force how many tools an answer calls",
    "tool_choice": "strop cannot force a call: the model chooses (auto), or gets no tools (none)",
}
"""Why some parameters, or all but one of their values, are refused."""


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
    tools: list[dict[str, Any]] = Field(default_factory=list)
    tool_choice: Literal["auto", "none"] = "auto"
    parallel_tool_calls: Literal[True] = True
    documents: list[dict[str, Any]] = Field(default_factory=list)
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    max_completion_tokens: StrictInt | None = Field(None, ge=1)
    logprobs: Literal[False] = False

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


def read_question(template: Template, request: ChatRequest) -> Example:
    """What a request asks, as an example without an answer.

    Raises:
        ApiError: 400; the template has no place for it.
    """
    messages = request.messages
    if template.chat:
        return template.as_chat(_conversation(request))
    for name in ("tools", "documents", "chat_template_kwargs"):
        if getattr(request, name):
            raise ApiError(400, f"{name}: the {template.name} template, of training, has no place for them", name)
    turns = _turns(messages)
    if [message.role for message in messages] != ["user"]:
        raise ApiError(
            400,
            f"this model was trained with the {template.name} template, which takes a single user message, without "
            "a system message or earlier turns. Send one user message, or use /v1/completions",
            "messages",
        )
    return as_question(template.name, turns[0].content)


def chat_prompt(template: Template, question: Example) -> list[int]:
    """The ids that the answer to a question starts from.

    Raises:
        ApiError: 400; the template rejects the conversation or leaves something of it out.
    """
    try:
        return template.encode_prompt(question)
    except DataError as error:
        said = str(error).replace("this row", "these messages").replace("the row's", "the request's")
        raise ApiError(400, said, "messages") from None


def _conversation(request: ChatRequest) -> Conversation:
    turns = _turns(request.messages)
    if turns[-1].role not in ("user", "tool"):
        raise ApiError(
            400, "the last message must be from user or tool: strop answers, and cannot continue an answer", "messages"
        )
    unused: set[str] = set()
    try:
        tools = read_tools({"tools": request.tools}, unused)
    except RowError as error:
        raise ApiError(400, f"tools: {error}", "tools") from None
    _refuse_unused(unused, "tools")
    shown = tools if request.tool_choice == "auto" else ()
    kwargs = {name: value for name, value in request.chat_template_kwargs.items() if not is_empty(value)}
    return Conversation(tuple(turns), shown, tuple(request.documents), kwargs)


def _turns(messages: Sequence[ChatMessage]) -> list[Message]:
    """Messages as training reads those of a row."""
    unused: set[str] = set()
    try:
        turns = read_turns([message.model_dump(exclude_unset=True) for message in messages], "messages", unused)
    except RowError as error:
        raise ApiError(400, f"messages: {error}", "messages") from None
    _refuse_unused(unused, "messages")
    return turns


def _refuse_unused(unused: set[str], param: str) -> None:
    if unused:
        names = ", ".join(sorted(unused))
        raise ApiError(400, f"{names}: training has no place for it in the prompt; leave it out", param)


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
    reason = _REASONS.get(param)
    if first["type"] == "extra_forbidden" or reason:
        said = reason or "strop serve does not support this parameter"
        return ApiError(400, f"{param}: {said}; leave it out", param)
    return ApiError(400, f"{param}: {first['msg']}", param)


def _is_member(part: int | str) -> bool:
    return isinstance(part, str) and (part in ("str", "int", "float", "TextPart") or "[" in part)
