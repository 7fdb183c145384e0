"""What a serving container runs: vLLM's own server on a base model and an adapter. Without a word of Modal."""

import subprocess
from dataclasses import dataclass

from strop.modal_runs.job import UPLOADED, Places

PORT = 8000
BASE = "base"
"""The base model's name at the endpoint, as at the one of `strop serve` here."""

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes for --max-lora-rank."""


@dataclass(frozen=True)
class ServingJob:
    """What to serve.

    Attributes:
        name: The tuned model's at the endpoint.
        model: A hub id, or an `UPLOADED` name.
        revision: Of a hub id.
        files: `UPLOADED` name of the folder with adapter, tokenizer, chat template and stop tokens.
        rank: The adapter's.
        max_model_len: Tokens that prompt and answer may have together.
        load_in_4bit: Hold the base in NF4, as it was trained.
        num_gpus: Over which the model is spread.
    """

    name: str
    model: str
    revision: str | None
    files: str
    rank: int
    max_model_len: int
    load_in_4bit: bool
    num_gpus: int


def command(job: ServingJob, places: Places, port: int = PORT) -> list[str]:
    """The command line of vLLM's server.

    Tokenizer, chat template and stop tokens are training's, from the uploaded folder, and nothing is taken from what
    the base model's folder says of them: not its sampling defaults either.
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
        "--host": "0.0.0.0",  # Modal's proxy comes from outside the container, and nobody else does
        "--port": str(port),
    }
    given = [word for name, value in options.items() if value is not None for word in (name, value)]
    return ["vllm", "serve", _place(job.model, places), "--enable-lora", *given]


def start(job: ServingJob, places: Places, port: int = PORT) -> "subprocess.Popen[bytes]":
    """Run the server; whoever asked for it waits for the port."""
    words = command(job, places, port)
    print(" ".join(words), flush=True)
    return subprocess.Popen(words)


def _place(name: str, places: Places) -> str:
    return str(places.data / name.removeprefix(UPLOADED)) if name.startswith(UPLOADED) else name
