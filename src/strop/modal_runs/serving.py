"""Turns a finished run into an endpoint on Modal: uploads what is missing, deploys, and says where it is."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from strop.errors import CloudError, RecipeError
from strop.gpus import parse_gpu
from strop.modal_runs.follow import cloud_errors
from strop.modal_runs.prices import current_prices
from strop.modal_runs.remote_run import UPLOADED
from strop.modal_runs.upload import add_folder, add_model, upload_files
from strop.modal_runs.vllm import BASE, RANKS, ServingJob, reasoning_parser, tool_parser
from strop.model.config import DecoderConfig
from strop.model.pretrained.folder import open_model
from strop.model.pretrained.locate import locate_model
from strop.recipe import Recipe
from strop.resolve import expand
from strop.run.folder import RunFolder

Note = Callable[[str], None]

_SERVED = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "chat_template.jinja",
)
"""What vLLM takes from training rather than from the base: adapter, tokenizer, chat template, stop tokens."""


@dataclass(frozen=True)
class Deployed:
    """An endpoint on Modal.

    Attributes:
        app: Name of the Modal app.
        name: The tuned model's name; the other model is `base`.
        dollars_an_hour: Price while a container is up.
        idle_seconds: Time from the last request until the container stops.
    """

    app: str
    url: str
    name: str
    gpu: str
    dollars_an_hour: float
    price_source: str
    idle_seconds: int


def deploy(run: Path, recipe: Recipe, note: Note) -> Deployed:
    """Serve a run's adapter on its base model with vLLM; deploying a run again replaces its endpoint.

    Args:
        run: A finished run's folder.
        recipe: The run's recipe; its first GPU is used.
        note: Called with a line about each step.

    Raises:
        RecipeError: The run is not finished, or vLLM cannot serve it.
        CloudError: Modal cannot be reached, or refused.
    """
    from strop.modal_runs.modal_app import data_volume
    from strop.modal_runs.serving_app import IDLE_SECONDS, build_app

    adapter = run / "adapter"
    if missing := [name for name in _SERVED if not (adapter / name).exists()]:
        raise RecipeError(
            f"{run} has no finished adapter ({missing[0]} is missing); resume the run with: strop train {run}"
        )
    gpu, name = recipe.modal.gpu[0], _model_name(run)
    files: dict[str, Path] = {}
    place = add_folder("served", adapter, _SERVED, files)
    job = _job(recipe, name, UPLOADED + place, adapter, parse_gpu(gpu)[1], files)
    with cloud_errors():
        upload_files(files, data_volume, note)
        note(f"deploying {app_name(run)} on {gpu}; building a new image takes a few minutes")
        app, function = build_app(app_name(run), job, gpu, recipe.modal.secrets)
        app.deploy()
        url = function.get_web_url()
    if not url:
        raise CloudError(f"Modal gave {app_name(run)} no address; look it up with `modal app list`")
    prices = current_prices()
    dollars = prices.per_second(gpu) * 3600
    return Deployed(app_name(run), url, name, gpu, dollars, prices.source, IDLE_SECONDS)


def take_down(run: Path) -> str:
    """Stop a run's endpoint and its container; returns the app's name.

    Raises:
        CloudError: There is no endpoint, or Modal cannot be reached.
    """
    import modal

    with cloud_errors():
        modal.App.lookup(app_name(run)).stop()
    return app_name(run)


def app_name(run: Path) -> str:
    """The app name of a run: readable, and unique to the run."""
    name = re.sub(r"[^a-z0-9]+", "-", run.resolve().name.lower()).strip("-")[:30]
    return f"strop-{name}-{RunFolder(run).begun.run_id}"


def _job(recipe: Recipe, name: str, served: str, adapter: Path, num_gpus: int, files: dict[str, Path]) -> ServingJob:
    rank = int(json.loads((adapter / "adapter_config.json").read_bytes())["r"])
    if rank > RANKS[-1]:
        raise RecipeError(f"{adapter} has rank {rank}; vLLM serves ranks up to {RANKS[-1]}")
    section = recipe.model
    config = open_model(section, needs_weights=False).config
    chat_template = (adapter / "chat_template.jinja").read_text("utf-8")
    return ServingJob(
        name=name,
        model=add_model(_uploadable(section.model_name_or_path), files),
        revision=section.revision,
        files=served,
        rank=rank,
        max_model_len=_longest(config, section.max_seq_length),
        load_in_4bit=section.load_in_4bit,
        num_gpus=num_gpus,
        tool_parser=tool_parser(chat_template),
        reasoning_parser=reasoning_parser(chat_template),
    )


def _uploadable(spec: str) -> str:
    """For a GGUF file, the model folder that it was converted to for training; anything else unchanged."""
    is_file = spec.startswith("package:") or expand(spec).is_file()
    return str(locate_model(spec)) if is_file else spec


def _longest(config: DecoderConfig, trained: int) -> int:
    """With LongRoPE, vLLM picks its factors by the length it is told: keep that on training's side of the switch."""
    short = config.rope.long_from
    return config.max_positions if short is None or trained > short else short


def _model_name(run: Path) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", run.resolve().name)
    return f"{name}-tuned" if name == BASE else name
