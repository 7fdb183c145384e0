"""Chat templates that loop, grow or call themselves: on every row, or on a word of one. Each is ended and named."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Literal

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from rows import open_store
from strop.data import template_process
from strop.data.examples import Conversation, Message
from strop.data.store import SampleStore
from strop.data.template import Template, load_template
from strop.data.template_process import Chat, TemplateOverrun, render
from strop.errors import DataError, ModelError
from strop.serving.prompting import chat_prompt
from strop.serving.requests import ApiError

SMOLLM2 = Path(__file__).parents[2] / "fixtures" / "smollm2-tokenizer"
PLAIN = (SMOLLM2 / "chat_template.jinja").read_text()
WORD = "abracadabra"

LOOPS = "{% for a in range(99999) %}" * 3 + "{{ a }}" + "{% endfor %}" * 3
ENDED = "does not finish|too much memory|writes too much"
BIG = "(messages | length) * 500000000"  # no constant: those are worked out when the template is compiled
HARMS = {
    "a long range": ("{% for a in range(10 ** 10) %}{% endfor %}", "Range too big"),
    "nested loops": (LOOPS, ENDED),
    "a loop that writes nothing": ("{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3, "does not finish"),
    "a macro in itself": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "calls itself without end"),
    "two macros": (
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "does not finish",
    ),
    "a recursive loop": ("{% for a in [[1]] recursive %}{{ loop([a]) }}{% endfor %}", "calls itself without end"),
    "a text": (f"{{{{ 'x' * {BIG} }}}}", ENDED),
    "a longer text": (f"{{{{ 'x' * ({BIG} * 1000) }}}}", "too much memory"),
    "a list": (f"{{{{ ([0] * ({BIG} * 1000)) | length }}}}", "too much memory"),
    "a power": (f"{{{{ 3 ** ({BIG}) % 7 }}}}", ENDED),
    "a join": ("{% set n = messages | length * 49999 %}{{ range(n) | join('x' * n) }}", ENDED),
    "a format's width": (f"{{{{ ('%%%ds' % ({BIG})) % 'x' }}}}", ENDED),
    "str.format's width": (f"{{{{ '{{:{{}}}}'.format('x', {BIG}) }}}}", ENDED),
    "the filter format": (f"{{{{ '%*s' | format({BIG}, 'x') }}}}", ENDED),
    "ljust": (f"{{{{ 'x'.ljust({BIG}) }}}}", ENDED),
    "center": (f"{{{{ 'x' | center({BIG}) }}}}", ENDED),
    "indent": (f"{{{{ 'x\nx' | indent({BIG}) }}}}", ENDED),
    "replace": ("{% set n = messages | length * 49999 %}{{ ('x' * n) | replace('x', 'y' * n) }}", ENDED),
    "doubling": (
        "{% set ns = namespace(a='x') %}{% for i in range(99) %}{% set ns.a = ns.a ~ ns.a %}{% endfor %}{{ ns.a }}",
        ENDED,
    ),
    "a list in itself, twice": (
        "{% set ns = namespace(a=[1]) %}{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}{% endfor %}{{ ns.a }}",
        ENDED,
    ),
    "bytes of a number": (f"{{{{ (5).to_bytes({BIG} * 10) }}}}", f"{ENDED}|missing"),
    "lipsum": (f"{{{{ lipsum(n={BIG}) }}}}", ENDED),
    "blank lines": ("{% for a in range(99999) %}" * 2 + "\n" + "{% endfor %}" * 2, ENDED),
}
ON_ONE_WORD = "{{% if {!r} in messages[0].content %}}{{% set trap %}}{}{{% endset %}}{{{{ trap }}}}{{% endif %}}"


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STROP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(template_process, "_SECONDS", 0.2)


def harmful(harm: str) -> str:
    """SmolLM2's template, which does harm if a question has the word."""
    return ON_ONE_WORD.format(WORD, HARMS[harm][0]) + PLAIN


def with_template(tmp_path: Path, source: str) -> Template:
    folder = tmp_path / "model"
    folder.mkdir(parents=True)
    for file in SMOLLM2.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "chat_template.jinja").write_text(source)
    return load_template(folder, "chat", ["messages"])


def asking(text: str) -> Conversation:
    return Conversation((Message("user", text), Message("assistant", "Hello!")))


def said(template: str, text: str) -> str:
    """What a template makes of a question and an answer."""
    turns = [{"role": "user", "content": text}, {"role": "assistant", "content": "Hello!"}]
    return render(template, {}, [Chat(turns, {}, [(2, False)])])[0]


@pytest.mark.parametrize("harm", HARMS)
def test_harm_on_one_word_of_one_row(harm: str) -> None:
    source, reason = harmful(harm), HARMS[harm][1]
    before = said(source, "Hi")
    begin = time.process_time()
    with pytest.raises(DataError, match=reason):
        said(source, f"say {WORD}")
    assert time.process_time() - begin < 0.1, "it ran in this process"
    assert said(source, "Hi") == before, "ordinary rows go on as before"


def test_harm_in_a_question_to_the_model(tmp_path: Path) -> None:
    template = with_template(tmp_path, harmful("nested loops"))
    assert template.encode_prompt(asking("Hi"))
    with pytest.raises(TemplateOverrun, match="does not finish"):
        template.encode_prompt(asking(f"say {WORD}"))
    with pytest.raises(ApiError, match="computing on these messages") as caught:
        chat_prompt(template, Conversation((Message("user", f"say {WORD}"),)))
    assert caught.value.status == 400


@pytest.mark.parametrize("harm", ["nested loops", "a power", "a text"])
def test_harm_on_every_row_is_a_model_error(tmp_path: Path, harm: str) -> None:
    with pytest.raises(ModelError, match=f"cannot train with the model's chat template: .*({HARMS[harm][1]})"):
        with_template(tmp_path, HARMS[harm][0] + PLAIN)


def test_harm_while_it_compiles_is_ended_too(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not finish"):
        with_template(tmp_path, "{% if false %}{{ 3 ** (10 ** 9) }}{% endif %}" + PLAIN)


def test_harm_beside_tools_only_is_not_taken_for_a_template_without_tools(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not finish"):
        with_template(tmp_path, "{% if tools %}" + LOOPS + "{% endif %}" + PLAIN)


def test_large_rows_have_more_time_and_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_process, "_CHARACTERS", 10)
    monkeypatch.setattr(template_process, "_MORE_PER_CHARACTER", 2)
    chat = Chat([{"role": "user", "content": "x" * 1000}], {}, [(1, False)])
    assert render("{{ messages[0].content * 2 }}", {}, [chat]) == ["x" * 2000]
    with pytest.raises(TemplateOverrun, match="writes too much"):
        render("{{ messages[0].content * 3 }}", {}, [chat])


def read(tmp_path: Path, texts: list[str], on_bad_row: Literal["error", "skip"]) -> SampleStore:
    """Rows that ask these texts, tokenised with a template that loops if the word is among theirs."""
    tmp_path.mkdir(exist_ok=True)
    path = tmp_path / "rows.jsonl"
    turns = [[{"role": "user", "content": text}, {"role": "assistant", "content": "Hello!"}] for text in texts]
    path.write_text("".join(json.dumps({"messages": each}) + "\n" for each in turns))
    template = with_template(tmp_path, harmful("nested loops"))
    return open_store(path, template, on_bad_row=on_bad_row)


def test_the_row_is_named_and_can_be_skipped(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1 of 3 rows.*\n.*rows\.jsonl:2: the chat template does not finish: .*0\.2 s"):
        read(tmp_path / "error", ["one", f"two {WORD}", "three"], "error")
    store = read(tmp_path / "skip", ["one", f"two {WORD}", "three"], "skip")
    assert len(store) == 2
    assert store.skipped == {"the chat template does not finish": 1}


def test_many_such_rows_are_not_waited_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"5 rows ran over the limits.*(\n.*rows\.jsonl:\d+: .*does not finish.*){5}$"):
        read(tmp_path, ["one", *[f"{n} {WORD}" for n in range(1000)]], "skip")


def test_it_starts_anew_when_it_was_killed() -> None:
    chat = Chat([{"role": "user", "content": "x"}], {}, [(1, False)])
    assert render("{{ messages[0].content }}", {}, [chat]) == ["x"]
    process = template_process._process(os.getpid())._child
    assert process is not None
    process.send_signal(signal.SIGKILL)
    process.wait()
    with pytest.raises(TemplateOverrun, match=r"ends the process that renders it \(signal 9\)"):
        render("{{ messages[0].content }}", {}, [chat])
    assert render("{{ messages[0].content }}", {}, [chat]) == ["x"]


def test_a_fork_has_a_process_of_its_own() -> None:
    chats = [Chat([{"role": "user", "content": str(n)}], {}, [(1, False)]) for n in range(300)]
    expected = [str(n) for n in range(300)]
    assert render("{{ messages[0].content }}", {}, chats) == expected
    child = os.fork()
    if not child:
        os._exit(0 if all(render("{{ messages[0].content }}", {}, chats) == expected for _ in range(20)) else 1)
    assert all(render("{{ messages[0].content }}", {}, chats) == expected for _ in range(20))
    assert os.waitpid(child, 0)[1] == 0


ODD = {
    "generation": "{% for m in messages %}{% generation %} {{ m.content }}\n{% endgeneration %}\n{% endfor %}",
    "controls": "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
    "blanks": "  {% if true %}\n  a\n  {%- endif %}\n\nb\n",
    "json": "{{ messages | tojson }}{{ {'b': 'é<', 'a': 1.5} | tojson(indent=2, sort_keys=true) }}",
    "ascii": "{{ messages | tojson(ensure_ascii=true, separators=(',', ':')) }}",
    "namespace": "{% set ns = namespace(self=1, a=[]) %}{% set ns.b = ns.self + 1 %}{{ ns.b }}{{ ns.a }}",
    "namespace, private": "{% set ns = namespace(_a=1) %}{{ ns._a }}",
    "namespace, private later": "{% set ns = namespace() %}{% set ns._a = 1 %}{{ ns._a }}",
    "dict": "{{ dict(a=1).items() | list }}{{ dict.fromkeys('ab', 1) }}",
    "dict's class": "{{ dict.mro is defined }}",
    "changes": "{{ messages.append(1) }}{{ messages | length }}",
    "a private name": "{{ messages.__class__ }}",
    "a format": "{{ '{0.__class__}'.format(messages) }}",
    "undefined": "{{ nothing }}{{ nothing is defined }}{{ messages[0].nothing }}|{{ tools }}|{{ documents is none }}",
    "undefined's attribute": "{{ nothing.at_all }}",
    "tokens": "{{ eos_token }}{{ bos_token }}{{ add_generation_prompt }}",
    "raise": "{{ raise_exception('no <b>') }}",
    "reasoning": "{% for m in messages %}{{ m.items() | list }}{% endfor %}",
    "a range": "{% for a in range(100001) %}{% endfor %}",
    "a year": "{{ strftime_now('%Y') | length }}",
    "no text": "{{ messages[0].content + 1 }}",
    "a syntax error": "{% for %}",
}
CHATS = [
    [{"role": "user", "content": "Hi \ud800 é \x1b[31m 😀"}, {"role": "assistant", "content": "a", "thinking": "why"}],
    [{"role": "user", "content": ""}, {"role": "assistant", "content": "b", "reasoning": "so", "tool_calls": []}],
]


@pytest.mark.parametrize("name", ODD)
def test_it_is_the_environment_of_transformers(name: str) -> None:
    values = {"eos_token": "<eos>", "bos_token": "<bos>"}
    for chat in CHATS:
        for prompt in (False, True):
            try:
                [expected], _ = render_jinja_template(
                    [chat], chat_template=ODD[name], add_generation_prompt=prompt, **values
                )
            except Exception as error:
                expected = f"the chat template rejects this row: {error}"
            try:
                [text] = render(ODD[name], values, [Chat(chat, {}, [(2, prompt)])])
            except DataError as error:
                text = str(error)
            if "underscore" in expected:
                assert "underscore" in text
            else:
                assert text == expected
