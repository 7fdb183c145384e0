"""What comes before an answer in training is, to the last id, what generation starts from: also with hostile texts."""

import random
from dataclasses import replace
from pathlib import Path

import pytest

from real_templates import NAMES, tokenizer_folder
from strop.data.examples import Conversation, Message
from strop.data.template import Template, load_template

FIXTURES = Path(__file__).parents[2] / "fixtures"
NO_CONTROL_TOKENS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}Answer: {{ m.content }}\n\n"
    "{% else %}{{ m.role }}: {{ m.content }}\n{% endif %}{% endfor %}{% if add_generation_prompt %}Answer: {% endif %}"
)
PIECES = [
    "\n",
    "\n\n",
    " ",
    "  ",
    "\t",
    "\r\n",
    "Hi",
    "  x",
    " y",
    "é",
    "漢",
    "😀",
    "\u00a0",
    "\u200b",
    "1",
    "23",
    "'s",
]
PIECES += ["...", "<", "|", "im_end", "\n \n", "a", "-", "#", "```", "<|", "|>", "\ufeff", "A\u0301"]
IN_CI = 20
"""Rows for each template; `python tests/unit/data/test_asked_as_trained.py 2000` tries more."""


def hostile_text(rng: random.Random) -> str:
    text = "".join(rng.choice(PIECES) for _ in range(rng.randint(1, 5)))
    return text if text.strip() else f"{text}a"


def hostile_row(rng: random.Random) -> Conversation:
    turns = [Message("system", hostile_text(rng))] if rng.random() < 0.3 else []
    count = rng.randint(1, 4)
    for turn in range(count):
        learned = turn == count - 1 or rng.random() < 0.8
        turns += [Message("user", hostile_text(rng)), Message("assistant", hostile_text(rng), learned=learned)]
    return Conversation(tuple(turns))


def require_asked_as_trained(template: Template, chat: Conversation) -> int:
    """Compare each learned answer's prompt; returns the number of samples."""
    [samples] = template.encode([chat])
    seen: list[int] = []
    for sample in samples:
        ids = sample.input_ids.tolist()
        starts = [i for i in range(1, len(ids)) if sample.learned[i] and not sample.learned[i - 1]]
        turns = range(sample.num_turns or len(chat.messages))
        answers = [k for k in turns if chat.messages[k].role == "assistant" and chat.messages[k].learned]
        for start, k in zip(starts, answers[-len(starts) :], strict=True):
            asked = template.encode_prompt(replace(chat, messages=chat.messages[: k + 1]))
            assert ids[:start] == asked, (k, chat)
            seen.append(k)
    assert seen == [k for k, m in enumerate(chat.messages) if m.role == "assistant" and m.learned], (
        "each is learned once"
    )
    return len(samples)


def templates(folder: Path, name: str) -> Template:
    if name == "no control tokens":
        return load_template(FIXTURES / "smollm2-tokenizer", "chat", ["messages"], chat_template=NO_CONTROL_TOKENS)
    return load_template(tokenizer_folder(name, folder), "chat", ["messages"])


@pytest.mark.parametrize("name", [*NAMES, "no control tokens"])
def test_hostile_rows_are_asked_as_they_were_trained(tmp_path: Path, name: str) -> None:
    template, rng = templates(tmp_path, name), random.Random(11)
    for _ in range(IN_CI):
        require_asked_as_trained(template, hostile_row(rng))


def test_an_answer_that_begins_with_a_blank_line(tmp_path: Path) -> None:
    """SmolLM2's vocabulary has three newlines as one token; the first of them ends the prompt."""
    template = load_template(FIXTURES / "smollm2-tokenizer", "chat", ["messages"])
    turns = [Message("user", "a"), Message("assistant", "b"), Message("user", "c"), Message("assistant", "d")]
    assert require_asked_as_trained(template, Conversation(tuple(turns))) == 1
    turns[1] = Message("assistant", "\n\nb")
    assert require_asked_as_trained(template, Conversation(tuple(turns))) == 2
    turns[1] = Message("assistant", "\n\nb", learned=False)
    assert require_asked_as_trained(template, Conversation(tuple(turns))) == 1
    assert require_asked_as_trained(template, Conversation((turns[0], Message("assistant", "\n\nb")))) == 1


if __name__ == "__main__":
    import sys
    import tempfile

    for each in [*NAMES, "no control tokens"]:
        found, source = templates(Path(tempfile.mkdtemp()), each), random.Random(0)
        apart = sum(require_asked_as_trained(found, hostile_row(source)) > 1 for _ in range(int(sys.argv[1])))
        print(f"{each}: {apart} of {sys.argv[1]} rows are several samples", flush=True)
