"""`strop doctor`: what this machine has, and what strop would do with it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from strop import __version__
from strop.commands.console import Overrides, Printing, out
from strop.errors import StropError
from strop.model.config import read_config
from strop.model.pretrained.folder import open_model
from strop.recipe import LoraSection, Recipe, load_recipe
from strop.resolve import NETWORK_TIMEOUT, ask_hub, cache_dir, expand

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

NEEDED = ("torch", "transformers", "safetensors", "numpy", "pydantic")
OPTIONAL = {"pyarrow": "parquet", "gguf": "gguf", "modal": "modal", "unsloth": "unsloth"}
_LITTLE_DISK_GIB = 20.0


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        topic: What was looked at.
        value: What was found.
        advice: What to do, if something is wrong.
    """

    topic: str
    value: str
    advice: str | None = None


def doctor(recipe: Recipe | None = None) -> Iterator[Finding]:
    """Look at versions, GPU, disk, hub and Modal, and say what the engine would choose. Changes nothing.

    Args:
        recipe: The engine's choice is for its model and LoRA; without it, for a common Llama with default LoRA.
    """
    yield Finding("strop", f"{__version__}, Python {platform.python_version()}, {platform.platform()}")
    yield Finding("packages", ", ".join(f"{name} {version(name)}" for name in NEEDED))
    yield Finding("extras", ", ".join(_extra(name, extra) for name, extra in OPTIONAL.items()))
    yield from _gpu()
    yield from _engine(recipe)
    yield from _disk()
    yield _hub()
    yield _modal()


def command(
    recipe: Annotated[str | None, typer.Argument(metavar="[RECIPE]", help="Whose model the choice is for.")] = None,
    overrides: Overrides = None,
) -> None:
    """Versions, GPU, driver, disk, hub and Modal on one screen, and what the engine would choose here."""
    findings = doctor(load_recipe(recipe, overrides or ()) if recipe else None)
    while (finding := _next(findings)) is not None:
        out.print(f"[bold]{escape(finding.topic):10}[/bold] {escape(finding.value)}", soft_wrap=True)
        if finding.advice:
            out.print(f"{'':10} [yellow]{escape(finding.advice)}[/yellow]", soft_wrap=True)


def _next(findings: Iterator[Finding]) -> Finding | None:
    with Printing().waiting("looking at this machine"):
        return next(findings, None)


def _extra(name: str, extra: str) -> str:
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return f"no {name} (pip install 'strop[{extra}]')"


def _gpu() -> Iterator[Finding]:
    import torch

    built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built for the CPU"
    if not torch.cuda.is_available():
        driver = _driver()
        if driver is None:
            yield Finding("GPU", f"none ({built})")
        elif torch.version.cuda is None:
            yield Finding("GPU", f"driver {driver}, but {built}", "install torch's CUDA build: pip install torch")
        else:
            advice = "update the driver, or check whether CUDA_VISIBLE_DEVICES hides the GPU"
            yield Finding("GPU", f"driver {driver}; {built} and cannot use it", advice)
        return
    for index in range(torch.cuda.device_count()):
        name, capability = torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)
        free, total = (size / 2**30 for size in torch.cuda.mem_get_info(index))
        value = f"{name}, capability {capability[0]}.{capability[1]}, {free:.0f} of {total:.0f} GiB free"
        crowded = "another process is using much of its memory" if free < 0.8 * total else None
        yield Finding(f"GPU {index}", value, crowded)
    yield Finding("driver", f"{_driver() or 'unknown'}; {built}")


def _driver() -> str | None:
    """The NVIDIA driver's version, if there is one."""
    if not (tool := shutil.which("nvidia-smi")):
        return None
    command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else None


def _engine(recipe: Recipe | None) -> Iterator[Finding]:
    """What training would choose: precision and layers."""
    from strop.model.precision import choose_device, choose_precision

    device = choose_device()
    try:
        against = _against(recipe, device)
        asked = (recipe.model.precision, recipe.model.load_in_4bit) if recipe else ("auto", False)
        precision = choose_precision(asked[0], device, against, asked[1])
    except StropError as error:
        yield Finding("engine", "this recipe's model cannot be trained here", str(error))
        return
    yield Finding("engine", precision.reason)
    layers = f"plain, because {against}" if against else "fused kernels, captured as CUDA graphs where that pays"
    yield Finding("layers", layers)


def _against(recipe: Recipe | None, device: torch.device) -> str | None:
    from strop.model.precision import why_not_fused

    if recipe is None:
        return why_not_fused(read_config(_LLAMA), LoraSection(), device)
    return why_not_fused(open_model(recipe.model, needs_weights=False).config, recipe.lora, device)


_LLAMA = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
}


def _disk() -> Iterator[Finding]:
    for topic, folder in (("cache", cache_dir()), ("runs", Path("runs"))):
        there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
        free = shutil.disk_usage(there).free / 2**30
        advice = None if os.access(there, os.W_OK) else f"{there} cannot be written"
        if advice is None and free < _LITTLE_DISK_GIB:
            advice = "a model of a few billion parameters and its checkpoints need more"
        yield Finding(topic, f"{folder.absolute()}, {free:.0f} GiB free", advice)


def _hub() -> Finding:
    """Whether models can be downloaded; never the token itself."""
    from huggingface_hub import constants, get_session, get_token

    token = "a token is set" if get_token() else "no token for gated models (set HF_TOKEN, or run `hf auth login`)"
    if constants.HF_HUB_OFFLINE:
        return Finding("hub", f"not asked, because HF_HUB_OFFLINE is set; cache {constants.HF_HUB_CACHE}; {token}")
    try:
        ask_hub(lambda: get_session().head(constants.ENDPOINT, timeout=NETWORK_TIMEOUT))
    except Exception as error:  # the hub's HTTP library, and so its errors, changed twice: no base class to name
        advice = f"use a local folder, or a model that is in the cache {constants.HF_HUB_CACHE}"
        return Finding("hub", f"cannot be reached ({type(error).__name__}); {token}", advice)
    return Finding("hub", f"reachable; {token}")


def _modal() -> Finding:
    if find_spec("modal") is None:
        return Finding("Modal", "its client is not installed; only `--on modal` needs it")
    config = expand(os.environ.get("MODAL_CONFIG_PATH") or "~/.modal.toml")
    if os.environ.get("MODAL_TOKEN_ID") or (config.exists() and "token_id" in config.read_text(encoding="utf-8")):
        return Finding("Modal", "a token is set")
    return Finding("Modal", "no token", "modal setup")
