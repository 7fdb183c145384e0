"""Messages -> the token ids that training put before an answer, or a refusal where the template has no place for them.

chat     the model's chat template: system or not, then user and assistant in turn, the last from the user
alpaca   one user message: an instruction and, after a blank line, its input; the template knows no other turns
plain    one user message, which is the prompt as it stands
"""

from collections.abc import Sequence

from strop.data.examples import Conversation, Message
from strop.data.prompts import as_question
from strop.data.template import Template
from strop.errors import DataError
from strop.serving.requests import ApiError, ChatMessage


def chat_prompt(template: Template, messages: Sequence[ChatMessage]) -> list[int]:
    """The ids that the answer to a conversation starts from.

    Raises:
        ApiError: 400; the template cannot express the conversation.
    """
    if template.name != "chat":
        if [message.role for message in messages] != ["user"]:
            raise ApiError(
                400,
                f"this model was trained with the {template.name} template, which holds one user message: no system "
                "message and no earlier turns. Send one user message, or use /v1/completions",
                "messages",
            )
        return template.encode_prompt(as_question(template.name, messages[0].text))
    _check_order(messages)
    turns = tuple(Message(message.role, message.text) for message in messages)
    ids = _render(template, turns)
    if turns[0].role == "system" and ids == _render(template, turns[1:]):
        raise ApiError(400, "the model's chat template leaves system messages out; send none", "messages.0")
    return ids


def text_prompt(template: Template, prompt: str | list[int] | list[str], vocabulary: int) -> list[int]:
    """The ids of a text that is gone on with as it stands, after BOS where the model wants one; or the ids given.

    Raises:
        ApiError: 400; there are several texts, or something that is no token id.
    """
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
        prompt = prompt[0]
    if isinstance(prompt, str):
        ids = template.encode_text(prompt)
    elif all(isinstance(token, int) and 0 <= token < vocabulary for token in prompt):
        ids = [int(token) for token in prompt]
    else:
        raise ApiError(400, f"prompt: one text, or token ids from 0 to {vocabulary - 1}", "prompt")
    if not ids:
        raise ApiError(400, "prompt: it holds no token, and this model has none to begin with", "prompt")
    return ids


def _render(template: Template, turns: tuple[Message, ...]) -> list[int]:
    try:
        return template.encode_prompt(Conversation(turns))
    except DataError as error:
        raise ApiError(400, str(error).replace("this row", "these messages"), "messages") from None


def _check_order(messages: Sequence[ChatMessage]) -> None:
    """The order that rows of data must have, ending with a question."""
    start = 1 if messages[0].role == "system" else 0
    for number, message in enumerate(messages[start:]):
        expected = "assistant" if number % 2 else "user"
        if message.role != expected:
            where = f"messages.{start + number}"
            raise ApiError(400, f"{where} is from {message.role}, it must be from {expected}", f"{where}.role")
    if messages[-1].role != "user":
        raise ApiError(400, "the last message must be from user: an answer cannot be gone on with", "messages")
