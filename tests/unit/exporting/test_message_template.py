"""The Jinja template that servers get: rendered and tokenised as they do it, it gives training's prompt ids."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import pytest
import transformers

from real_templates import NAMES, tokenizer_folder
from strop.data import dated
from strop.data.examples import Alpaca, Conversation, Example, Message, PromptCompletion
from strop.data.prompts import INPUT, as_question, as_text
from strop.data.rows.columns import shape_of
from strop.data.rows.shapes import RowReader
from strop.data.template import Template, load_template
from strop.exporting.prompting import as_jinja, write_tokenizer
from template_rows import SPEECH, rows

FIXTURES = Path(__file__).parents[2] / "fixtures"
PHI3, SMOLLM2 = FIXTURES / "phi3-tokenizer", FIXTURES / "smollm2-tokenizer"
DATED = (
    "\n{{ date_string if date_string is defined else 'today' }}{% for m in messages %}[{{ m.role }}]{{ m.content }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
TURNS = (("user", "Hi"), ("assistant", "Hello!"), ("user", " 2+2?\n\n really \n"))


@pytest.fixture(autouse=True, scope="module")
def strop_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STROP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def served(
    tokenizer: Path, folder: Path, name: str, system: str | None = None, **config: Any
) -> tuple[Template, transformers.AutoTokenizer]:
    """The training template, and the tokenizer as vLLM and transformers load it from the adapter's folder."""
    base = folder / "base"
    shutil.copytree(tokenizer, base)
    own = config.pop("source", None)
    path = base / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "LlamaTokenizer"} | config))
    format = {"chat": "messages", "alpaca": "alpaca", "plain": "prompt_completion"}[name]
    template = load_template(base, name, [format], chat_template=own, system=system)  # type: ignore[list-item]
    (folder / "served").mkdir()
    write_tokenizer(template, base, folder / "served")
    return template, transformers.AutoTokenizer.from_pretrained(folder / "served")


def rendered(tokenizer: transformers.AutoTokenizer, *turns: tuple[str, str], **given: Any) -> list[int]:
    return ids_of(tokenizer, [{"role": role, "content": content} for role, content in turns], **given)


def ids_of(tokenizer: transformers.AutoTokenizer, messages: list[dict[str, Any]], **given: Any) -> list[int]:
    """As vLLM does it: text first, then ids without special tokens."""
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **given)
    ids = list(tokenizer.encode(text, add_special_tokens=False))
    at_once = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False, **given)
    assert ids == at_once
    return ids


@pytest.mark.parametrize("bos", [True, False], ids=["bos", "no-bos"])
@pytest.mark.parametrize("name", ["chat", "alpaca", "plain"])
def test_a_question_has_the_ids_of_training(tmp_path: Path, name: str, bos: bool) -> None:
    template, tokenizer = served(PHI3, tmp_path, name, add_bos_token=bos)
    questions = ("What is it?", "Add these.\n\n2 and 2\n\nnow", "Add.\n\n", " a ", "{{ 7 * 7 }} 'x' \\n \"y\"")
    for question in (*questions, f"Add.\n\nThese.{INPUT}2\n\n and 2", f"Add.{INPUT}", f"Add.{INPUT}a{INPUT}b"):
        expected = template.encode_prompt(as_question(template.name, question))
        assert rendered(tokenizer, ("user", question)) == expected, question
        assert (expected[0] == template.tokenizer.bos_token_id) == bos


ROWS: dict[str, list[Example]] = {
    "alpaca": [
        Alpaca("Add.", "2 and 2", "4"),
        Alpaca("Add.", "", "4"),
        Alpaca("Add them.\n\nThey are 2 and 2.", "", "4"),
        Alpaca("Add them.\n\nThey follow.", "2\n\nand 2", "4"),
        Alpaca(f"Add.{INPUT}2 and 2", "", "4"),
    ],
    "plain": [PromptCompletion("Q: 2+2?\n\nA:", " 4")],
}


@pytest.mark.parametrize("tokenizer", [PHI3, SMOLLM2], ids=lambda folder: folder.name)
@pytest.mark.parametrize("name", list(ROWS))
def test_a_row_is_asked_with_the_text_that_is_typed_for_it(tmp_path: Path, name: str, tokenizer: Path) -> None:
    template, loaded = served(tokenizer, tmp_path, name)
    for row in ROWS[name]:
        assert rendered(loaded, ("user", as_text(template.name, row))) == template.encode_prompt(row), row


def test_an_input_without_its_heading_is_another_prompt(tmp_path: Path) -> None:
    template, tokenizer = served(SMOLLM2, tmp_path, "alpaca")
    assert rendered(tokenizer, ("user", "Add.\n\n2 and 2")) != template.encode_prompt(Alpaca("Add.", "2 and 2", ""))


@pytest.mark.parametrize(
    ("tokenizer", "source"),
    [
        (PHI3, None),
        (SMOLLM2, None),
        (SMOLLM2, DATED),
        (PHI3, "{{ bos_token }}" + DATED.replace("<|im_end|>", "<|end|>")),
    ],
    ids=["phi3", "smollm2", "dated", "writes-bos"],
)
def test_a_conversation_has_the_ids_of_training(tmp_path: Path, tokenizer: Path, source: str | None) -> None:
    template, loaded = served(tokenizer, tmp_path, "chat", source=source, add_bos_token=tokenizer == PHI3)
    row: Example = Conversation(tuple(Message(role, text) for role, text in TURNS))  # type: ignore[arg-type]
    assert rendered(loaded, *TURNS) == template.encode_prompt(row)
    if source == DATED:
        assert "26 Jul 2024" in loaded.decode(rendered(loaded, *TURNS))
    stops = json.loads((tmp_path / "served" / "generation_config.json").read_text())
    assert set(stops["eos_token_id"]) == template.stop_ids


SYSTEM = "Say \"Grüß 🙂\" {{ 'x' }} {% raw %}\n\nand 'no' \\n more."


def prompts_of(
    template: Template, name: str, count: int
) -> Iterator[tuple[list[dict[str, Any]], dict[str, Any], list[int]]]:
    """Messages, what goes with them, and training's ids, for each answer of some rows."""
    for row in rows(name, 11, count):
        shape = shape_of(row)
        assert shape is not None
        chat = RowReader(shape, template.system).read(row)[0]
        assert isinstance(chat, Conversation)
        if name == "mistral-v0.3" and chat.messages[0].role == "system":
            continue  # its template leaves some of them out
        for k, answer in enumerate(chat.messages):
            if answer.role == "assistant":
                asked = Conversation(chat.messages[:k], chat.tools, chat.documents)
                assert template.chat
                given = {key: list(row[key]) for key in ("tools", "documents") if key in row}
                yield list(map(template.chat.turn, asked.messages)), given, template.encode_prompt(asked)


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_real_templates_have_the_ids_of_training(name: str, tmp_path: Path) -> None:
    template, loaded = served(tokenizer_folder(name, tmp_path / "its"), tmp_path, "chat")
    compared = [ids_of(loaded, messages, **given) == ids for messages, given, ids in prompts_of(template, name, 60)]
    assert len(compared) > 40
    assert all(compared)


@pytest.mark.parametrize("name", [name for name in SPEECH if SPEECH[name].calls])
def test_calls_have_the_ids_of_training_with_their_keys_in_vllms_order(name: str, tmp_path: Path) -> None:
    """vLLM's own types put a call's id before its function, and the arguments before the name."""
    template, loaded = served(tokenizer_folder(name, tmp_path / "its"), tmp_path, "chat")
    for messages, given, ids in prompts_of(template, name, 20):
        sent = [turn | {"tool_calls": list(map(vllms, turn.get("tool_calls", [])))} for turn in messages]
        assert ids_of(loaded, [{k: v for k, v in turn.items() if v != []} for turn in sent], **given) == ids
    source = (tmp_path / "served" / "chat_template.jinja").read_text()
    assert ("strop.calls" in source) == (name == "mistral-v0.3")
    assert "strop.calls" not in as_jinja(template)  # for GGUF files, as before


def vllms(call: dict[str, Any]) -> dict[str, Any]:
    function = {key: call["function"][key] for key in ("arguments", "name")}
    return {"id": call["id"], "function": function, "type": "function"}


@pytest.mark.parametrize("name", [name for name in NAMES if name != "mistral-v0.3"])
def test_trainings_system_message_is_written_where_there_is_none(name: str, tmp_path: Path) -> None:
    template, loaded = served(tokenizer_folder(name, tmp_path / "its"), tmp_path, "chat", SYSTEM)
    added = 0
    for messages, given, ids in prompts_of(template, name, 12):
        assert messages[0]["role"] == "system"
        assert ids_of(loaded, messages, **given) == ids
        if messages[0]["content"] == SYSTEM:
            assert ids_of(loaded, messages[1:], **given) == ids
            added += 1
    assert added > 3


def test_the_day_of_training_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Granite's template asks for today's date: rows, cache and exports keep one."""
    template, loaded = served(tokenizer_folder("granite-3.3", tmp_path / "its"), tmp_path, "chat")
    text = template.prompt(as_question("chat", "Hi"))
    assert "Today's Date: July 26, 2024." in text
    assert "Today's Date: July 26, 2024." in loaded.decode(rendered(loaded, ("user", "Hi")))
    monkeypatch.setattr(dated, "_DAY", dated._DAY.replace(day=27))
    other = load_template(tmp_path / "base", "chat", ["messages"])
    assert other.fingerprint != template.fingerprint


NAMED = {"default": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\n"}
NAMED["tool_use"] = "{{ bos_token }}{{ tools | tojson }}\n\n" + NAMED["default"]


def test_named_templates_are_written_as_one_whichever_of_them_writes_bos(tmp_path: Path) -> None:
    """Phi-3's tokenizer adds BOS to a text; of these two templates, one has written it already."""
    folder = tmp_path / "its"
    shutil.copytree(PHI3, folder)
    end = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}\n"
    (folder / "chat_template.jinja").write_text(NAMED["default"].replace("<|im_end|>", "<|end|>") + end)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates/tool_use.jinja").write_text(
        NAMED["tool_use"].replace("<|im_end|>", "<|end|>") + end
    )
    template, loaded = served(folder, tmp_path, "chat", add_bos_token=True)
    tool = {"type": "function", "function": {"name": "tide", "description": "d", "parameters": {}}}
    for tools in ((), (tool,)):
        asked = Conversation((Message("user", "Hi"), Message("assistant", "Yes"), Message("user", "So?")), tools)
        ids = template.encode_prompt(asked)
        turns = [("user", "Hi"), ("assistant", "Yes"), ("user", "So?")]
        assert rendered(loaded, *turns, tools=list(tools) or None) == ids
        assert ids.count(template.bos_id) == 1
    assert isinstance(loaded.chat_template, str)


@pytest.mark.parametrize("name", ["alpaca", "plain"])
@pytest.mark.parametrize(
    ("turns", "given"),
    [
        (TURNS, {}),
        ((("system", "a"), ("user", "b")), {}),
        ((("assistant", "a"),), {}),
        (TURNS[:1], {"tools": [{"type": "function", "function": {"name": "tide"}}]}),
        (TURNS[:1], {"documents": [{"title": "t", "text": "x"}]}),
    ],
)
def test_what_the_template_has_no_place_for_is_refused(
    tmp_path: Path, name: str, turns: tuple[tuple[str, str], ...], given: dict[str, Any]
) -> None:
    _, tokenizer = served(SMOLLM2, tmp_path, name)
    with pytest.raises(jinja2.TemplateError, match=f"the {name} template takes one user message"):
        rendered(tokenizer, *turns, **given)
