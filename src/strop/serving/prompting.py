"""A checked request -> the token ids that training put before an answer, and how long the answer may be.

A conversation that the run's template cannot express is rejected:

chat     what the model's chat template can say, read as training rows are; the last message is from user or tool
alpaca   one user message: an instruction and, after the heading "### Input:", its input; there are no other turns
plain    one user message, used as the prompt without changes
"""

from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel

from strop.data.examples import Conversation, Example, Message
from strop.data.prompts import as_question
from strop.data.rows.calls import read_tools
from strop.data.rows.fields import RowError, is_empty
from strop.data.rows.turns import read_turns
from strop.data.template import Template
from strop.errors import DataError
from strop.serving.requests import ApiError, ChatMessage, ChatRequest, GenerationRequest

_GIVEN = ("messages", "prompt", "tools", "documents", "chat_template_kwargs")
"""Parameters whose texts are in the prompt."""

_CHARACTERS = 4
"""Prompts of up to this many characters for each token of the context are tokenised without more ado."""

_CHUNK, _CUT = 1 << 14, 2
"""Longer ones are first counted this many characters at a time, up to the context; a cut may add tokens that the whole
text has not."""


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


def check_length(template: Template, request: GenerationRequest, max_positions: int) -> None:
    """Refuse a prompt that is far too long before it is rendered and tokenised, which would take seconds.

    Its texts are tokenised up to the length of the context and no further.

    Raises:
        ApiError: 400; the prompt has more tokens than the model's context.
    """
    given = [
        getattr(request, name, ()) for name in ("messages", "prompt", "tools", "documents", "chat_template_kwargs")
    ]
    text = "".join(text for value in given for text in _texts(value))
    count = max(len(value) for value in given if not isinstance(value, str))  # each message, each id is a token
    starts = range(0, len(text), _CHUNK) if len(text) > _CHARACTERS * max_positions else ()
    for start in starts:
        if count > max_positions:
            break
        count += max(0, len(template.encode_text(text[start : start + _CHUNK])) - _CUT)
    if count > max_positions:
        raise too_long(request, f"more than {max_positions:,}", max_positions)


def _texts(value: Any) -> Iterator[str]:
    """All texts inside a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, BaseModel):
        yield from _texts(dict(value))
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def room(request: GenerationRequest, num_prompt: int, max_positions: int, max_new_tokens: int) -> int:
    """The most tokens that the answer to a prompt of so many tokens may have.

    Raises:
        ApiError: 400; prompt and answer are longer than the model's context.
    """
    left = max_positions - num_prompt
    if left < (request.limit or 1):
        raise too_long(request, f"{num_prompt:,}", max_positions)
    return min(left, max_new_tokens) if request.limit is None else request.limit


def too_long(request: GenerationRequest, num_prompt: str, max_positions: int) -> ApiError:
    """The refusal of a request that does not fit the model's context."""
    prompt = "messages" if isinstance(request, ChatRequest) else "prompt"
    limit = "max_tokens" if request.max_tokens else "max_completion_tokens"
    return ApiError(
        400,
        f"the prompt has {num_prompt} tokens and the answer may take {request.limit or 1:,}; the model's context is "
        f"{max_positions:,} tokens for both",
        limit if request.limit and not num_prompt.startswith("more") else prompt,
        "context_length_exceeded",
    )
