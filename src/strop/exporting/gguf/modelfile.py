"""Ollama's Modelfile for a GGUF file, with the template of training in the syntax of Go's templates."""

import json
from dataclasses import dataclass, replace

from strop.data.chat_template import ChatTemplate, Turns
from strop.data.prompts import ALPACA
from strop.data.template import Template
from strop.errors import DataError

_SYSTEM, _QUESTION, _ANSWER = "strop-system-text", "strop-question-text", "strop-answer-text"
_CONTEXT = 8192  # Ollama reserves memory for all of it


@dataclass(frozen=True, slots=True)
class ChatText:
    """What a chat template puts around the texts of a conversation.

    Attributes:
        opening: Before a first question without a system message.
        system: Before a system message; None if there is no such.
        after_system: Between it and the first question.
        answer: Between a question and its answer.
        question: Between an answer and the next question.
    """

    opening: str
    system: str | None
    after_system: str
    answer: str
    question: str

    def render(self, turns: Turns) -> str:
        """A conversation up to the next answer."""
        text, rest = self.opening, list(turns)
        if rest[0]["role"] == "system":
            text = f"{self.system}{rest.pop(0)['content']}{self.after_system}"
        for turn in rest:
            text += turn["content"] + (self.answer if turn["role"] == "user" else self.question)
        return text

    def go(self) -> str:
        """The same in Go's syntax, over Ollama's `.System` and `.Messages`; an answer at the end is gone on with."""
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
    """The Modelfile's text.

    Args:
        file: The GGUF file's name, in the same folder.
        template: Of training.
        context: Tokens up to which the file can be used.
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
    """The training template for Ollama, and what its user has to know; the bare prompt where Go cannot say it."""
    if template.chat:
        bos = template.tokenizer.bos_token if template.bos_id is not None else ""
        if chat := take_apart(template.chat, bos):
            return chat.go(), ()
        return "{{ .Prompt }}", (
            "The chat template cannot be written as Ollama's exactly. Send whole prompts with raw: true, or use",
            "llama.cpp's server, which reads the chat template in the GGUF file.",
        )
    if template.name == "alpaca":
        before, _, after = ALPACA.partition("{}")
        return f"{_literal(before)}{{{{ .Prompt }}}}{_literal(after)}", (
            "The template is that of rows without an input; send the whole prompt of a row with one, with raw: true.",
        )
    return "{{ .Prompt }}", ()


def take_apart(chat: ChatTemplate, bos: str) -> ChatText | None:
    """A chat template in pieces, if put together they give the same text for each kind of conversation.

    Args:
        chat: The template.
        bos: Left out at the beginning, where Ollama puts it by itself.
    """
    user, answer = {"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}
    system = {"role": "system", "content": _SYSTEM}
    cases: list[Turns] = [[user], [user, answer, user], [user, answer, user, answer, user]]
    try:
        one, three, five = chat.render(cases, True)
    except DataError:
        return None
    wanted = {one: cases[0], three: cases[1], five: cases[2]}
    try:
        with_system = chat.render([[system, *case] for case in cases], True)
    except DataError:
        with_system = [""]
    before, has_system, rest = with_system[0].partition(_SYSTEM)
    if has_system:
        wanted |= {text: [system, *case] for text, case in zip(with_system, cases, strict=True)}
    opening, _, after = one.partition(_QUESTION)
    between = three.partition(_ANSWER)[2].partition(_QUESTION)[0]
    found = ChatText(opening, before if has_system else None, rest.partition(_QUESTION)[0], after, between)
    if any(found.render(turns) != text for text, turns in wanted.items()):
        return None
    system_text = None if found.system is None else found.system.removeprefix(bos)
    return replace(found, opening=found.opening.removeprefix(bos), system=system_text)


def _literal(text: str) -> str:
    """Text that Go prints as it is. JSON's escapes are Go's, too."""
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""
