"""A run whose rows have tools, reasoning and a default system message: exported, served and asked as it was trained."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from test_serve_command import serving
from transformers import PreTrainedTokenizerFast

from real_templates import tokenizer_folder
from strop import Run
from strop.commands.load import load_run_template
from strop.data.examples import Conversation, Message
from strop.data.sources import held_out_examples
from strop.model.pretrained.folder import open_model
from template_rows import MASKS, Row, rows
from tiny_models import write_checkpoint
from tiny_runs import environment, strop
from waiting import PATIENCE

pytestmark = pytest.mark.xdist_group("tools")  # what they share takes 20 seconds to make

SYSTEM = 'Be "brief" é.'


def write_rows(path: Path, given: list[Row]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in given))
    return str(path)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tools")
    model = tokenizer_folder("qwen3", folder)
    size = -(-len(PreTrainedTokenizerFast.from_pretrained(model)) // 64) * 64
    sizes = {"vocab_size": size, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    write_checkpoint(model, "smollm2", gain=1.0, dtype=torch.bfloat16, max_position_embeddings=4096, **sizes)
    tokenizer_folder("qwen3", folder)
    given = rows("qwen3", 5, 60)
    recipe = {
        "model": {"model_name_or_path": str(model), "max_seq_length": 2048},
        "lora": {"r": 4, "lora_alpha": 8},
        "data": {
            "train_file": write_rows(folder / "train.jsonl", given[:30]),
            "validation_file": write_rows(folder / "validation.jsonl", given[30:]),
            "system": SYSTEM,
        },
        "train": {
            "output_dir": str(folder / "run"), "max_steps": 2, "learning_rate": 1e-2, "save_steps": 0, "sample_rows": 2
        },
    }  # fmt: skip
    (folder / "tiny.yaml").write_text(json.dumps(recipe))
    done = strop("train", folder / "tiny.yaml", cache=folder / "cache")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_peft_and_llama_cpp_ask_what_was_trained(workshop: Path) -> None:
    for to in ("adapter", "gguf"):
        done = strop("export", workshop / "run", "--to", to, "-o", workshop / to, cache=workshop / "cache")
        assert done.returncode == 0, done.stderr
        parity = json.loads((workshop / to / "parity.json").read_text())
        assert parity["same_prompts"] == parity["num_prompts"] > 40
        assert parity["num_answers"] == 6
        assert ("prompts are not in NFC" in done.stdout) == (to == "gguf")  # which llama.cpp does not make of text
    card = (workshop / "adapter" / "README.md").read_text()
    assert "--enable-auto-tool-choice --tool-call-parser hermes --reasoning-parser qwen3" in card
    assert "| Rows with | reasoning, several turns, system messages, tool calls, tools |" in card
    assert f"```\n{SYSTEM}\n```" in card
    assert "Chats with tools are not in it" in (workshop / "gguf" / "Modelfile").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    "spoil", ["replace('if tools', 'if false')", "replace('brief', 'brie')", "replace('</think>', '')"]
)
def test_a_template_that_asks_otherwise_is_not_exported(workshop: Path, spoil: str) -> None:
    program = (
        "import sys\n"
        "from strop.exporting import prompting\n"
        "right = prompting.as_jinja\n"
        f"prompting.as_jinja = lambda template: right(template).{spoil}\n"
        "from strop.cli import main\n"
        f"sys.argv = ['strop', 'export', {str(workshop / 'run')!r}, '-o', {str(workshop / 'wrong')!r}]\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True, text=True, env=environment(workshop / "cache"), timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == 9, done.stderr
    assert "prompts differ" in done.stderr
    assert not (workshop / "wrong").exists()


def sent(row: Row) -> list[dict[str, Any]]:
    """A row's turns before its last answer, as a client sends them."""
    turns = [{key: value for key, value in turn.items() if key not in MASKS} for turn in row["messages"]]
    last = max(k for k, turn in enumerate(turns) if turn["role"] == "assistant")
    for turn in turns:
        for call in turn.get("tool_calls") or []:
            arguments = call["function"]["arguments"]
            call["function"]["arguments"] = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return turns[:last]


def test_a_conversation_with_tools_is_served(workshop: Path) -> None:
    run = Run(workshop / "run")
    template = load_run_template(run, open_model(run.recipe.model))
    row = next(
        row for row in rows("qwen3", 5, 60)[30:] if "tools" in row and any(t.get("tool_calls") for t in sent(row))
    )
    with serving(workshop) as server:
        client: openai.OpenAI = server.client()
        given: Any = {"model": "run", "messages": sent(row), "tools": row["tools"], "max_tokens": 4, "temperature": 0}
        whole = client.chat.completions.create(**given)
        assert whole.usage is not None
        plain: Any = {"model": "run", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
        asked = Conversation((Message("system", SYSTEM), Message("user", "Hi")))
        usage = client.chat.completions.create(**plain).usage
        assert usage is not None
        assert usage.prompt_tokens == len(template.encode_prompt(asked))
        parts = list(client.chat.completions.create(stream=True, **given))
        texts = [(part.choices[0].delta.content or "") for part in parts if part.choices]
        reasons = [getattr(part.choices[0].delta, "reasoning_content", None) or "" for part in parts if part.choices]
        message = whole.choices[0].message
        assert "".join(texts) == (message.content or "")
        assert "".join(reasons) == (getattr(message, "reasoning_content", None) or "")


def test_a_held_out_row_is_asked_whole(workshop: Path) -> None:
    run = Run(workshop / "run")
    _, row = next(held_out_examples(run.recipe.data))
    assert isinstance(row, Conversation)
    arguments = ("--max-new-tokens", 6)
    done = strop("chat", workshop / "run", "--example", *arguments, cache=workshop / "cache")
    assert done.returncode == 0, done.stderr
    answer = done.stdout[done.stdout.index("asked as in its row, with 1 system message") :].partition("\n")[2]
    session = run_chat(workshop, "session.stream(row)")
    assert answer == session + "\n"
    asked = next(m.content for m in reversed(row.messages) if m.role == "user")
    alone = strop("chat", workshop / "run", "--prompt", asked, *arguments, cache=workshop / "cache")
    assert not alone.stdout.endswith(answer)  # its question alone is another prompt


def run_chat(workshop: Path, expression: str) -> str:
    program = (
        "from strop import Run, chat\n"
        "from pathlib import Path\n"
        "from strop.data.sources import held_out_examples\n"
        f"run = Run(Path({str(workshop / 'run')!r}))\n"
        "row = next(held_out_examples(run.recipe.data))[1]\n"
        "session = chat(run, max_new_tokens=6)\n"
        f"print('>>' + ''.join({expression}), end='')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True, text=True, env=environment(workshop / "cache"), timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.partition(">>")[2]


def test_a_question_takes_tools_and_a_system_message(workshop: Path, tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "tide", "description": "d", "parameters": {}}}
    (tmp_path / "tools.json").write_text(json.dumps([tool]))
    (tmp_path / "bad.json").write_text('[{"type": "function"}]')
    common = ("--prompt", "Hi", "--max-new-tokens", 6)
    given = ("--tools", tmp_path / "tools.json", "--system", "Sing.")
    here = strop("chat", workshop / "run", *common, *given, cache=workshop / "cache")
    assert here.returncode == 0, here.stderr
    plain = strop("chat", workshop / "run", *common, cache=workshop / "cache")
    assert here.stdout != plain.stdout
    with serving(workshop) as server:
        there = strop("chat", server.url, *common, *given, cache=workshop / "cache")
    assert there.returncode == 0, there.stderr
    assert here.stdout.endswith(there.stdout)
    for arguments, said in (
        (("--tools", tmp_path / "bad.json"), "no function with a name"),
        (("--tools", tmp_path / "none.json"), "No such file"),
        (("--example", *given), "asks a row of a run folder as it is"),
    ):
        done = strop("chat", workshop / "run", *common, *arguments, cache=workshop / "cache")
        assert done.returncode == 2, done.stdout
        assert said in done.stderr
