"""Rows under real chat templates give the ids of apply_chat_template, and learn what TRL learns where TRL is right."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from real_templates import NAMES, TRL_NAMES, load, tokenizer_folder, trl_training_source
from strop.data.examples import Conversation
from strop.data.rows.columns import shape_of
from strop.data.rows.shapes import RowReader
from strop.data.template import Encoded, Template, load_template
from strop.errors import DataError
from template_oracle import DATE, DAY, Answer, Oracle
from template_rows import SPEECH, Row, Speech, is_learned, native, rows

COUNT = 300
SEED = 15
# Its template writes no BOS and its tokenizer adds one, so strop puts it; apply_chat_template does not.
BOS_ADDED = {"zephyr"}
# Answers that begin with a newline behind a prompt that ends with one: in the whole text one token spans the two. Strop
# keeps the prompt's own ids, since generation starts from them; there, texts are compared. The rest is equal id for id.
SPANNED = {
    "qwen3-thinking-2507",
    "qwen3-instruct-2507",
    "qwen2.5",
    "qwq",
    "hermes-3",
    "r1-distill",
    "smollm2",
    "zephyr",
}


@dataclass(frozen=True)
class Case:
    """A template as strop has it, some rows, and what transformers alone makes of them."""

    template: Template
    oracle: Oracle
    given: list[Row]
    wanted: list[list[Answer]]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def make(name: str) -> Case:
        folder: Path = tokenizer_folder(name, tmp_path_factory.mktemp("tokenizers"))
        oracle, given = Oracle(name, load(folder)), rows(name, SEED, COUNT)
        return Case(load_template(folder, "chat", ["messages"]), oracle, given, list(map(oracle.answers, given)))

    return make


def read(row: Row) -> Conversation:
    """The row as strop reads it; nothing but turns after the last learned answer may stay unused."""
    shape = shape_of(row)
    assert shape is not None
    example, unused = RowReader(shape).read(row)
    assert isinstance(example, Conversation)
    assert set(unused) <= {"turns after the last learned answer"}
    return example


def learned_runs(mask: Sequence[Any]) -> list[tuple[int, int]]:
    """Where learned tokens begin and end."""
    edges = [i for i, (a, b) in enumerate(zip([0, *mask], [*mask, 0], strict=True)) if bool(a) != bool(b)]
    return list(zip(edges[::2], edges[1::2], strict=True))


def found(samples: Sequence[Encoded]) -> list[tuple[list[int], list[int]]]:
    """For each learned answer the ids before it and its own, whichever sample it is in."""
    pairs = [
        (sample.input_ids.tolist()[:start], sample.input_ids.tolist()[start:end])
        for sample in samples
        for start, end in learned_runs(sample.learned)
    ]
    assert all(sample.learned[-1] for sample in samples)
    return pairs


def system_is_lost(row: Row, answers: Sequence[Answer]) -> bool:
    """Mistral's template writes the system message only before a question that is the last turn."""
    first = native(row)[0]
    said = first["content"].strip() if first["role"] == "system" else ""
    return any(said not in answer.prompt for answer in answers)


@pytest.mark.parametrize("name", NAMES)
def test_ids_and_masks_are_those_of_apply_chat_template(name: str, cases: Any) -> None:
    case: Case = cases(name)
    lost = [system_is_lost(row, answers) for row, answers in zip(case.given, case.wanted, strict=True)]
    assert any(lost) == (name == "mistral-v0.3")
    for row in (row for row, is_lost in zip(case.given, lost, strict=True) if is_lost):
        with pytest.raises(DataError, match="leaves out the system message"):
            case.template.encode([read(row)])
    kept = [i for i, is_lost in enumerate(lost) if not is_lost]
    encoded = case.template.encode([read(case.given[i]) for i in kept])
    for i, samples in zip(kept, encoded, strict=True):
        row, wanted = case.given[i], case.wanted[i]
        # A token that spans an answer and its prompt would be in the prompts of later answers.
        in_one = all(answer.in_whole for answer in wanted) and all(answer.ids is not None for answer in wanted[:-1])
        assert len(samples) == (1 if in_one else len(wanted)), row
        assert len(found(samples)) == len(wanted), row
        for answer, (before, ids) in zip(wanted, found(samples), strict=True):
            before = before[1:] if name in BOS_ADDED else before
            assert ids[-1] in case.template.stop_ids, row
            if all(a.ids is not None for a in wanted):
                assert (before, ids) == (answer.prompt_ids, answer.ids), (row, answer)
            else:
                assert_same_text(case.oracle, answer, before, ids)
    spanned = sum(answer.ids is None for i in kept for answer in case.wanted[i])
    assert (spanned > 0) == (name in SPANNED)


def assert_same_text(oracle: Oracle, answer: Answer, before: list[int], ids: list[int]) -> None:
    """Of a row where a token spans a prompt and its answer: beyond the newlines where they meet, ids are equal."""
    decode, joint = oracle.tokenizer.decode, oracle.ids(answer.prompt + answer.text)
    assert before == answer.prompt_ids
    assert decode(before + ids) == decode(joint)
    assert ids == answer.ids if answer.ids is not None else joint[len(joint) - len(ids[3:]) :] == ids[3:]


@pytest.mark.parametrize("name", NAMES)
def test_generation_starts_from_the_training_prompt(name: str, cases: Any) -> None:
    case: Case = cases(name)
    for row, answers in zip(case.given[:60], case.wanted, strict=False):
        if not system_is_lost(row, answers):
            ids = case.template.encode_prompt(read(row))
            assert ids[name in BOS_ADDED :] == answers[-1].prompt_ids, row


ASKED = {"role": "user", "content": "Tide at Oban?"}
TOOLS = [{"type": "function", "function": {"name": "tide_at", "description": "T.", "parameters": {"type": "object"}}}]


def called(*depths: int, content: str = "") -> Row:
    """A turn whose calls have no text that could be looked for but the tool's name, which its declaration has too."""
    functions = [{"name": "tide_at", "arguments": {"n": depth}} for depth in depths]
    calls = [{"id": f"call0000{n}", "type": "function", "function": f} for n, f in enumerate(functions)]
    return {"role": "assistant", "content": content, "tool_calls": calls}


SMALL: dict[str, tuple[Row, Callable[[Speech], bool]]] = {
    "a tool": (
        {"messages": [ASKED, {"role": "assistant", "content": "Yes."}], "tools": TOOLS},
        lambda s: bool(s.tools),
    ),
    "a call": ({"messages": [ASKED, called(3)], "tools": TOOLS}, lambda s: s.calls > 0),
    "two calls": ({"messages": [ASKED, called(3, 3)], "tools": TOOLS}, lambda s: s.calls > 1),
    "a call with text": ({"messages": [ASKED, called(3, content="tide")], "tools": TOOLS}, lambda s: s.beside),
    "reasoning": (
        {"messages": [ASKED, {"role": "assistant", "content": "It is high.", "reasoning_content": "high"}]},
        lambda s: s.reasoning,
    ),
    "documents": (
        {"messages": [ASKED, {"role": "assistant", "content": "High."}], "documents": [{"title": "T", "text": "Oban"}]},
        lambda s: s.documents,
    ),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("what", SMALL)
def test_what_a_template_leaves_out_is_refused_even_if_the_text_has_it_elsewhere(
    name: str, what: str, cases: Any
) -> None:
    row, is_written = SMALL[what]
    if is_written(SPEECH.get(name, Speech())):
        [samples] = cases(name).template.encode([read(row)])
        assert len(found(samples)) == 1
    else:
        with pytest.raises(DataError, match=r"leaves out|does not tell the model|rejects this row"):
            cases(name).template.encode([read(row)])


def test_a_system_message_between_turns_is_not_moved_to_the_front(cases: Any) -> None:
    answer = {"role": "assistant", "content": "Yes."}
    row = {"messages": [ASKED, answer, {"role": "system", "content": "Be brief."}, ASKED, answer]}
    with pytest.raises(DataError, match="leaves out the system message between turns of turn 3"):
        cases("r1-distill").template.encode([read(row)])
    [samples] = cases("llama3.1").template.encode([read(row)])
    assert len(found(samples)) == 2


@pytest.mark.parametrize("written", ["'' + call.function.arguments", "call.function.arguments"])
def test_arguments_are_text_where_a_template_joins_them(written: str, tmp_path: Path) -> None:
    """As in Kanana's and Apertus's templates; objects fail there, or come out as Python writes them."""
    source = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content }}{% for call in m.tool_calls or [] %}"
        "{{ call.function.name }} {{ WRITTEN }}{% endfor %}{{ '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ).replace("WRITTEN", written)
    folder = tokenizer_folder("qwen2.5", tmp_path)
    template = load_template(folder, "chat", ["messages"], chat_template=source)
    [samples] = template.encode([read({"messages": [ASKED, called(3)]})])
    assert template.tokenizer.decode(found(samples)[0][1]) == 'tide_at {"n": 3}<|im_end|>'


# What TRL learns beside the answer: tokens before it and after its stop token. Nothing of it is generated by a model:
# the first belong to the generation prompt, the others come after generation has stopped. Strop learns neither.
TRL_LEARNS_TOO: dict[str, tuple[list[str], list[str]]] = {
    "llama3": ([], []),
    "gemma3": ([], ["\n"]),
    "gpt-oss": (["<|start|>", "ass", "istant"], []),
    "phi-3": ([], []),
    "phi-3.5": ([], []),
    "qwen2.5": (["\n"], ["\n"]),
    "qwen3": ([], ["\n"]),
    "qwen3-instruct-2507": ([], ["\n"]),
}
# Phi-3's control tokens swallow the whitespace behind them. If an answer begins with some, the character at which TRL's
# mask begins is in the header's token, so TRL learns the header.
SWALLOWED = {"phi-3": ["<|assistant|>"], "phi-3.5": ["<|assistant|>"]}
# At least so many rows of 300 can be compared: all learned, one sample, no spanning token, and the same text. TRL's
# qwen3 keeps `<think>` in earlier turns, where the model's template drops it; its gpt-oss learns answers before the
# last one without their reasoning and without `<|return|>`.
TRL_COMPARED = {"gpt-oss": 80, "qwen2.5": 120, "qwen3": 80, "qwen3-instruct-2507": 120}


@pytest.mark.parametrize("name", sorted(TRL_LEARNS_TOO))
def test_masks_are_those_of_trl_but_for_tokens_that_no_model_generates(name: str, cases: Any) -> None:
    case: Case = cases(name)
    oracle, source, compared = case.oracle, trl_training_source(name), 0
    for row, answers in zip(case.given, case.wanted, strict=True):
        unmarked = all(is_learned(turn) for turn in row["messages"] if turn["role"] == "assistant")
        if not unmarked or any(not a.in_whole or a.ids is None for a in answers):
            continue
        with DAY:
            given = oracle.tokenizer.apply_chat_template(
                native(row),
                tools=row.get("tools"),
                chat_template=source,
                return_assistant_tokens_mask=True,
                return_dict=True,
                **DATE,
            )
        ids, [[sample]] = given["input_ids"], case.template.encode([read(row)])
        if ids[: len(sample.input_ids)] != sample.input_ids.tolist():
            assert name == "qwen3"
            continue
        compared += 1
        ours, theirs = learned_runs(sample.learned), learned_runs(given["assistant_masks"])
        for (start, end), (their_start, their_end) in zip(ours, theirs, strict=True):
            extra = [
                [oracle.tokenizer.decode([i]) for i in part] for part in (ids[their_start:start], ids[end:their_end])
            ]
            first, behind = TRL_LEARNS_TOO[name]
            assert extra == [first, behind] or extra == [SWALLOWED.get(name), behind], row
    assert compared >= TRL_COMPARED.get(name, 230)


def test_trl_teaches_r1_another_prompt_than_the_model_is_given(cases: Any) -> None:
    """The model's own prompt opens `<think>`; TRL's text does not, and its mask holds `<｜Assistant｜>`."""
    template, oracle = cases("r1-distill").template, cases("r1-distill").oracle
    row = {"messages": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Yes."}]}
    given = oracle.tokenizer.apply_chat_template(
        row["messages"],
        chat_template=trl_training_source("r1-distill"),
        return_assistant_tokens_mask=True,
        return_dict=True,
    )
    [(start, end)] = learned_runs(given["assistant_masks"])
    assert oracle.tokenizer.decode(given["input_ids"][start:end]) == "<｜Assistant｜>Yes.<｜end▁of▁sentence｜>"
    [[sample]] = template.encode([read(row)])
    [(before, ids)] = found([sample])
    assert before == oracle.ids(oracle.render(row, row["messages"][:1], True))
    assert oracle.tokenizer.decode(before).endswith("<｜Assistant｜><think>\n")
    assert oracle.tokenizer.decode(ids) == "\n</think>\n\nYes.<｜end▁of▁sentence｜>"


def test_every_training_template_is_compared() -> None:
    assert {*TRL_LEARNS_TOO, "r1-distill"} == {*TRL_NAMES}
