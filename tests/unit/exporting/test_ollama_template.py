"""Ollama's template gives the text of training: executed by Go's own text/template."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from real_templates import tokenizer_folder
from strop.data.chat_template import ChatTemplate
from strop.data.examples import Conversation, Message
from strop.data.prompts import ALPACA
from strop.data.template import Template, load_template
from strop.data.tokenizer import load_tokenizer
from strop.exporting.prompting import go_template, modelfile, take_apart
from waiting import PATIENCE

FIXTURES = Path(__file__).parents[2] / "fixtures"
PHI3, SMOLLM2 = FIXTURES / "phi3-tokenizer", FIXTURES / "smollm2-tokenizer"

BRACES = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ '\"{{' + m.content + '}}\\\\\\n\"\"\"' }}"
    "{% else %}{{ ' \\t<' + m.role + \"> '\" + m.content + '\\'\\u00e9 \\n\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' \\t<assistant> \\'' }}{% endif %}"
)
NUMBERED = (
    "{% for m in messages %}{{ loop.index ~ m.content + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ messages | length + 1 }}{% endif %}"
)
QUESTION, ANSWER = {"role": "user", "content": ' Who {{ is }} "it"?\n'}, {"role": "assistant", "content": "`a` \\ b "}
SYSTEM = {"role": "system", "content": "Be {brief}.\n"}
CHATS = [
    [QUESTION],
    [QUESTION, ANSWER, QUESTION],
    [QUESTION, ANSWER, {"role": "user", "content": ""}, ANSWER, QUESTION],
]


@pytest.fixture(scope="module")
def go(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("go") is None:
        reason = "Go is not installed (Debian: apt-get install golang-go)"
        if os.environ.get("STROP_GO_TESTS") == "required":
            pytest.fail(reason)
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("go")
    source = Path(__file__).with_name("ollama_template.go")
    environment = os.environ | {"GOCACHE": str(folder / "cache"), "GOFLAGS": "-mod=mod", "GO111MODULE": "off"}
    subprocess.run(["go", "build", "-o", folder / "render", source], check=True, env=environment, timeout=PATIENCE)
    return folder / "render"


def render(go: Path, source: str, chats: list[list[dict[str, str]]]) -> list[str]:
    """What Ollama would feed to the model for each conversation."""
    jobs = []
    for chat in chats:
        system = chat[0]["content"] if chat[0]["role"] == "system" else ""
        messages = [{"Role": m["role"], "Content": m["content"]} for m in chat]
        jobs.append({"Template": source, "System": system, "Messages": messages, "Prompt": chat[-1]["content"]})
    done = subprocess.run([go], input=json.dumps(jobs), capture_output=True, text=True, check=True, timeout=PATIENCE)
    texts: list[str] = json.loads(done.stdout)
    return texts


def with_template(source: str, system: str | None = None) -> Any:
    return load_template(SMOLLM2, "chat", ["messages"], chat_template=source, system=system)


def prompts(template: Template, chats: list[list[dict[str, str]]]) -> list[str]:
    """The training prompts of conversations that end with a question."""
    return [template.prompt(Conversation(tuple(Message(**turn) for turn in chat))) for chat in chats]


@pytest.mark.parametrize(
    ("template", "has_system"),
    [
        (load_template(SMOLLM2, "chat", ["messages"]), True),
        (load_template(PHI3, "chat", ["messages"]), None),
        (with_template(BRACES), True),
    ],
    ids=["smollm2", "phi3", "braces"],
)
def test_go_renders_what_was_trained(go: Path, template: Template, has_system: bool | None) -> None:
    source, notes = go_template(template)
    assert notes == ()
    assert template.chat
    chats = CHATS + ([[SYSTEM, *chat] for chat in CHATS] if has_system else [])
    assert render(go, source, chats) == prompts(template, chats)


def test_an_answer_begun_is_gone_on_with(go: Path) -> None:
    template = load_template(SMOLLM2, "chat", ["messages"])
    [text] = render(go, go_template(template)[0], [[QUESTION, {"role": "assistant", "content": "It is"}]])
    assert template.chat
    assert text == prompts(template, [[QUESTION]])[0] + "It is"


def test_trainings_system_message_is_that_of_chats_without_one(go: Path) -> None:
    default = 'Be "brief" {{ .x }} 🙂.\n'
    template = with_template(BRACES, default)
    source, notes = go_template(template)
    assert notes == ()
    assert render(go, source, CHATS) == prompts(template, CHATS)
    assert all(default in text for text in prompts(template, CHATS))
    with_system = [[SYSTEM, *chat] for chat in CHATS]
    assert render(go, source, with_system) == prompts(template, with_system)


def test_a_template_with_tools_says_that_ollama_has_none(go: Path, tmp_path: Path) -> None:
    template = load_template(tokenizer_folder("qwen2.5", tmp_path), "chat", ["messages"])
    source, notes = go_template(template)
    assert "Chats with tools are not in it" in notes[0]
    assert render(go, source, CHATS) == prompts(template, CHATS)


def test_alpaca_rows_are_asked_as_they_were_trained(go: Path) -> None:
    source, [note, _] = go_template(Template(load_tokenizer(PHI3), "alpaca", "completion"))
    assert render(go, source, [[QUESTION]]) == [ALPACA.format(QUESTION["content"])]
    assert "input" in note


def test_what_go_cannot_say_is_not_said_nearly(go: Path) -> None:
    template = with_template(NUMBERED)
    source, notes = go_template(template)
    assert source == "{{ .Prompt }}"
    assert "raw: true" in notes[0]
    text = modelfile("a.gguf", template, 100)
    assert text.startswith("# The chat template cannot")


def test_bos_is_left_to_ollama() -> None:
    template = with_template(BRACES)
    assert template.chat
    found = take_apart(template.chat, "<|im_start|>")
    assert found
    kept = take_apart(template.chat, "")
    assert kept
    assert kept.opening == "<|im_start|>" + found.opening
    assert (kept.system, found.system) == ('<|im_start|>"{{', '"{{')


def test_the_modelfile_names_file_context_and_stops() -> None:
    template = load_template(PHI3, "chat", ["messages"])
    lines = modelfile("run-q8_0.gguf", template, 2047).splitlines()
    assert lines[0] == "FROM ./run-q8_0.gguf"
    assert 'TEMPLATE """' in lines[1]
    assert lines[2:] == [
        "PARAMETER num_ctx 2047",
        'PARAMETER stop "<|endoftext|>"',
        'PARAMETER stop "<|assistant|>"',
        'PARAMETER stop "<|end|>"',
    ]
    assert "num_ctx 8192" in modelfile("a.gguf", template, 131072)


def test_a_template_is_tried_on_longer_conversations_too() -> None:
    """One that treats the third question otherwise is not taken apart."""
    source = (
        "{% for m in messages %}{{ '<' + m.role + '>' + m.content + ('!' if loop.index > 4 else '.') }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    assert take_apart(ChatTemplate(load_tokenizer(SMOLLM2), source), "") is None
