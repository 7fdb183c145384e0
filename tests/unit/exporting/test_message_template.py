"""The Jinja template that vLLM gets: rendered and tokenised as vLLM does it, it gives training's prompt ids."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import jinja2
import pytest
import transformers

from strop.data.examples import Conversation, Example, Message
from strop.data.prompts import as_question
from strop.data.rows.columns import Format
from strop.data.template import Template, load_template
from strop.exporting.prompting import write_tokenizer

FIXTURES = Path(__file__).parents[2] / "fixtures"
PHI3, SMOLLM2 = FIXTURES / "phi3-tokenizer", FIXTURES / "smollm2-tokenizer"
DATED = (
    "\n{{ date_string if date_string is defined else 'today' }}{% for m in messages %}[{{ m.role }}]{{ m.content }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
TURNS = (("user", "Hi"), ("assistant", "Hello!"), ("user", " 2+2?\n\n really \n"))


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STROP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


FORMATS: dict[str, tuple[Format, ...]] = {"chat": ("messages",), "alpaca": ("alpaca",), "plain": ("text",)}


def served(tokenizer: Path, folder: Path, name: str, **config: object) -> tuple[Template, transformers.AutoTokenizer]:
    """The training template, and the tokenizer as vLLM and transformers load it from the adapter's folder."""
    base = folder / "base"
    shutil.copytree(tokenizer, base)
    if source := config.pop("source", None):
        (base / "chat_template.jinja").write_text(str(source))
    path = base / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "LlamaTokenizer"} | config))
    template = load_template(base, name, FORMATS[name])
    (folder / "served").mkdir()
    write_tokenizer(template, base, folder / "served")
    return template, transformers.AutoTokenizer.from_pretrained(folder / "served")


def rendered(tokenizer: transformers.AutoTokenizer, *turns: tuple[str, str]) -> list[int]:
    messages = [{"role": role, "content": content} for role, content in turns]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return list(tokenizer.encode(text, add_special_tokens=False))


@pytest.mark.parametrize("bos", [True, False], ids=["bos", "no-bos"])
@pytest.mark.parametrize("name", ["chat", "alpaca", "plain"])
def test_a_question_has_the_ids_of_training(tmp_path: Path, name: str, bos: bool) -> None:
    template, tokenizer = served(PHI3, tmp_path, name, add_bos_token=bos)
    for question in ("What is it?", "Add these.\n\n2 and 2\n\nnow", "Add.\n\n", " a ", "{{ 7 * 7 }} 'x' \\n \"y\""):
        expected = template.encode_prompt(as_question(template.name, question))
        assert rendered(tokenizer, ("user", question)) == expected, question
        assert (expected[0] == template.tokenizer.bos_token_id) == bos


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


@pytest.mark.parametrize("name", ["alpaca", "plain"])
@pytest.mark.parametrize("turns", [TURNS, (("system", "a"), ("user", "b")), (("assistant", "a"),)])
def test_what_the_template_has_no_place_for_is_refused(
    tmp_path: Path, name: str, turns: tuple[tuple[str, str], ...]
) -> None:
    _, tokenizer = served(SMOLLM2, tmp_path, name)
    with pytest.raises(jinja2.TemplateError, match=f"the {name} template takes one user message"):
        rendered(tokenizer, *turns)
