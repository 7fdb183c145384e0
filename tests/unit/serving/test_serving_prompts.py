"""The served prompt is the training prompt, token for token, or the request is refused."""

import functools
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from strop.data import template as data_template
from strop.data.examples import Alpaca, Conversation, Example, Message, PromptCompletion
from strop.data.prompts import as_text
from strop.data.rows.columns import Format
from strop.data.template import Template
from strop.serving.requests import ApiError, ChatMessage, chat_prompt, text_prompt

FIXTURES = Path(__file__).parents[2] / "fixtures"
PHI3, SMOLLM2 = FIXTURES / "phi3-tokenizer", FIXTURES / "smollm2-tokenizer"


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STROP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


FORMATS: dict[str, tuple[Format, ...]] = {"chat": ("messages",), "alpaca": ("alpaca",), "plain": ("text",)}
load_template = functools.cache(data_template.load_template)


def said(*turns: tuple[str, str]) -> list[ChatMessage]:
    return [ChatMessage.model_validate({"role": role, "content": content}) for role, content in turns]


def learned_prompt(template: Template, example: Example) -> list[int]:
    """What training puts before the last answer."""
    [[encoded]] = template.encode([example])
    last = int(encoded.learned.nonzero()[0][-1])
    while encoded.learned[last - 1]:
        last -= 1
    return [int(token) for token in encoded.input_ids[:last]]


@pytest.mark.parametrize("folder", [PHI3, SMOLLM2], ids=lambda folder: folder.name)
def test_a_conversation_is_served_as_it_is_trained(folder: Path) -> None:
    template = load_template(folder, "chat", ("messages",))
    asked = [("user", "Hi"), ("assistant", "Hello!"), ("user", "2+2?")]
    row = Conversation(tuple(Message(role, text) for role, text in [*asked, ("assistant", "4")]))  # type: ignore[arg-type]
    assert chat_prompt(template, said(*asked)) == learned_prompt(template, row)
    assert chat_prompt(template, said(asked[0])) != learned_prompt(template, row)


def test_a_system_message_is_served_as_it_is_trained() -> None:
    template = load_template(SMOLLM2, "chat", ("messages",))
    asked = [("system", "Be brief."), ("user", "2+2?")]
    row = Conversation(tuple(Message(role, text) for role, text in [*asked, ("assistant", "4")]))  # type: ignore[arg-type]
    assert chat_prompt(template, said(*asked)) == learned_prompt(template, row)


@pytest.mark.parametrize(
    ("name", "row"),
    [("alpaca", Alpaca("Add.", "2 and 2", "4")), ("alpaca", Alpaca("Add.", "", "4")), ("chat", Alpaca("A", "b", "4"))],
)
def test_an_alpaca_row_is_served_as_it_is_trained(name: str, row: Alpaca) -> None:
    template = load_template(PHI3, name, ("alpaca",))
    assert chat_prompt(template, said(("user", as_text(template.name, row)))) == learned_prompt(template, row)


def test_a_plain_prompt_is_served_as_it_is_trained() -> None:
    template = load_template(PHI3, "plain", ("prompt_completion",))
    expected = learned_prompt(template, PromptCompletion("Q: 2+2? A:", " 4"))
    assert chat_prompt(template, said(("user", "Q: 2+2? A:"))) == expected
    assert text_prompt(template, "Q: 2+2? A:", 32064) == expected
    assert text_prompt(template, ["Q: 2+2? A:"], 32064) == expected
    assert text_prompt(template, expected, 32064) == expected


@pytest.mark.parametrize(
    ("name", "turns", "param"),
    [
        ("chat", [("assistant", "Hi")], "messages.0.role"),
        ("chat", [("user", "a"), ("user", "b")], "messages.1.role"),
        ("chat", [("user", "a"), ("system", "b")], "messages.1.role"),
        ("chat", [("user", "a"), ("assistant", "b")], "messages"),
        ("chat", [("system", "a")], "messages"),
        ("alpaca", [("system", "a"), ("user", "b")], "messages"),
        ("alpaca", [("user", "a"), ("assistant", "b"), ("user", "c")], "messages"),
        ("plain", [("assistant", "a")], "messages"),
    ],
)
def test_what_the_template_has_no_place_for_is_refused(name: str, turns: list[tuple[str, str]], param: str) -> None:
    template = load_template(SMOLLM2, name, FORMATS[name])
    with pytest.raises(ApiError) as refused:
        chat_prompt(template, said(*turns))
    assert (refused.value.status, refused.value.param) == (400, param)


def test_a_template_that_drops_the_system_message_is_not_silent_about_it(tmp_path: Path) -> None:
    shutil.copytree(SMOLLM2, tmp_path / "t")
    (tmp_path / "t" / "chat_template.jinja").write_text(
        "{% for m in messages %}{% if m.role != 'system' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    template = load_template(tmp_path / "t", "chat", ("messages",))
    assert chat_prompt(template, said(("user", "b")))
    with pytest.raises(ApiError, match="ignores system messages"):
        chat_prompt(template, said(("system", "a"), ("user", "b")))


@pytest.mark.parametrize("prompt", [[], "", [32064], [-1], ["a", "b"], [True]])
def test_a_completion_prompt_is_one_text_or_ids(prompt: list[int] | str) -> None:
    template = load_template(SMOLLM2, "plain", ("text",))
    with pytest.raises(ApiError) as refused:
        text_prompt(template, prompt, 1 if prompt == [True] else 32064)
    assert refused.value.param == "prompt"
