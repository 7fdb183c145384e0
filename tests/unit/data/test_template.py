"""Golden ids: from the committed tokenizers of Phi-3-mini and SmolLM2, checked by eye once, then frozen."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from rows import read_aloud
from strop.data.examples import Alpaca, Conversation, Message, PromptCompletion, Text, Tokens
from strop.data.prompts import resolve_template
from strop.data.template import Template, load_template
from strop.data.tokenizer import load_tokenizer
from strop.errors import DataError, ModelError, RecipeError

FIXTURES = Path(__file__).parents[2] / "fixtures"
PHI3, SMOLLM2 = FIXTURES / "phi3-tokenizer", FIXTURES / "smollm2-tokenizer"
CHAD = Alpaca("What was the population of Chad in 1960?", "", "3002596")
TWO_TURNS = Conversation(
    (
        Message("user", "Hi"),
        Message("assistant", "Hello!"),
        Message("user", "2+2?"),
        Message("assistant", "4"),
    )
)


def ids(text: str) -> list[int]:
    return [int(token) for token in text.split()]


# <|user|> What was the population of Chad in 1960? <|end|> <|assistant|> and 3002596 <|end|> <|endoftext|>
PHI3_PROMPT = ids("32010 1724 471 278 4665 310 678 328 297 29871 29896 29929 29953 29900 29973 32007 32001")
PHI3_ANSWER = ids("29871 29941 29900 29900 29906 29945 29929 29953 32007 32000")
SMOLLM2_PROMPT = ids(
    "1 9690 198 2683 359 253 5356 5646 11173 3365 3511 308 34519 28 7018 411 407 19712 8182 2 198 1 4093 198 "
    "1780 436 260 2155 282 32069 281 216 33 41 38 32 47 2 198 1 520 9531 198"
)
SMOLLM2_ANSWER = ids("35 32 32 34 37 41 38 2")
ALPACA_PROMPT = ids(
    "13866 338 385 15278 393 16612 263 3414 29889 14350 263 2933 393 7128 2486 1614 "
    "2167 278 2009 29889 13 13 2277 29937 2799 4080 29901 13 5618 471 278 4665 "
    "310 678 328 297 29871 29896 29929 29953 29900 29973 13 13 2277 29937 13291 29901 "
    "13 "
)
ALPACA_ANSWER = ids("29941 29900 29900 29906 29945 29929 29953 32000")
GOLDEN = {
    "phi3": (PHI3, "chat", PHI3_PROMPT, PHI3_ANSWER),
    "smollm2": (SMOLLM2, "chat", SMOLLM2_PROMPT, SMOLLM2_ANSWER),
    "alpaca": (PHI3, "alpaca", ALPACA_PROMPT, ALPACA_ANSWER),
}


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STROP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def changed(folder: Path, to: Path, template: str | None = None, **config) -> Path:
    """A copy of a tokenizer folder with another chat template or settings."""
    shutil.copytree(folder, to)
    if template is not None:
        (to / "chat_template.jinja").write_text(template)
    path = to / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return to


def learned(template: Template, example) -> list[tuple[int, bool]]:
    [[encoded]] = template.encode([example])
    return list(zip(encoded.input_ids.tolist(), encoded.learned.tolist(), strict=True))


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_ids(name):
    folder, kind, prompt, answer = GOLDEN[name]
    template = load_template(folder, kind, ["alpaca"])
    assert learned(template, CHAD) == [(i, False) for i in prompt] + [(i, True) for i in answer]
    assert template.encode_prompt(CHAD) == prompt


def test_golden_ids_depend_on_rstrip(tmp_path):
    """The control: without rstrip the newline after <|assistant|> is a token of its own."""
    folder = changed(PHI3, tmp_path / "plain")
    path = folder / "tokenizer.json"
    path.write_text(path.read_text("utf-8").replace('"rstrip":true', '"rstrip":false'), "utf-8")
    prompt = load_template(folder, "chat", ["alpaca"]).encode_prompt(CHAD)
    assert prompt != PHI3_PROMPT
    assert prompt[-3:] == [32001, 29871, 13]


def test_naming_llama_tokenizer_does_not_change_the_ids(tmp_path):
    """transformers 5's AutoTokenizer gives `What` for `▁What` here; tokenizer.json is the truth."""
    folder = changed(PHI3, tmp_path / "llama", tokenizer_class="LlamaTokenizer")
    assert load_template(folder, "chat", ["alpaca"]).encode_prompt(CHAD) == PHI3_PROMPT


def test_alpaca_with_input():
    template = load_template(PHI3, "alpaca", ["alpaca"])
    text = template.tokenizer.decode(template.encode_prompt(Alpaca("Add.", "2+2", "4")))
    assert text.endswith("### Instruction:\nAdd.\n\n### Input:\n2+2\n\n### Response:\n")
    assert "paired with an input" in text


@pytest.mark.parametrize(("folder", "stops"), [(PHI3, {32000, 32001, 32007}), (SMOLLM2, {2})])
def test_stop_ids(folder, stops):
    assert load_template(folder, "chat", ["alpaca"]).stop_ids == stops


def test_turn_end_is_a_stop_id_without_generation_config(tmp_path):
    folder = changed(PHI3, tmp_path / "bare")
    (folder / "generation_config.json").unlink()
    assert load_template(folder, "chat", ["alpaca"]).stop_ids == {32000, 32007}


def test_every_answer_of_a_conversation_is_learned_up_to_its_stop_token():
    template = load_template(SMOLLM2, "chat", ["messages"])
    pieces = [template.tokenizer.decode([i]) for i, is_learned in learned(template, TWO_TURNS) if is_learned]
    assert pieces == ["Hello", "!", "<|im_end|>", "4", "<|im_end|>"]
    phi3 = load_template(PHI3, "chat", ["messages"])
    assert [i for i, is_learned in learned(phi3, TWO_TURNS) if is_learned] == [
        *(15043, 29991, 32007),
        *(29871, 29946, 32007, 32000),
    ]


def test_a_question_at_the_end_is_dropped():
    more = Conversation((*TWO_TURNS.messages, Message("user", "And 3+3?")))
    for folder in (PHI3, SMOLLM2):
        template = load_template(folder, "chat", ["messages"])
        shorter = [i for i, _ in learned(template, TWO_TURNS) if i != 32000]
        assert [i for i, _ in learned(template, more)] == shorter


def test_train_on_all_learns_everything_but_the_first_token():
    template = load_template(SMOLLM2, "chat", ["alpaca"], "all")
    [[encoded]] = template.encode([CHAD])
    assert encoded.input_ids.tolist() == [*SMOLLM2_PROMPT, *SMOLLM2_ANSWER, 198]
    assert encoded.learned.tolist() == [False] + [True] * (len(encoded.input_ids) - 1)


def test_train_on_all_leaves_out_an_answer_that_is_context():
    template = load_template(SMOLLM2, "chat", ["messages"], "all")
    question, answer, *rest = TWO_TURNS.messages
    some = Conversation((question, replace(answer, learned=False), *rest))
    [every], [but_one] = template.encode([TWO_TURNS, some])
    assert every.input_ids.tolist() == but_one.input_ids.tolist()
    left_out = every.input_ids[every.learned & ~but_one.learned]
    assert template.decode(left_out.tolist()).strip() == "Hello!"


@pytest.mark.parametrize("train_on", ["completion", "all"])
def test_nothing_predicts_the_first_token_of_a_row_of_tokens(train_on):
    template = load_template(SMOLLM2, "plain", ["tokens"], train_on)
    assert learned(template, Tokens((9, 10, 11), (True, True, True))) == [(9, False), (10, True), (11, True)]


def test_a_question_gets_trainings_system_message_unless_it_has_its_own():
    template = load_template(SMOLLM2, "chat", ["messages"], system="Be brief.")
    own = Conversation((Message("system", "Be long."), *TWO_TURNS.messages))
    assert "Be brief." in template.prompt(TWO_TURNS)
    assert template.prompt(own) == load_template(SMOLLM2, "chat", ["messages"]).prompt(own)


def test_of_the_control_tokens_behind_an_answer_only_the_first_ends_it(tmp_path):
    source = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|><|endoftext|>{% endfor %}"
    source += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    template = load_template(changed(SMOLLM2, tmp_path / "two", source), "chat", ["messages"])
    end, other = template.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert end in template.stop_ids
    assert other not in template.stop_ids
    assert template.decode_all([i for i, is_learned in learned(template, TWO_TURNS) if is_learned]) == (
        "Hello!<|im_end|>4<|im_end|>"
    )


def test_plain_and_text_end_with_one_eos():
    template = load_template(SMOLLM2, "plain", ["text"])
    assert learned(template, Text("a b")) == [(81, False), (278, True), (2, True)]
    assert learned(template, Text("a b<|im_end|>")) == learned(template, Text("a b"))
    assert learned(template, PromptCompletion("2+2=", "4")) == [
        *((34, False), (27, False), (34, False), (45, False)),
        *((36, True), (2, True)),
    ]


def test_no_space_is_put_before_a_continuation():
    """By itself Phi-3's tokenizer turns `4` into `▁ 4`; after `2+2=` it is `4`."""
    template = load_template(PHI3, "plain", ["prompt_completion"])
    assert learned(template, PromptCompletion("2+2=", "4"))[-2:] == [(29946, True), (32000, True)]
    assert template.tokenizer.encode("4", add_special_tokens=False) == [29871, 29946]


@pytest.mark.parametrize(
    ("folder", "before", "after"), [(SMOLLM2, "The un", "believable"), (PHI3, "The unb", "elievable")]
)
def test_prompt_ids_survive_a_merge_over_the_cut(folder, before, after):
    """Both would merge into other tokens; the prompt must stay what generation starts from."""
    template = load_template(folder, "plain", ["prompt_completion"])
    example = PromptCompletion(before, after)
    prompt = template.encode_prompt(example)
    assert template.tokenizer.encode("The unbelievable")[: len(prompt)] != prompt
    assert [i for i, is_learned in learned(template, example) if not is_learned] == prompt
    assert template.tokenizer.decode([i for i, _ in learned(template, example)][:-1]) == "The unbelievable"


def test_batch_equals_one_by_one():
    template = load_template(PHI3, "chat", ["alpaca"])
    examples = [Alpaca(f"q{i} " * (i % 5 + 1), "", f" {i}") for i in range(20)]
    together = template.encode(examples)
    for example, [encoded] in zip(examples, together, strict=True):
        assert encoded.input_ids.tolist() == [i for i, _ in learned(template, example)]


@pytest.mark.parametrize("says", [True, False])
def test_bos_is_put_once_where_the_tokenizer_puts_one(tmp_path, says):
    folder = changed(PHI3, tmp_path / "bos", "{{ bos_token }}" + (PHI3 / "chat_template.jinja").read_text())
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"add_bos_token": says}))
    from_template = load_template(folder, "chat", ["alpaca"]).encode_prompt(CHAD)
    assert from_template == [1, *PHI3_PROMPT]
    assert load_template(folder, "alpaca", ["alpaca"]).encode_prompt(CHAD) == [1] * says + ALPACA_PROMPT


THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}"
    "<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_thinking_template_learns_its_empty_think_block(tmp_path):
    template = load_template(changed(SMOLLM2, tmp_path / "t", THINKING), "chat", ["messages"])
    text = template.tokenizer.decode([i for i, is_learned in learned(template, CHAD) if is_learned])
    assert text == "<think>\n\n</think>\n\n3002596<|im_end|>"


def test_thinking_template_that_rewrites_earlier_answers_gives_a_sample_for_each(tmp_path):
    template = load_template(changed(SMOLLM2, tmp_path / "t", THINKING), "chat", ["messages"])
    [samples] = template.encode([TWO_TURNS])
    assert read_aloud(template, samples) == [
        ["<think>\n\n</think>\n\nHello!<|im_end|>"],
        ["<think>\n\n</think>\n\n4<|im_end|>"],
    ]
    assert [sample.num_turns for sample in samples] == [2, 4]
    prompt = template.encode_prompt(TWO_TURNS)
    assert samples[1].input_ids[: len(prompt)].tolist() == prompt


BAD_TEMPLATES = {
    "does not compile": ("{% for %}", "rejects this row"),
    "does not know its own prompt": (
        "{% if add_generation_prompt %}A{% else %}B{% endif %}",
        "does not begin turn 2 with its own",
    ),
    "raises": ("{{ raise_exception('never') }}", "never"),
    "reaches for the system": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe|rejects"),
    "too long": ("{# " + "x" * (64 << 10) + " #}", "over 64 KiB"),
}


@pytest.mark.parametrize("name", BAD_TEMPLATES)
def test_bad_chat_template_is_a_model_error(tmp_path, name):
    source, reason = BAD_TEMPLATES[name]
    with pytest.raises(ModelError, match=reason):
        load_template(changed(SMOLLM2, tmp_path / "t", source), "chat", ["messages"])


def test_row_that_the_template_refuses(tmp_path):
    source = "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    source += (SMOLLM2 / "chat_template.jinja").read_text()
    template = load_template(changed(SMOLLM2, tmp_path / "t", source), "chat", ["messages"])
    with pytest.raises(DataError, match="the chat template rejects this row: no system here"):
        template.encode([Conversation((Message("system", "s"), *TWO_TURNS.messages))])


def test_resolution():
    assert resolve_template("auto", ["alpaca"], True) == "chat"
    assert resolve_template("auto", ["alpaca"], False) == "alpaca"
    assert resolve_template("auto", ["sharegpt"], True) == "chat"
    assert resolve_template("auto", ["prompt_completion"], True) == "chat"
    assert resolve_template("auto", ["prompt_completion"], False) == "plain"
    assert resolve_template("auto", ["text"], True) == "plain"
    for name, format in (("auto", "messages"), ("alpaca", "messages"), ("chat", "text"), ("chatml", "text")):
        with pytest.raises(RecipeError, match=r"data\.template"):
            resolve_template(name, [format], False)


def test_fingerprint_follows_what_decides_the_ids(tmp_path):
    base = load_template(PHI3, "chat", ["alpaca"]).fingerprint
    stopping = changed(PHI3, tmp_path / "s")
    (stopping / "generation_config.json").write_text(json.dumps({"eos_token_id": [32000, 32005]}))
    other = {
        load_template(PHI3, "chat", ["alpaca"], "all").fingerprint,
        load_template(PHI3, "alpaca", ["alpaca"]).fingerprint,
        load_template(SMOLLM2, "chat", ["alpaca"]).fingerprint,
        load_template(changed(PHI3, tmp_path / "b", add_bos_token=True), "chat", ["alpaca"]).fingerprint,
        load_template(stopping, "chat", ["alpaca"]).fingerprint,
    }
    assert load_template(PHI3, "chat", ["messages"]).fingerprint == base
    assert len(other | {base}) == 6


@pytest.mark.parametrize("eos", ["1", [40000], [None, "x"], [True]])
def test_generation_config_with_a_bad_stop_id(tmp_path, eos):
    folder = changed(PHI3, tmp_path / "g")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    with pytest.raises(ModelError, match="eos_token_id contains"):
        load_template(folder, "chat", ["alpaca"])


def test_special_text_is_seen():
    pattern = load_template(PHI3, "chat", ["alpaca"]).special_text
    assert pattern.search("a <|end|> b")
    assert pattern.search("</s>")
    assert not pattern.search("a < b | c > d")


def test_no_tokenizer_json(tmp_path):
    with pytest.raises(ModelError, match=r"no tokenizer.json"):
        load_tokenizer(tmp_path)
