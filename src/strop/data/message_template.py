"""The training template as a Jinja chat template, for servers that render conversations themselves.

Rendered by transformers and tokenised without special tokens, as vLLM does it, it gives the ids that training put
before an answer, BOS included. What the template cannot express raises, which vLLM answers with status 400.
"""

import json

from strop.data.chat_template import DATE, ChatTemplate
from strop.data.prompts import ALPACA, ALPACA_WITH_INPUT
from strop.data.template import Template
from strop.data.tokenizer import chat_template_of

_ONE_QUESTION = """{{%- if messages | length != 1 or messages[0].role != 'user' -%}}
{{{{- raise_exception('the {name} template holds one user message, no system message and no earlier turns') -}}}}
{{%- endif -%}}
"""


def as_jinja(template: Template) -> str:
    """The source of a chat template that renders messages as `template` renders rows."""
    if template.name == "chat":
        return _chat(template)
    begin = _ONE_QUESTION.format(name=template.name) + _bos(template)
    if template.name == "plain":
        return begin + "{{- messages[0].content -}}"
    return (
        begin
        + "{%- set parts = messages[0].content.split('\\n\\n', 1) -%}"
        + "{%- if parts | length > 1 and parts[1] -%}"
        + _filled(ALPACA_WITH_INPUT, "parts[0]", "parts[1]")
        + "{%- else -%}"
        + _filled(ALPACA, "parts[0]")
        + "{%- endif -%}"
    )


def _chat(template: Template) -> str:
    """The model's own, with training's date, and with BOS where the template leaves that to the tokenizer."""
    source = chat_template_of(template.tokenizer)
    assert source is not None
    [text] = ChatTemplate(template.tokenizer, source).render([[{"role": "user", "content": "x"}]], True)
    ids = template.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    bos = "" if template.bos_id in ids[:1] else _bos(template)
    date = "".join(f"{{%- set {name} = {json.dumps(value)} %}}" for name, value in DATE.items())
    return f"{date}{{{{- '' }}}}{bos}{source}"  # an expression, after which a newline is kept


def _bos(template: Template) -> str:
    return "" if template.bos_id is None else "{{- bos_token }}"


def _filled(text: str, *values: str) -> str:
    """A text with expressions in place of its {}s."""
    first, *others = text.split("{}")
    pieces = [json.dumps(first)]
    for value, other in zip(values, others, strict=True):
        pieces += [value, json.dumps(other)]
    return "".join(f"{{{{- {piece} -}}}}" for piece in pieces)
