"""What has to go with the weights so that others prompt and stop as in training: tokenizer, template, stop tokens."""

import json
import shutil
from pathlib import Path
from typing import Any

from strop.data.message_template import as_jinja
from strop.data.template import Template

_TOKENIZER_KEYS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "pad_token",
    "add_bos_token",
    "clean_up_tokenization_spaces",
    "model_max_length",
)
"""What is kept of tokenizer_config.json; the rest is in tokenizer.json, or read otherwise by each transformers."""


def write_tokenizer(template: Template, model_folder: Path, folder: Path) -> None:
    """Write the base's tokenizer, with the training template as its chat template, and every stop token.

    The class is the one that reads tokenizer.json as it is: for a LlamaTokenizer transformers 5 would build another
    normaliser, and Phi-3's prompts would get other ids than in training (see `strop.data.tokenizer`). Sampling
    settings of the base are left behind, for answers were scored without them.

    Args:
        template: Of training.
        model_folder: The base's.
        folder: Where the files go.
    """
    for name in ("tokenizer.json", "tokenizer.model"):  # the latter is for other programs' converters
        if (model_folder / name).exists():
            shutil.copyfile(model_folder / name, folder / name)
    found = json.loads((model_folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    config = {key: found[key] for key in _TOKENIZER_KEYS if key in found}
    write_json(folder / "tokenizer_config.json", config | {"tokenizer_class": "PreTrainedTokenizerFast"})
    (folder / "chat_template.jinja").write_text(as_jinja(template), encoding="utf-8")
    tokenizer = template.tokenizer
    ids = {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    known = {key: value for key, value in ids.items() if value is not None}
    write_json(folder / "generation_config.json", known | {"eos_token_id": sorted(template.stop_ids)})


def write_json(path: Path, value: Any) -> None:
    """Indented, as people read it."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
