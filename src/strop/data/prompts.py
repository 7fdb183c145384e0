"""Which template renders which rows, and the templates that are not the model's own."""

from typing import Literal

from strop.data.chat_template import Segment
from strop.data.examples import Alpaca, Conversation, Example, Message, PromptCompletion, Text
from strop.data.row_shapes import Format
from strop.errors import DataError, RecipeError

TemplateName = Literal["chat", "alpaca", "plain"]

# Taori et al. 2023, Stanford Alpaca; "### Input" only where there is one.
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{}\n\n### Input:\n{}\n\n### Response:\n"
)
ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{}\n\n### Response:\n"
)
_FORMATS: dict[TemplateName, tuple[Format, ...]] = {
    "chat": ("alpaca", "messages", "sharegpt", "prompt_completion"),
    "alpaca": ("alpaca",),
    "plain": ("prompt_completion", "text"),
}


def resolve_template(name: str, format: Format, has_chat_template: bool) -> TemplateName:
    """The template that `auto` stands for, or the named one if it can render this format.

    Raises:
        RecipeError: The template cannot render rows of this format, or there is no chat template.
    """
    if name == "auto":
        if format in ("prompt_completion", "text"):
            return "plain"
        name = "alpaca" if format == "alpaca" and not has_chat_template else "chat"
    for known, formats in _FORMATS.items():
        if known != name:
            continue
        if format not in formats:
            raise RecipeError(f"data.template={name} renders {', '.join(formats)} rows, but these are {format}")
        if known == "chat" and not has_chat_template:
            raise RecipeError(
                f"data.template=chat: {format} rows need a chat template, but this tokenizer has none; "
                "use the instruct version of the model, or rows with prompt and completion"
            )
        return known
    raise RecipeError(f"data.template={name!r} is unknown; choose one of auto, {', '.join(_FORMATS)}")


def as_turns(example: Example) -> list[dict[str, str]]:
    """An example as the messages of a chat; an alpaca row's input follows its instruction after a blank line.

    Raises:
        DataError: A Text has no turns.
    """
    match example:
        case Conversation(messages):
            return [{"role": m.role, "content": m.content} for m in messages]
        case Alpaca():
            question = example.instruction + (f"\n\n{example.input}" if example.input else "")
            answer = example.output
        case PromptCompletion():
            question, answer = example.prompt, example.completion
        case Text():
            raise DataError("a text row has no turns; use data.template=plain")
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def as_segments(name: TemplateName, example: Example) -> list[Segment]:
    """An example under the alpaca or plain template: prompt, then answer; a Text is all answer. No eos yet.

    Raises:
        DataError: The template does not render examples of this type.
    """
    match name, example:
        case "alpaca", Alpaca(instruction, given, output):
            prompt = ALPACA_WITH_INPUT.format(instruction, given) if given else ALPACA.format(instruction)
            return [(prompt, False), (output, True)]
        case "plain", PromptCompletion(prompt, completion):
            return [(prompt, False), (completion, True)]
        case "plain", Text(text):
            return [(text, True)]
    raise DataError(f"the {name} template cannot render a row of type {type(example).__name__}")


def as_question(name: TemplateName, question: str) -> Example:
    """A single question as one of the template's rows; for alpaca, the input follows after a blank line."""
    if name == "alpaca":
        instruction, _, given = question.partition("\n\n")
        return Alpaca(instruction, given, "")
    if name == "plain":
        return PromptCompletion(question, "")
    return Conversation((Message("user", question),))


def question_of(example: Example) -> str:
    """What the user asked last, in the row's own words.

    Raises:
        DataError: A Text has no turns.
    """
    return [turn["content"] for turn in as_turns(example) if turn["role"] == "user"][-1]
