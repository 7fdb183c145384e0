"""The model card beside a run's adapter and exports."""

from __future__ import annotations

import json
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from strop.commands.run import Run
from strop.data.examples import Conversation, Example, Row
from strop.data.prompts import as_question
from strop.data.sources import open_sources, read_examples
from strop.errors import StropError
from strop.modal_runs.vllm import RANKS, reasoning_parser, tool_parser
from strop.model.pretrained.locate import shared_name
from strop.resolve import is_hub_id
from strop.run.adapter import CARD_FILE
from strop.run.durable import replace_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from strop.data.template import Template
    from strop.model.pretrained.folder import ModelFolder
    from strop.recipe import DataFile
    from strop.reporting.card import About
    from strop.reporting.usage import Form

_QUESTION = "YOUR QUESTION"
_ROWS_READ = 1000


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
    from strop.reporting.card import render_card
    from strop.reporting.read import read_run

    parity = folder / PARITY_FILE
    measured = json.loads(parity.read_bytes()) if parity.exists() else None
    config = folder / CONFIG_FILE
    rank = int(json.loads(config.read_bytes())["r"]) if config.exists() else run.recipe.lora.r
    about = _about(run, template, model, base or run.recipe.model.model_name_or_path, rank)
    card = render_card(read_run(run.path, about.name), about, form, measured)
    replace_file(folder / CARD_FILE, card.encode())


def keep_card(run: Run, template: Template, model: ModelFolder, note: Callable[[str], None]) -> None:
    """Update the card in the run's adapter folder, unless somebody has edited it; a failure is only a note."""
    from strop.reporting.card import is_untouched

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
    base, is_on_hub = _published(shared_name(spec)[0])
    parts = parts_of(run)
    return About(
        name=run.path.resolve().name,
        base=base,
        base_id=base if is_on_hub else None,
        base_package=spec.removeprefix("package:").partition("/")[0] if spec.startswith("package:") else None,
        licence=_licence(base_folder.path),
        files=_names(data.train_file),
        held_out_files=_names(data.validation_file),
        template=template.name,
        prompt=_prompt(template),
        stop_tokens=tuple(map(str, decoded)),
        rank=next((known for known in RANKS if known >= rank), rank),
        nf4=model.load_in_4bit,
        parts=parts,
        system=template.system,
        parsers=_parsers(template, parts),
    )


def parts_of(run: Run) -> tuple[str, ...]:
    """What the first training rows of each source have beside questions and answers."""
    found: set[str] = set()
    data = run.recipe.data
    with suppress(StropError):  # where the rows are no longer here, the card says less
        for source in open_sources(data, data.train_file):
            for row in islice(read_examples([source], data.system), _ROWS_READ):
                found.update(_parts(row.example) if isinstance(row, Row) else ())
    return tuple(sorted(found))


def _parts(example: Example) -> Iterator[str]:
    if not isinstance(example, Conversation):
        return
    if example.messages[0].role == "system":
        yield "system messages"
    if sum(message.role == "user" for message in example.messages) > 1:
        yield "several turns"
    if any(message.reasoning or "</think>" in message.content for message in example.messages):
        yield "reasoning"
    if any(message.tool_calls for message in example.messages):
        yield "tool calls"
    if example.tools:
        yield "tools"
    if example.documents:
        yield "documents"


def _parsers(template: Template, parts: Sequence[str]) -> dict[str, str]:
    """VLLM's options for what the rows have."""
    source = template.chat.source if template.chat else ""
    found = {
        "--tool-call-parser": tool_parser(source) if "tools" in parts else None,
        "--reasoning-parser": reasoning_parser(source) if "reasoning" in parts else None,
    }
    return {option: value for option, value in found.items() if value}


def _published(spec: str) -> tuple[str, bool]:
    """What may be said of where something is: a hub id, else the last part of a path; and which of them."""
    if is_hub_id(spec) and not Path(spec).exists():
        return spec, True
    return Path(spec.rstrip("/")).name, False


def _names(specs: Sequence[str | DataFile]) -> tuple[str, ...]:
    return tuple(_published(spec if isinstance(spec, str) else spec.path)[0] for spec in specs)


def _prompt(template: Template) -> str:
    """A question as generation begins with it."""
    text = template.prompt(as_question(template.name, _QUESTION))
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
