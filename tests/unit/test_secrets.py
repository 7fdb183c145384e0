"""Secrets in a recipe, its keys, overrides and arguments: refused by name, and in no output, error or file."""

import json
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from strop.errors import RecipeError
from strop.recipe import Recipe, load_recipe
from strop.recipe.shipped import starter_recipe
from strop.secrets import kind_of, without_secrets
from tiny_runs import strop_all

GOOD = "model: m\ndata: {train_file: x.jsonl}\n"
CANARY = "Xq7Canary" + "0aB1c2D3e4F5g6H7i8J9"
HEX = "deadbeef00" * 4
SHAPES = {
    "Hugging Face": f"hf_{CANARY}",
    "GitHub": f"ghp_{CANARY}",
    "GitHub, fine-grained": f"github_pat_{CANARY}_{CANARY}",
    "GitLab": f"glpat-{CANARY}",
    "Modal": f"ak-{CANARY}",
    "Modal, secret": f"as-{CANARY}",
    "Modal, proxy": f"wk-{CANARY}",
    "Modal, proxy secret": f"ws-{CANARY}",
    "Weights & Biases": f"wandb_v1_{CANARY}_{CANARY}",
    "Weights & Biases, 40 digits": HEX,
    "Weights & Biases, own server": f"local-{HEX}",
    "AWS": "AKIA" + "XQ7CANARY0AB1C2D",
    "AWS, session": "ASIA" + "XQ7CANARY0AB1C2D",
    "OpenAI": f"sk-proj-{CANARY}-{CANARY}_x",
    "OpenAI, older": f"sk-{CANARY}",
    "Anthropic": f"sk-ant-api03-{CANARY}-x",
    "Google": f"AIza{CANARY}{CANARY}",
    "Slack": f"xoxb-1234567890-{CANARY}",
    "Azure": f"DefaultEndpointsProtocol=https;AccountName=x;AccountKey={CANARY}{CANARY}==",
    "a signed address": f"https://x.blob.core.windows.net/c/rows.jsonl?sv=1&sig={CANARY}",
    "bearer": f"Bearer {CANARY}",
    "JWT": f"eyJhbGciOiJIUzI1NiJ9.{CANARY}.{CANARY}",
    "a private key": f"-----BEGIN RSA PRIVATE KEY-----\n{CANARY}\n-----END RSA PRIVATE KEY-----",
    "user and password": f"https://user:{CANARY}@example.com/rows.jsonl",
    "user only": f"https://{CANARY}@example.com/rows.jsonl",
    "bucket": f"s3://user:{CANARY}@bucket/rows.jsonl",
}
NAMES = [
    *("api_key", "wandb_api_key", "WANDB_API_KEY", "token", "hub_token", "hf_token", "HF_TOKEN", "use_auth_token"),
    *(
        "aws_secret_access_key",
        "aws_access_key_id",
        "modal_token_secret",
        "password",
        "train.password",
        "openai-api-key",
    ),
    *("secret", "proxy_token", "connection_string", "authorization"),
]
OF_NO_SHAPE = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
"""An AWS secret key: 40 characters of base64, which only the name of the key tells from others."""

HARMLESS = {
    "model.revision": HEX,
    "model.model_name_or_path": f"/cache/models--x/snapshots/{HEX}",
    "data.train_file": "hf://datasets/org/rows@main/a.jsonl",
    "data.system": "Keep the bearer's password secret, and ask for the token: never for the api key.",
    "data.chat_template": "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}",
    "modal.secrets": ["huggingface-secret", "wandb-api-key"],
    "special_tokens": {"eos_token": "</s>", "pad_token": "<pad>"},
    "max_new_tokens": 12,
    "name": "as-internationalization-of-everything",
    "sha256": "ab" * 32,
    "train.output_dir": "runs/task-learning-sk-learn-with-everything",
    "wandb_project": "ws-streaming",
}


def require_hidden(text: str) -> None:
    for secret in (CANARY, HEX, OF_NO_SHAPE, "XQ7CANARY0AB1C2D", CANARY[:12], OF_NO_SHAPE[:10]):
        assert secret not in text, text


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_is_refused_wherever_it_is(tmp_path: Path, shape: str) -> None:
    secret, path = SHAPES[shape], tmp_path / "mine.yaml"
    assert kind_of("some.key", secret)
    quoted = json.dumps(secret)
    for text in (
        f"name: {quoted}",
        f"model_name_or_path: {quoted}",
        f"{quoted}: 1",
        f"train: {{{quoted}: 1}}",
        f"lora: {{target_modules: [q_proj, {quoted}]}}",
        f"environment: {{deep: [{{er: {quoted}}}]}}",
        f"learning_rate: {quoted}\nseed: {quoted}\nlora_r: 0",
    ):
        path.write_text(f"{GOOD}{text}\n")
        with pytest.raises(RecipeError) as caught:
            load_recipe(str(path))
        require_hidden(str(caught.value))
    path.write_text(GOOD)
    for overrides in (
        [f"model.revision2={secret}"],
        [f"lr={secret}"],
        [secret],
        [f"{secret}=1"],
        [f"data.train_file=[{secret}"],
        {"train": {"output_dir": secret}},
        {secret: {"a": secret}},
    ):
        with pytest.raises(RecipeError) as caught:
            load_recipe(str(path), overrides)
        require_hidden(str(caught.value))


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_enough(tmp_path: Path, name: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"{GOOD}{name}: {OF_NO_SHAPE}\nlr: {OF_NO_SHAPE}\ntrain_on: {OF_NO_SHAPE}\n")
    with pytest.raises(RecipeError, match=re.escape(f"{name} looks like an access token")) as caught:
        load_recipe(str(path), [f"{name}={OF_NO_SHAPE}", f"lora_r={OF_NO_SHAPE}"])
    require_hidden(str(caught.value))
    for broken in (f"{name}: {OF_NO_SHAPE}: x", f"{name}: '{OF_NO_SHAPE}", f"a: [{name}: {OF_NO_SHAPE}\n\t"):
        path.write_text(GOOD + broken)
        with pytest.raises(RecipeError) as caught:
            load_recipe(str(path))
        require_hidden(str(caught.value))


@pytest.mark.parametrize("key", HARMLESS)
def test_what_is_no_secret(key: str) -> None:
    assert kind_of(key, HARMLESS[key]) is None
    assert without_secrets(str(HARMLESS[key])) == str(HARMLESS[key])


def test_recipes_that_no_file_holds() -> None:
    for keys in (
        {"model": {"model_name_or_path": SHAPES["Hugging Face"]}},
        {"name": SHAPES["Hugging Face"], "model": 1},
    ):
        with pytest.raises(ValidationError) as caught:
            Recipe(**{"data": {"train_file": "x.jsonl"}, **keys})
        require_hidden(str(caught.value))
    with pytest.raises(RecipeError) as refused:
        starter_recipe(["x.jsonl"], SHAPES["user and password"])
    require_hidden(str(refused.value))


def commands(folder: Path) -> list[list[str]]:
    """Commands with secrets in their files, keys, overrides, options and names."""
    asked = []
    for number, secret in enumerate(SHAPES.values()):
        path = folder / f"r{number}.yaml"
        path.write_text(f"{GOOD}train: {{output_dir: {json.dumps(secret)}}}\nlr: {json.dumps(secret)}\n")
        asked.append(["check", str(path), f"lora.r={secret}"])
        command = ("evaluate", "chat", "export", "report", "logs", "pull", "plan", "train", "runs")[number % 9]
        if secret != HEX:  # a folder may well have the name of a commit
            asked.append([command, secret])
    syntax = folder / "syntax.yaml"
    syntax.write_text(f"model: m\ndata: [\nwandb_api_key: {OF_NO_SHAPE}: {CANARY}\n")
    rows = folder / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}\n' * 30)
    token = SHAPES["Hugging Face"]
    return [
        *asked,
        *([command, str(syntax)] for command in ("check", "plan", "train")),
        ["init", str(rows), "--model", SHAPES["user and password"], "-o", str(folder / "new.yaml")],
        ["init", token, SHAPES["a signed address"]],
        ["check", "demo", f"modal.secrets={token}"],
        ["check", "demo", f"password={OF_NO_SHAPE}", f"lr={OF_NO_SHAPE}"],
        ["plan", "demo", f"model={SHAPES['user and password']}"],
        ["train", "demo", f"train.output_dir={folder / token}"],
        ["chat", SHAPES["user and password"], "-p", "x"],
        ["train", "demo", "--on", token],
        [token],
        ["check", "demo", f"--{token}"],
        ["doctor"],
    ]


def test_the_canaries_are_in_no_output_and_no_file(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    secrets = {"HF_TOKEN": f"hf_{CANARY}", "WANDB_API_KEY": HEX, "STROP_API_KEY": CANARY, "HTTPS_PROXY": ""}
    done = strop_all(commands(tmp_path), work, STROP_CACHE=str(work / "cache"), **secrets)
    require_hidden(re.sub(r"\s*[│\n]\s*", "", done.stdout + done.stderr))
    for file in work.rglob("*"):
        require_hidden(str(file.relative_to(work)))
        if file.is_file():
            require_hidden(file.read_bytes().decode("utf-8", "replace"))
    assert "Traceback" not in done.stderr
