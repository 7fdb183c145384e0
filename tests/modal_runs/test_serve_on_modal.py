"""`strop serve --on modal` against the fake: what is deployed, and what its container runs."""

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from modal_proto import api_pb2

from fake_modal import SECRETS
from fake_modal_deployments import FakeDeployments
from real_templates import template_source
from strop.data.template import load_template
from strop.exporting.prompting import write_tokenizer
from strop.modal_runs.remote_run import Places
from strop.modal_runs.vllm import ServingJob, command, reasoning_parser, tool_parser
from tiny_runs import write_recipe
from waiting import PATIENCE

Client = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def modal(tmp_path: Path) -> Iterator[FakeDeployments]:
    """A fake with deployments, whose containers find a stub under the name vllm."""
    programs = tmp_path / "bin"
    programs.mkdir()
    stub = Path(__file__).parents[1] / "support" / "stub_vllm.py"
    (programs / "vllm").write_text(f'#!/bin/sh\nexec {sys.executable} {stub} "$@"\n')
    (programs / "vllm").chmod(0o755)
    (tmp_path / "modal").mkdir()
    path = {"PATH": f"{programs}:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
    with FakeDeployments(tmp_path / "modal", SECRETS, path).running() as fake:
        yield fake  # type: ignore[misc]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """What `strop serve` reads of a finished run, which asks for two GPUs and a secret."""
    recipe = write_recipe(tmp_path)
    contents = json.loads(recipe.read_text()) | {"modal": {"gpu": ["L4:2", "H200"], "secrets": ["huggingface"]}}
    run, model = tmp_path / "run", tmp_path / "model"
    (run / "adapter").mkdir(parents=True)
    (run / "recipe.yaml").write_text(json.dumps(contents))
    (run / "run.json").write_text(json.dumps({"run_id": "0123456789ab", "template": "chat"}))
    write_tokenizer(load_template(model, "chat", ["alpaca"]), model, run / "adapter")
    (run / "adapter" / "adapter_config.json").write_text('{"r": 4}')
    (run / "adapter" / "adapter_model.safetensors").write_bytes(b"weights")
    return run


def get(port: int, path: str) -> Any:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=PATIENCE) as answer:
        return json.loads(answer.read())


@pytest.mark.slow
def test_an_endpoint_is_deployed_called_and_stopped(modal: FakeDeployments, client: Client, run: Path) -> None:
    done = client("serve", run, "--on", "modal")
    assert done.returncode == 0, done.stdout + done.stderr

    function = modal.sent("FunctionCreate")[-1].function
    web = function.webhook_config
    assert web.type == api_pb2.WEBHOOK_TYPE_WEB_SERVER
    assert web.requires_proxy_auth  # nobody without a token of the workspace
    assert (web.web_server_port, web.web_server_startup_timeout) == (8000, 1200)
    assert (function.resources.gpu_config.gpu_type, function.resources.gpu_config.count) == ("L4", 2)
    settings = function.autoscaler_settings
    assert (settings.min_containers, settings.max_containers, settings.scaledown_window) == (0, 1, 300)
    assert function.max_concurrent_inputs == 64
    assert {mount.mount_path: (mount.volume_id, mount.read_only) for mount in function.volume_mounts} == {
        "/strop/data": ("vo-strop-data", True),
        "/strop/cache": ("vo-strop-cache", False),
    }
    commands = [line for request in modal.sent("ImageGetOrCreate") for line in request.image.dockerfile_commands]
    assert any(line.startswith("FROM nvidia/cuda:12.9") for line in commands)
    assert any("uv pip install" in line and "--require-hashes" in line for line in commands)
    [name] = modal.deployed
    assert name == "strop-run-0123456789ab"
    assert modal.apps[modal.deployed[name]] == api_pb2.APP_STATE_DEPLOYED

    assert "serving run (tuned) and base on https://workspace--strop-run-serve.modal.run/v1" in done.stdout
    assert "$1.82 an hour while its L4:2 is up" in done.stdout
    assert "curl https://workspace--strop-run-serve.modal.run/v1/chat/completions" in done.stdout
    assert '-H "Modal-Key: $MODAL_PROXY_TOKEN_ID" -H "Modal-Secret: $MODAL_PROXY_TOKEN_SECRET"' in done.stdout
    assert "strop chat https://workspace--strop-run-serve.modal.run --compare" in done.stdout

    task, port = modal.start_web()
    modal.wait_for(lambda: any("vllm serve" in item.data for item in task.call.logs))
    modal.wait_for(lambda: answers(port))
    assert [card["id"] for card in get(port, "/v1/models")["data"]] == ["base", "run"]
    options = get(port, "/options")
    assert options["host"] == "0.0.0.0"
    assert (options["tensor_parallel_size"], options["max_lora_rank"], options["max_model_len"]) == (2, 8, 512)
    assert options["tokenizer"] == options["generation_config"] == options["lora_modules"].removeprefix("run=")

    sent = len(modal.sent("VolumePutFiles2"))
    again = client("serve", run, "--on", "modal", "--gpu", "H100")
    assert again.returncode == 0, again.stderr
    assert "nothing to upload" in again.stdout
    assert len(modal.sent("VolumePutFiles2")) == sent
    assert list(modal.deployed) == [name]
    assert modal.sent("FunctionCreate")[-1].function.resources.gpu_config.gpu_type == "H100"

    assert client("serve", run, "--on", "modal", "--stop").returncode == 0
    assert modal.deployed == {}
    gone = client("serve", run, "--on", "modal", "--stop")
    assert gone.returncode == 8
    assert "not found on Modal" in gone.stderr


def answers(port: int) -> bool:
    try:
        return bool(get(port, "/health"))
    except OSError:
        return False


JOB = ServingJob("mine", "org/model", "main", "uploaded:served/abc", 12, 4096, True, 1)


def test_the_command_line_is_training_throughout() -> None:
    words = command(JOB, Places())
    assert words[:4] == ["vllm", "serve", "org/model", "--enable-lora"]
    given = dict(zip(words[4::2], words[5::2], strict=True))
    assert given == {
        "--revision": "main",
        "--tokenizer": "/strop/data/served/abc",
        "--served-model-name": "base",
        "--lora-modules": "mine=/strop/data/served/abc",
        "--max-lora-rank": "16",
        "--chat-template": "/strop/data/served/abc/chat_template.jinja",
        "--chat-template-content-format": "string",
        "--generation-config": "/strop/data/served/abc",
        "--max-model-len": "4096",
        "--tensor-parallel-size": "1",
        "--quantization": "bitsandbytes",
        "--host": "0.0.0.0",
        "--port": "8000",
    }


@pytest.mark.parametrize(
    ("name", "tools", "reasoning"),
    [
        ("qwen2.5", "hermes", None),
        ("qwen3", "hermes", "qwen3"),
        ("qwen3-instruct-2507", "hermes", None),
        ("qwen3-thinking-2507", "hermes", "deepseek_r1"),
        ("qwq", "hermes", "deepseek_r1"),
        ("r1-distill", None, "deepseek_r1"),
        ("hermes-3-tool_use", "hermes", None),
        ("llama3.1", "llama3_json", None),
        ("llama3.2", "llama3_json", None),
        ("llama3", None, None),
        ("mistral-v0.3", "mistral", None),
        ("phi-4-mini", None, None),
        ("smollm3", None, None),
        ("granite-3.3", None, None),
        ("zephyr", None, None),
    ],
)
def test_vllm_reads_what_the_template_writes(name: str, tools: str | None, reasoning: str | None) -> None:
    source = template_source(name)
    assert (tool_parser(source), reasoning_parser(source)) == (tools, reasoning)
    words = command(replace(JOB, tool_parser=tools, reasoning_parser=reasoning), Places())
    assert ("--enable-auto-tool-choice" in words) == (tools is not None)
    assert ("--exclude-tools-when-tool-choice-none" in words) == (tools is not None)
    assert [words[i + 1] for i, word in enumerate(words) if word == "--tool-call-parser"] == [tools] * bool(tools)
    assert [words[i + 1] for i, word in enumerate(words) if word == "--reasoning-parser"] == [reasoning] * bool(
        reasoning
    )


def test_the_lock_pins_vllm_with_hashes() -> None:
    lock = (Path(__file__).parents[2] / "src/strop/modal_runs/vllm.lock").read_text()
    pins = [line for line in lock.splitlines() if "==" in line]
    assert "vllm==0.21.0 \\" in pins
    assert lock.count("--hash=sha256:") >= len(pins)
    assert "://" not in lock
