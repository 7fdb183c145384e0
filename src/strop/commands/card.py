"""The model card beside a run's adapter and exports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from strop.commands.run import Run
from strop.data.examples import Conversation, Message
from strop.data.prompts import as_question, as_segments
from strop.modal_runs.vllm import RANKS
from strop.resolve import is_hub_id

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from strop.data.template import Template
    from strop.model.pretrained.folder import ModelFolder
    from strop.recipe import DataFile
    from strop.reporting.card import About
    from strop.reporting.usage import Form

_QUESTION = "YOUR QUESTION"


def write_card(
    run: Run, folder: Path, form: Form, template: Template, model: ModelFolder, base: str | None = None
) -> None:
    """Write the card of an adapter or an export into its folder.

    Args:
        run: The run that it is about.
        folder: Where it goes, and where the parity.json of an export is.
        form: Of the export.
        template: Of training.
        model: The base's folder.
        base: The base's name, if it is not the run's.
    """
    from strop.exporting.adapter import CONFIG_FILE
    from strop.exporting.parity.gate import PARITY_FILE
    from strop.reporting.card import CARD_FILE, render_card
    from strop.reporting.read import read_run

    parity = folder / PARITY_FILE
    measured = json.loads(parity.read_bytes()) if parity.exists() else None
    config = folder / CONFIG_FILE
    rank = int(json.loads(config.read_bytes())["r"]) if config.exists() else run.recipe.lora.r
    about = _about(run, template, model, base or run.recipe.model.model_name_or_path, rank)
    card = render_card(read_run(run.path, about.name), about, form, measured)
    (folder / CARD_FILE).write_text(card, encoding="utf-8")


def keep_card(run: Run, template: Template, model: ModelFolder, note: Callable[[str], None]) -> None:
    """Update the card in the run's adapter folder, unless somebody has edited it; a failure is only a note."""
    from strop.reporting.card import CARD_FILE, is_untouched

    path = run.adapter_path / CARD_FILE
    try:
        if path.exists() and not is_untouched(path.read_text(encoding="utf-8", errors="replace")):
            note(f"{path} was changed by hand and is left as it is; remove it to have a new one written")
        else:
            write_card(run, run.adapter_path, "adapter", template, model)
    except Exception as error:  # whatever it is, the adapter is sound
        note(f"{path} is not written: {error or type(error).__name__}")


def _about(run: Run, template: Template, base_folder: ModelFolder, spec: str, rank: int) -> About:
    from strop.reporting.card import About

    model, data = run.recipe.model, run.recipe.data
    decoded = template.tokenizer.convert_ids_to_tokens(sorted(template.stop_ids))
    base, is_on_hub = _published(spec)
    return About(
        name=run.path.resolve().name,
        base=base,
        base_id=base if is_on_hub else None,
        licence=_licence(base_folder.path),
        files=_names(data.train_file),
        held_out_files=_names(data.validation_file),
        template=template.name,
        prompt=_prompt(template),
        stop_tokens=tuple(map(str, decoded)),
        rank=next((known for known in RANKS if known >= rank), rank),
        nf4=model.load_in_4bit,
    )


def _published(spec: str) -> tuple[str, bool]:
    """What may be said of where something is: a hub id, else the last part of a path; and which of them."""
    if is_hub_id(spec) and not Path(spec).exists():
        return spec, True
    return Path(spec.rstrip("/")).name, False


def _names(specs: Sequence[str | DataFile]) -> tuple[str, ...]:
    return tuple(_published(spec if isinstance(spec, str) else spec.path)[0] for spec in specs)


def _prompt(template: Template) -> str:
    """A question as generation begins with it."""
    if template.chat:
        text = template.chat.prompt(Conversation((Message("user", _QUESTION),)))
    else:
        text = as_segments(template.name, as_question(template.name, _QUESTION))[0][0]
    bos = template.tokenizer.bos_token if template.bos_id is not None else ""
    return text if text.startswith(bos) else bos + text


def _licence(model_folder: Path) -> str | None:
    """What the base's own card says; None if it is not here or says nothing."""
    from huggingface_hub import ModelCard

    try:
        said = ModelCard.load(model_folder / "README.md", ignore_metadata_errors=True).data.license
    except Exception:  # no card, or one that is damaged
        return None
    return said if isinstance(said, str) else None
