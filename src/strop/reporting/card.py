"""A model card: what a trained model is, made from its run's files for people who do not have the run.

It is made to be published: no row of the data is in it, no path, and nothing of the machine but its GPU.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCardData

from strop.evaluation.result import METRICS
from strop.readable import clock, counted
from strop.reporting.facts import data_rows, seen_in_training
from strop.reporting.read import RunFiles
from strop.reporting.scores import score_rows
from strop.reporting.text import Markdown, cell, count, dollars, fenced, inline, short, shown
from strop.reporting.usage import Form, uses
from strop.reporting.verdict import glance
from strop.run.manifest import TrainingRows

_SEAL = re.compile(r"<!-- strop's model card, ([0-9a-f]{16}); one that is changed by hand is left as it is -->\n\Z")
_LIBRARY = {"adapter": "peft", "merged": "transformers", "gguf": "gguf"}
_RELATION = {"adapter": "adapter", "merged": "finetune", "gguf": "quantized"}
_SETTINGS = (
    ("LoRA rank", "lora.r"),
    ("LoRA alpha", "lora.lora_alpha"),
    ("LoRA dropout", "lora.lora_dropout"),
    ("Modules", "lora.target_modules"),
    ("Trained on", "data.train_on"),
    ("Learning rate", "train.learning_rate"),
    ("Schedule", "train.lr_scheduler_type"),
    ("Optimiser", "train.optim"),
    ("Weight decay", "train.weight_decay"),
    ("Gradient clipping", "train.max_grad_norm"),
    ("Longest sample, tokens", "model.max_seq_length"),
    ("Seed", "train.seed"),
)


@dataclass(frozen=True)
class About:
    """What a run's files do not say by themselves, or not in a form to be published.

    Attributes:
        name: The run's.
        base: The base model: a hub id, or the name of its file or folder.
        base_id: The hub id, if it is one.
        licence: That the base's own card names.
        files: Names of the training rows' files.
        held_out_files: Of the held-out rows'; empty where they are taken from the training files.
        template: Name of the training template.
        prompt: A question as it was trained.
        stop_tokens: That end an answer.
        rank: For vLLM, which takes certain ranks only.
        nf4: The base's weights are rounded to 4 bits when they are loaded, as they were in training.
        parts: What rows have beside questions and answers, such as tools.
        system: The system message that messages without one get.
        parsers: vLLM's options for its readers of tool calls and reasoning.
        base_package: The Python package that the base is in, if it is in one.
    """

    name: str
    base: str
    base_id: str | None
    licence: str | None
    files: tuple[str, ...]
    held_out_files: tuple[str, ...]
    template: str
    prompt: str
    stop_tokens: tuple[str, ...]
    rank: int
    nf4: bool
    parts: tuple[str, ...] = ()
    system: str | None = None
    parsers: Mapping[str, str] = field(default_factory=dict)
    base_package: str | None = None


def render_card(run: RunFiles, about: About, form: Form, parity: Mapping[str, Any] | None = None) -> str:
    """The card of a run's model.

    Args:
        run: The run.
        about: What else there is to say.
        form: Of the files that it is put beside.
        parity: Their parity.json.
    """
    environment = jinja2.Environment(
        finalize=inline,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters["cell"] = cell
    template = environment.from_string((Path(__file__).parent / "assets" / "card.md").read_text(encoding="utf-8"))
    evaluation, seen = run.evaluation, glance(run)
    body = template.render(
        form=form,
        about=about,
        rows=seen_in_training(run) or counted(run.manifest.data.rows or 0 if run.manifest.data else 0, "row"),
        scores=score_rows(evaluation),
        held_out=counted(evaluation.num_rows if evaluation else 0, "held-out row"),
        generated=counted(evaluation.num_generated if evaluation else 0, "generated answer"),
        losses=[loss and short(loss) for loss in seen.losses],
        parity=_parity(parity),
        is_gguf=_is_gguf(about.base),
        uses=_uses(about, form),
        stops=Markdown(" or ".join(map(inline, about.stop_tokens))),
        prompt=fenced(about.prompt),
        system=about.system and fenced(about.system),
        data=list(_data(run, about)),
        settings=list(_training(run, seen.seconds, seen.cost)),
        limits=list(_limits(run, about, form)),
    )
    text = f"---\n{_front_matter(run, about, form)}\n---\n\n{body}\n\n"
    return f"{text}<!-- strop's model card, {_digest(text)}; one that is changed by hand is left as it is -->\n"


def _uses(about: About, form: Form) -> list[tuple[str, Markdown]]:
    base = about.base_id or "PATH/TO/THE/BASE/MODEL"
    gguf = about.base if _is_gguf(about.base) else None
    return uses(form, about.name, base, about.rank, about.nf4, about.parsers, gguf)


def _is_gguf(base: str) -> bool:
    return base.lower().endswith(".gguf")


def is_untouched(card: str) -> bool:
    """Whether a card is as `render_card` gave it."""
    seal = _SEAL.search(card)
    return seal is not None and seal[1] == _digest(card[: seal.start()])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


def _front_matter(run: RunFiles, about: About, form: Form) -> str:
    """The hub's fields."""
    results = list(_results(run))
    data = ModelCardData(
        base_model=None if about.base_id is None else shown(about.base_id),
        library_name=_LIBRARY[form],
        license=None if about.licence is None else shown(about.licence),
        pipeline_tag="text-generation",
        tags=["lora", "strop", *(("gguf",) if form == "gguf" else ())],
        model_name=(shown(about.name) or "model") if results else None,
        eval_results=results or None,
        base_model_relation=_RELATION[form] if about.base_id else None,
    )
    return str(data.to_yaml()).strip()


def _results(run: RunFiles) -> Iterator[EvalResult]:
    tuned = run.evaluation.tuned if run.evaluation else {}
    for key, metric in METRICS.items():
        if metric.hub and (found := tuned.get(key)) is not None:
            yield EvalResult(
                task_type="text-generation",
                dataset_type="held-out",
                dataset_name="held-out rows",
                metric_type=metric.hub,
                metric_value=round(found.value, 4),
            )


def _parity(parity: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if parity is None:
        return None
    distance = parity.get("distance") or {}
    return {**parity, "kl": short(distance.get("kl"))}


def _data(run: RunFiles, about: About) -> Iterator[tuple[str, Any]]:
    yield "Files", Markdown(", ".join(map(inline, about.files)))
    if about.held_out_files:
        yield "Held-out files", Markdown(", ".join(map(inline, about.held_out_files)))
    facts = data_rows(run)
    yield from (row for row in facts["rows"] if not row[0].startswith("From "))  # files have their paths there
    if about.parts:
        yield "Rows with", ", ".join(about.parts)
    yield from ((f"Skipped: {reason}", rows) for reason, rows in facts["skipped"])


def _training(run: RunFiles, seconds: float | None, cost: float | None) -> Iterator[tuple[str, Any]]:
    manifest, recipe = run.manifest, run.recipe
    if manifest.num_trainable:
        yield "Trained parameters", count(manifest.num_trainable)
    yield from ((label, recipe[key]) for label, key in _SETTINGS if key in recipe)
    sizes = [recipe.get(f"train.{key}", "") for key in ("per_device_train_batch_size", "gradient_accumulation_steps")]
    if all(size.isdecimal() for size in sizes):
        yield "Samples a step", count(int(sizes[0]) * int(sizes[1]))
    yield "Steps", count(manifest.progress.step if manifest.progress else None)
    values = (
        ("Precision of the base", manifest.precision),
        ("Device", manifest.device),
        ("strop", manifest.strop),
        ("torch", manifest.torch),
    )
    yield from ((label, value) for label, value in values if value is not None)
    if seconds is not None:
        yield "Training time", clock(seconds)
    if cost is not None:
        yield "Cost", dollars(cost)


def _limits(run: RunFiles, about: About, form: Form) -> Iterator[Markdown]:
    data = run.manifest.data or TrainingRows()
    yield Markdown("Only held-out rows like those of training were tried, and it keeps the base model's own limits.")
    if data.lengths is not None:
        yield Markdown(
            f"Samples of training had at most {count(data.lengths.max)} tokens; nothing is known of longer prompts."
        )
    if overlap := data.held_out.overlap_prompts if data.held_out else None:
        asked = counted(overlap, "held-out question was", "held-out questions were")
        yield Markdown(f"{asked} in training, too: on these the figures flatter.")
    if data.truncated:
        yield Markdown(
            f"{counted(data.truncated, 'sample was', 'samples were')} cut at the limit; the ends were never seen."
        )
    if about.nf4 and form == "adapter":
        yield Markdown("It makes up for the rounding of its base to NF4: on other weights it is another model.")
    elif run.manifest.precision == "float8":
        yield Markdown("Its base was in float8 in training; on the bfloat16 base such adapters were measured as good.")
    if form == "gguf":
        yield Markdown("Types of few bits lose some of what was learned; the line on KL above says how much.")
