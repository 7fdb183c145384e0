"""Every file of cases/{columns,rows}: what is learned of its first row and what is not used, or why it is refused."""

from pathlib import Path

import pytest

from rows import CHATML, Learned, require_verdict, sources, verdict
from strop.data.examples import Fault
from strop.data.sources import read_examples
from strop.data.template import Template, load_template

FIXTURES = Path(__file__).parents[2] / "fixtures"
CASES = FIXTURES / "cases"
CALL = '<tool_call>{"name": "tide_at", "arguments": {"port": %s}}</tool_call>'


MILL, QUAY = "The mill is by the weir.", "At quay 0."
PAIR, CHAT = Learned("alpaca", [QUAY]), Learned("messages", [MILL])
LAST_ONLY = dict.fromkeys(("loss_mask", "masked", "train", "trainable", "training", "weight"), CHAT)

VERDICTS: dict[str, Learned | str] = {
    "columns/input_output": PAIR,
    "columns/instruction_response": PAIR,
    "columns/problem_solution": PAIR,
    "columns/query_response": PAIR,
    "columns/question_answer": PAIR,
    "columns/roles_caps": Learned("messages", ["A0"]),
    "rows/alpaca_system_history": Learned("alpaca", ["Ahoy!", MILL]),
    "rows/chosen_system_prompt": Learned("prompt_completion", [MILL]),
    "rows/content_parts": CHAT,
    "rows/developer_role": CHAT,
    "rows/dolly_real_keys": Learned("alpaca", [MILL], ("category",)),
    "rows/dpo_flat": r"preference rows .*'chosen', 'rejected'.*data\.columns=\{prompt: prompt, completion: chosen\}",
    "rows/dpo_lf_sharegpt": r"preference rows: 'chosen' and 'rejected' .*\{prompt: conversations, completion: chosen\}",
    "rows/ends_with_user": Learned("messages", [MILL], ("turns after the last learned answer",)),
    "rows/function_call_legacy": Learned("messages", ["Looking it up." + CALL % '"Oban"']),
    "rows/gemini_contents": CHAT,
    "rows/hf_binarized": r"preference rows: .*\{prompt: prompt, completion: chosen\}.*\{messages: messages\}",
    "rows/images": "not supported: 'images': strop trains on text only",
    "rows/kto_prompt_completion": r"undesirable answer: 'label' is false, .*on_bad_row=skip",
    "rows/multi": Learned("messages", ["By the weir.", "Yes."]),
    "rows/prompt_response": Learned("alpaca", [MILL]),
    "rows/question_answer": Learned("alpaca", [MILL]),
    "rows/role_model": CHAT,
    "rows/sharegpt_system_col": Learned("sharegpt", ["THE MILL IS BY THE WEIR."]),
    "rows/sharegpt_tools_lf": Learned("sharegpt", [CALL % '"Oban"', "It is 1.2 m."]),
    "rows/starts_with_gpt": Learned("sharegpt", ["Hello, how can I help?", MILL]),
    "rows/sys_single": Learned("messages", ["By the weir."]),
    "rows/system_mid": Learned("messages", [MILL, "Yes."]),
    "rows/text_summary": r"a document or a pair: .*'text' and 'summary'; data\.format=text",
    "rows/text_with_label": r"a document or a pair: .*'text' and 'label'.*\{prompt: text, completion: label\}",
    "rows/think_inline_multi": Learned(
        "messages", [f"<think>\nhm\n</think>\n\n{MILL}", "<think>\nyes\n</think>\n\nYes."]
    ),
    "rows/thinking_field": Learned("messages", [f"<think>\nTHINKING about Where is the mill?\n</think>\n\n{MILL}"]),
    "rows/tools_call_with_content": Learned("messages", ["Let me look that up." + CALL % '"Oban"']),
    "rows/tools_declared_only": CHAT,
    "rows/tools_full": Learned("messages", [CALL % '"Port Ellen"', "It is 1.2 m."]),
    "rows/trl_conv_prompt_completion": Learned("prompt_completion", [MILL]),
    **{f"rows/turn_mask_{key}": verdict for key, verdict in LAST_ONLY.items()},
    "rows/two_users": CHAT,
}
"""Under a template that has a place for everything."""

NOT_IN_SMOLLM2: dict[str, str] = {
    "rows/function_call_legacy": "leaves out the tool call of turn 2",
    "rows/sharegpt_tools_lf": "does not tell the model of the row's tools",
    "rows/thinking_field": "leaves out the reasoning of turn 2",
    "rows/tools_call_with_content": "does not tell the model of the row's tools",
    "rows/tools_declared_only": "does not tell the model of the row's tools",
    "rows/tools_full": "does not tell the model of the row's tools",
}
"""SmolLM2's own template has no place for these."""

DOCUMENTS = ("rows/longdoc", "rows/longsome")


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Template]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STROP_CACHE", str(tmp_path_factory.mktemp("cache")))
        folder = FIXTURES / "smollm2-tokenizer"
        return {
            "whole": load_template(folder, "chat", ["messages"], chat_template=CHATML),
            "smollm2": load_template(folder, "chat", ["messages"]),
        }


def test_the_table_is_complete() -> None:
    files = {str(path.relative_to(CASES).with_suffix("")) for path in CASES.glob("[cr]o*s/*.jsonl")}
    assert files == VERDICTS.keys() | {*DOCUMENTS}


@pytest.mark.parametrize("name", VERDICTS)
def test_a_template_that_has_a_place_for_everything(templates: dict[str, Template], name: str) -> None:
    require_verdict(verdict(CASES / f"{name}.jsonl", templates["whole"]), VERDICTS[name])


@pytest.mark.parametrize("name", VERDICTS)
def test_the_template_of_smollm2(templates: dict[str, Template], name: str) -> None:
    found = verdict(CASES / f"{name}.jsonl", templates["smollm2"])
    require_verdict(found, NOT_IN_SMOLLM2.get(name, VERDICTS[name]))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents_are_learned_whole(templates: dict[str, Template], name: str) -> None:
    [source] = sources(CASES / f"{name}.jsonl")
    for row in read_examples([source]):
        assert not isinstance(row, Fault)
        [[sample]] = templates["whole"].encode([row.example])
        assert sample.learned[1:].all()
        assert templates["whole"].decode(sample.input_ids.tolist()) == row.example.text  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "columns", "answers"),
    [
        ("rows/dpo_flat", {"prompt": "prompt", "completion": "chosen"}, [MILL]),
        ("rows/dpo_lf_sharegpt", {"prompt": "conversations", "completion": "chosen"}, [MILL]),
        ("rows/hf_binarized", {"prompt": "prompt", "completion": "chosen"}, [MILL]),
        ("rows/hf_binarized", {"messages": "messages"}, [MILL]),
        ("rows/text_summary", {"prompt": "text", "completion": "summary"}, [MILL]),
        ("rows/text_with_label", {"prompt": "text", "completion": "label"}, [MILL]),
    ],
)
def test_what_a_refusal_advises_works(
    templates: dict[str, Template], name: str, columns: dict[str, str], answers: list[str]
) -> None:
    found = verdict(CASES / f"{name}.jsonl", templates["whole"], columns=columns)
    assert isinstance(found, Learned), found
    assert found.answers == answers
