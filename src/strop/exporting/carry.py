"""What has to go with the weights so that others prompt and stop as in training: tokenizer, template, stop tokens."""

import json
import shutil
from pathlib import Path
from typing import Any

from strop.data.template import Template
from strop.data.tokenizer import chat_template_of
from strop.resolve import TOKENIZER_FILES

_DATE = '{%- set date_string = "26 Jul 2024" %}'  # as strop.data.chat renders; Llama 3's templates print it
_BOS = "{{- bos_token }}"


def write_tokenizer(template: Template, model_folder: Path, folder: Path) -> None:
    """Copy the base's tokenizer files, with the chat template as it was trained and every stop token.

    The class is the one that reads tokenizer.json as it is: for LlamaTokenizer transformers 5 builds another
    normaliser, and Phi-3's prompts get other ids than in training.
    """
    for file in (file for pattern in TOKENIZER_FILES for file in model_folder.glob(pattern)):
        shutil.copyfile(file, folder / file.name)
    config = _read(model_folder / "tokenizer_config.json") | {"tokenizer_class": "PreTrainedTokenizerFast"}
    config.pop("auto_map", None)
    source = template_as_trained(template)
    config.pop("chat_template", None)
    write_json(folder / "tokenizer_config.json", config)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    if source is not None:
        (folder / "chat_template.jinja").write_text(source, encoding="utf-8")
    write_json(folder / "generation_config.json", generation_config(template, model_folder))


def template_as_trained(template: Template) -> str | None:
    """The chat template that gives the prompts of training by itself.

    Training puts a BOS before every prompt if the tokenizer asks for one, whether or not the template writes it,
    and a fixed date where a template would print today's. Both are written into the template here.
    """
    source = chat_template_of(template.tokenizer)
    if source is None:
        return None
    if "date_string" in source:
        source = _DATE + source
    if template.bos_id is not None and template.name == "chat":
        messages = [{"role": "user", "content": "x"}]
        text = template.tokenizer.apply_chat_template(messages, chat_template=source, tokenize=False)
        if not text.startswith(template.tokenizer.bos_token):
            source = _BOS + source
    return source


def generation_config(template: Template, model_folder: Path) -> dict[str, Any]:
    """The base's generation_config.json with all ids that ended answers in training."""
    config = _read(model_folder / "generation_config.json")
    tokenizer = template.tokenizer
    ids = {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    missing = {key: value for key, value in ids.items() if value is not None and config.get(key) is None}
    return config | missing | {"eos_token_id": sorted(template.stop_ids)}


def write_json(path: Path, value: Any) -> None:
    """Indented, as people read it."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}
