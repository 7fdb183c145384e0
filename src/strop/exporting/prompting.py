"""What goes with the weights so that other programs prompt and stop as in training.

That is the tokenizer, the stop tokens, and the training template in two languages: Jinja for servers that render
messages themselves, Go for Ollama's Modelfile.

The Jinja template, rendered by transformers and tokenised without special tokens as vLLM does it, gives the ids that
training put before an answer, including BOS. For messages that the template cannot express it raises an error, which
vLLM returns with status 400.
"""

import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from strop.data.chat_template import ChatTemplate
from strop.data.examples import Conversation, Message
from strop.data.places import DOCUMENT, QUESTION, TOOL
from strop.data.prompts import ALPACA, ALPACA_WITH_INPUT, INPUT
from strop.data.template import Template
from strop.errors import DataError
from strop.exporting.staged import write_json

_TOKENIZER_KEYS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "pad_token",
    "add_bos_token",
    "clean_up_tokenization_spaces",
    "model_max_length",
)
"""The keys kept of tokenizer_config.json. The others are in tokenizer.json too, or mean different things to different
versions of transformers."""

_ONE_QUESTION = """{{%- if messages | length != 1 or messages[0].role != 'user' or tools or documents -%}}
{{{{- raise_exception('the {name} template takes one user message, no system message, earlier turns or tools') -}}}}
{{%- endif -%}}
"""
# vLLM puts the arguments of a call before its name. Not for GGUF files: llama.cpp has a Jinja of its own.
_CALLS_IN_ORDER = """{%- set strop = namespace(turns=[]) -%}
{%- for turn in messages -%}
{%- if turn.tool_calls -%}
{%- set strop.calls = [] -%}
{%- for call in turn.tool_calls -%}
{%- set function = {'name': call.function.name, 'arguments': call.function.arguments} -%}
{%- set call = dict({'type': 'function', 'function': function}, **({'id': call.id} if call.id else {})) -%}
{%- set strop.calls = strop.calls + [call] -%}
{%- endfor -%}
{%- set strop.turns = strop.turns + [dict(turn, tool_calls=strop.calls)] -%}
{%- else -%}
{%- set strop.turns = strop.turns + [turn] -%}
{%- endif -%}
{%- endfor -%}
{%- set messages = strop.turns -%}
"""
_SYSTEM, _QUESTION, _ANSWER = "strop-system-text", "strop-question-text", "strop-answer-text"
_NO_TOOLS = (
    "Chats with tools are not in it: Ollama writes tools in another form than the template. Use llama.cpp's server for",
    "them, which reads the chat template in the GGUF file.",
)
_CONTEXT = 8192  # Ollama reserves memory for the whole context


def write_tokenizer(template: Template, model_folder: Path, folder: Path) -> None:
    """Write the base's tokenizer, the training template as its chat template, and every stop token.

    The tokenizer class is the one that uses tokenizer.json as it is. For a LlamaTokenizer, transformers 5 would build
    another normaliser, and Phi-3's prompts would get other ids than in training (see `strop.data.tokenizer`). The
    base's sampling settings are dropped, because answers were scored without them.

    Args:
        template: The training template.
        model_folder: The base's folder.
        folder: Where to write the files.
    """
    for name in ("tokenizer.json", "tokenizer.model"):  # other programs' converters need the second
        if (model_folder / name).exists():
            shutil.copyfile(model_folder / name, folder / name)
    found = json.loads((model_folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    config = {key: found[key] for key in _TOKENIZER_KEYS if key in found}
    write_json(folder / "tokenizer_config.json", config | {"tokenizer_class": "PreTrainedTokenizerFast"})
    (folder / "chat_template.jinja").write_text(_calls(template) + as_jinja(template), encoding="utf-8")
    tokenizer = template.tokenizer
    ids = {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    known = {key: value for key, value in ids.items() if value is not None}
    write_json(folder / "generation_config.json", known | {"eos_token_id": sorted(template.stop_ids)})


def as_jinja(template: Template) -> str:
    """The source of a chat template that renders messages as `template` renders rows."""
    if template.chat:
        return _chat(template, template.chat)
    begin = _ONE_QUESTION.format(name=template.name) + _bos(template)
    if template.name == "plain":
        return begin + "{{- messages[0].content -}}"
    return (
        begin
        + f"{{%- set parts = messages[0].content.split({json.dumps(INPUT)}, 1) -%}}"
        + "{%- if parts | length > 1 and parts[1] -%}"
        + _filled(ALPACA_WITH_INPUT, "parts[0]", "parts[1]")
        + "{%- else -%}"
        + _filled(ALPACA, "parts[0]")
        + "{%- endif -%}"
    )


def _chat(template: Template, chat: ChatTemplate) -> str:
    """The chat template with training's system message, and with BOS where it leaves that to the tokenizer."""
    begin = f"{_system(template.system)}{{{{- '' }}}}"  # after an expression, Jinja keeps a newline
    writes = _begins_with_bos(template, chat)
    if len(writes) == 1:
        return f"{begin}{'' if True in writes else _bos(template)}{chat.source}"
    whole = f"{{%- set strop_text %}}{{{{- '' }}}}{chat.source.removesuffix(chr(10))}{{{{ '' }}}}{{% endset %}}"
    return f"{begin}{whole}{{{{- '' if strop_text.startswith(bos_token) else bos_token }}}}{{{{ strop_text }}}}"


def _calls(template: Template) -> str:
    """Jinja that puts the keys of calls in training's order, where their order is written."""
    return _CALLS_IN_ORDER if template.chat and template.chat.copies_calls else ""


def _begins_with_bos(template: Template, chat: ChatTemplate) -> set[bool]:
    """Whether the template writes BOS itself, for each kind of conversation that it takes."""
    if template.bos_id is None:
        return {True}
    found = set()
    for tools, documents in (((), ()), ((TOOL,), ()), ((), (DOCUMENT,))):
        with suppress(DataError):
            [text] = chat.render([Conversation((QUESTION,), tools, documents)], True)
            found.add(text.startswith(template.tokenizer.bos_token))
    return found


def _system(system: str | None) -> str:
    """Jinja that gives training's system message to messages without one."""
    if system is None:
        return ""
    message = f"{{'role': 'system', 'content': {json.dumps(system, ensure_ascii=False)}}}"
    return (
        "{%- if messages and messages[0].role not in ['system', 'developer'] %}"
        f"{{%- set messages = [{message}] + messages | list %}}{{%- endif %}}"
    )


def _bos(template: Template) -> str:
    return "" if template.bos_id is None else "{{- bos_token }}"


def _filled(text: str, *values: str) -> str:
    """A text with its {} placeholders replaced by Jinja expressions."""
    first, *others = text.split("{}")
    pieces = [json.dumps(first)]
    for value, other in zip(values, others, strict=True):
        pieces += [value, json.dumps(other)]
    return "".join(f"{{{{- {piece} -}}}}" for piece in pieces)


@dataclass(frozen=True, slots=True)
class ChatText:
    """The text that a chat template puts around the messages of a conversation.

    Attributes:
        opening: Before the first question of a conversation without a system message.
        system: Before a system message; None if the template has no place for one.
        after_system: Between the system message and the first question.
        answer: Between a question and its answer.
        question: Between an answer and the next question.
    """

    opening: str
    system: str | None
    after_system: str
    answer: str
    question: str

    def with_default(self, system: str) -> "ChatText | None":
        """The same with a system message for conversations without one; None if it has no place for one."""
        return None if self.system is None else replace(self, opening=f"{self.system}{system}{self.after_system}")

    def render(self, turns: Sequence[Message]) -> str:
        """A conversation up to the next answer."""
        text, rest = self.opening, list(turns)
        if rest[0].role == "system":
            text = f"{self.system}{rest.pop(0).content}{self.after_system}"
        for turn in rest:
            text += turn.content + (self.answer if turn.role == "user" else self.question)
        return text

    def go(self) -> str:
        """The same in Go's syntax, over Ollama's `.System` and `.Messages`; an answer at the end is continued."""
        start = _literal(self.opening)
        if self.system is not None:
            system = f"{_literal(self.system)}{{{{ .System }}}}{_literal(self.after_system)}"
            start = f"{{{{ if .System }}}}{system}{{{{ else }}}}{start}{{{{ end }}}}"
        return (
            f"{start}{{{{ range $i, $turn := .Messages }}}}"
            f'{{{{ if eq $turn.Role "user" }}}}{{{{ $turn.Content }}}}{_literal(self.answer)}'
            '{{ else if eq $turn.Role "assistant" }}{{ $turn.Content }}'
            f"{{{{ if gt (len (slice $.Messages $i)) 1 }}}}{_literal(self.question)}{{{{ end }}}}"
            "{{ end }}{{ end }}"
        )


def modelfile(file: str, template: Template, context: int) -> str:
    """The text of Ollama's Modelfile for a GGUF file.

    Args:
        file: Name of the GGUF file, in the same folder.
        template: The training template.
        context: The longest context, in tokens, at which the file computes what was trained.
    """
    source, note = go_template(template)
    added = template.tokenizer.backend_tokenizer.get_added_tokens_decoder()
    stops = [added[i].content for i in sorted(template.stop_ids) if i in added]
    return "\n".join(
        [
            *(f"# {line}" for line in note),
            f"FROM ./{file}",
            f'TEMPLATE """{source}"""',
            f"PARAMETER num_ctx {min(context, _CONTEXT)}",
            *(f"PARAMETER stop {json.dumps(text, ensure_ascii=False)}" for text in stops),
            "",
        ]
    )


def go_template(template: Template) -> tuple[str, tuple[str, ...]]:
    """The training template for Ollama, and notes for its user; only the prompt if Go cannot express the template."""
    if template.chat:
        bos = template.tokenizer.bos_token if template.bos_id is not None else ""
        chat = take_apart(template.chat, bos)
        if chat and template.system is not None:
            chat = chat.with_default(template.system)
        if chat:
            return chat.go(), _NO_TOOLS if template.chat.places.has("tools", True) else ()
        return "{{ .Prompt }}", (
            "The chat template cannot be expressed exactly in Ollama's. Send whole prompts with raw: true, or use",
            "llama.cpp's server, which reads the chat template in the GGUF file.",
        )
    if template.name == "alpaca":
        before, _, after = ALPACA.partition("{}")
        return f"{_literal(before)}{{{{ .Prompt }}}}{_literal(after)}", (
            "This is the template of rows without an input. For a row with one, send its whole prompt with raw: true,",
            "or use llama.cpp's server, where an input follows its instruction after the heading ### Input:",
        )
    return "{{ .Prompt }}", ()


def take_apart(chat: ChatTemplate, bos: str) -> ChatText | None:
    """Split a chat template into its pieces, if together they give the same text for each kind of conversation.

    Args:
        chat: The template.
        bos: Removed from the beginning, because Ollama adds it itself.

    Returns:
        The pieces, or None if they do not give the template's text.
    """
    user, answer, system = Message("user", _QUESTION), Message("assistant", _ANSWER), Message("system", _SYSTEM)
    cases = [(user,), (user, answer, user), (user, answer, user, answer, user)]
    try:
        one, three, five = chat.render(list(map(Conversation, cases)), True)
    except DataError:
        return None
    wanted: dict[str, tuple[Message, ...]] = {one: cases[0], three: cases[1], five: cases[2]}
    try:
        with_system = chat.render([Conversation((system, *case)) for case in cases], True)
    except DataError:
        with_system = [""]
    before, has_system, rest = with_system[0].partition(_SYSTEM)
    if has_system:
        wanted |= {text: (system, *case) for text, case in zip(with_system, cases, strict=True)}
    opening, _, after = one.partition(_QUESTION)
    between = three.partition(_ANSWER)[2].partition(_QUESTION)[0]
    found = ChatText(opening, before if has_system else None, rest.partition(_QUESTION)[0], after, between)
    if any(found.render(turns) != text for text, turns in wanted.items()):
        return None
    system_text = None if found.system is None else found.system.removeprefix(bos)
    return replace(found, opening=found.opening.removeprefix(bos), system=system_text)


def _literal(text: str) -> str:
    """Text that Go prints unchanged; Go understands JSON's escapes."""
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""
