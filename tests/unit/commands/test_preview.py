"""Which tokens of a preview are shown as learned, as reasoning and as tools."""

import re

import pytest

from strop.commands.preview import render_samples
from strop.data.audit import PreviewRow
from strop.data.examples import Origin

QWEN = (
    "<|im_start|>system\n# Tools\n<tools>\n{'name': 'add'}\n</tools><|im_end|>\n<|im_start|>user\nAdd.<|im_end|>\n",
    "<think>\nI can call it.\n</think>\nOne moment. <tool_call>\n{'name': 'add'}\n</tool_call><|im_end|>",
)
LLAMA = ("Add.<|eot_id|>", "<|python_tag|>add(1)<|eom_id|>")
MISTRAL = ("[AVAILABLE_TOOLS][{'name': 'add'}][/AVAILABLE_TOOLS][INST]Add.[/INST]", "[TOOL_CALLS][{'name': 'add'}]</s>")
PLAIN = ("Say it.", "It is said.")


def row(prompt: str, answer: str) -> PreviewRow:
    asked, said = (re.findall(r"<[^>]*>|\[/?[A-Z_]+\]|\s?[^<\[\s]+|\s|.", part) for part in (prompt, answer))
    tokens = tuple(token.replace(" ", "Ġ").replace("\n", "Ċ") for token in (*asked, *said))
    learned = (False,) * len(asked) + (True,) * len(said)
    return PreviewRow(Origin("rows.jsonl", 1), tuple(range(len(tokens))), tokens, learned)


def styled(prompt: str, answer: str) -> dict[str, str]:
    """The text of each style, from the first row of a preview in colour."""
    _, text = render_samples([row(prompt, answer)], has_colour=True)
    found: dict[str, str] = {}
    for span in text.spans[0:]:
        found[str(span.style)] = found.get(str(span.style), "") + text.plain[span.start : span.end]
    return found


def test_reasoning_calls_and_declarations_have_styles_of_their_own() -> None:
    found = styled(*QWEN)
    assert found["italic cyan"] == "<think>\nI can call it.\n</think>"
    assert found["bold magenta"] == "<tool_call>\n{'name': 'add'}\n</tool_call>"
    assert found["bold green"] == "\nOne moment. <|im_end|>"
    assert found["dim magenta"] == "<tools>\n{'name': 'add'}\n</tools>"


@pytest.mark.parametrize(
    ("sample", "call"), [(LLAMA, "<|python_tag|>add(1)"), (MISTRAL, "[TOOL_CALLS][{'name': 'add'}]")]
)
def test_calls_by_other_marks(sample: tuple[str, str], call: str) -> None:
    found = styled(*sample)
    assert found["bold magenta"] == call
    assert found["bold green"] in ("<|eom_id|>", "</s>")


def test_the_legend_names_what_is_there() -> None:
    legends = [next(render_samples([row(*sample)], has_colour=True)).plain for sample in (PLAIN, LLAMA, QWEN)]
    assert ["reasoning" in legend for legend in legends] == [False, False, True]
    assert ["tools" in legend for legend in legends] == [False, True, True]


def test_brackets_where_there_is_no_colour() -> None:
    legend, text = render_samples([row(*PLAIN)], has_colour=False)
    assert "[brackets]" in legend.plain
    assert text.plain == "\nrows.jsonl:1\nSay it.[It is said.]"
    assert list(render_samples([], has_colour=True)) == []
