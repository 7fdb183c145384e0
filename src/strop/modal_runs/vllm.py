"""What a serving container runs: vLLM's own server on a base model and an adapter. Does not use Modal."""

import re
import subprocess
from dataclasses import dataclass

from strop.modal_runs.remote_run import UPLOADED, Places

PORT = 8000
BASE = "base"
"""The base model's name at the endpoint, the same as with a local `strop serve`."""

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM accepts for --max-lora-rank."""


_TOOL_PARSERS = {
    "mistral": r"\[TOOL_CALLS\]",
    "qwen3_coder": r"<function=",
    "hermes": r"<tool_call>",
    "llama3_json": r'\{"name": "',
}
"""vLLM's readers of tool calls, and what the chat templates contain whose calls they read; the first that is there."""

_OPENED = re.compile(r"(assistant(\\n|\n)|Assistant｜>)<think>")


def tool_parser(chat_template: str) -> str | None:
    """VLLM's --tool-call-parser for a chat template's source; None if none is known, or it writes no calls."""
    if "tool_calls" not in chat_template:
        return None
    return next((name for name, mark in _TOOL_PARSERS.items() if re.search(mark, chat_template)), None)


def reasoning_parser(chat_template: str) -> str | None:
    """VLLM's --reasoning-parser for a chat template's source; None if none is known, or it writes no reasoning."""
    if _OPENED.search(chat_template):
        return "deepseek_r1"
    return "qwen3" if "reasoning_content" in chat_template and "</think>" in chat_template else None


@dataclass(frozen=True)
class ServingJob:
    """What to serve.

    Attributes:
        name: The tuned model's name at the endpoint.
        model: A hub id, or an `UPLOADED` name.
        revision: Branch, tag or commit of a hub id.
        files: `UPLOADED` name of the folder with adapter, tokenizer, chat template and stop tokens.
        rank: The adapter's rank.
        max_model_len: The most tokens of prompt and answer together.
        load_in_4bit: Keep the base in NF4, as in training.
        num_gpus: Number of GPUs to spread the model over.
        tool_parser: vLLM's reader of tool calls; without one, requests with tools are refused.
        reasoning_parser: Its reader of reasoning.
    """

    name: str
    model: str
    revision: str | None
    files: str
    rank: int
    max_model_len: int
    load_in_4bit: bool
    num_gpus: int
    tool_parser: str | None = None
    reasoning_parser: str | None = None


def command(job: ServingJob, places: Places, port: int = PORT) -> list[str]:
    """The command line of vLLM's server.

    Tokenizer, chat template and stop tokens come from training, in the uploaded folder. The base model's own are not
    used, and neither are its sampling defaults.
    """
    files = _place(job.files, places)
    options = {
        "--revision": job.revision,
        "--tokenizer": files,
        "--served-model-name": BASE,
        "--lora-modules": f"{job.name}={files}",
        "--max-lora-rank": str(next(rank for rank in RANKS if rank >= job.rank)),
        "--chat-template": f"{files}/chat_template.jinja",
        "--chat-template-content-format": "string",
        "--generation-config": files,
        "--max-model-len": str(job.max_model_len),
        "--tensor-parallel-size": str(job.num_gpus),
        "--quantization": "bitsandbytes" if job.load_in_4bit else None,
        "--tool-call-parser": job.tool_parser,
        "--reasoning-parser": job.reasoning_parser,
        "--host": "0.0.0.0",  # Modal's proxy connects from outside the container; nobody else can
        "--port": str(port),
    }
    given = [word for name, value in options.items() if value is not None for word in (name, value)]
    # Without a reader of calls, tool_choice "none" is the only one that vLLM accepts: there it has to show the tools.
    choice = ["--enable-auto-tool-choice", "--exclude-tools-when-tool-choice-none"] if job.tool_parser else []
    flags = ["--enable-lora", *choice]
    return ["vllm", "serve", _place(job.model, places), *flags, *given]


def start(job: ServingJob, places: Places, port: int = PORT) -> "subprocess.Popen[bytes]":
    """Start the server; the caller waits for the port."""
    words = command(job, places, port)
    print(" ".join(words), flush=True)
    return subprocess.Popen(words)


def _place(name: str, places: Places) -> str:
    return str(places.data / name.removeprefix(UPLOADED)) if name.startswith(UPLOADED) else name
