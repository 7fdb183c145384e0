"""A run of a model with a few thousand parameters that has all that a run can have, in under a second."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tiny_models import write_checkpoint
from tiny_runs import write_rows

SPECIAL = ("<unk>", "<s>", "</s>")
MERGE = ("t", "h")
"""llama.cpp loads no tokenizer that has none."""


def write_small_model(folder: Path, seed: int = 0) -> Path:
    """A random model whose tokenizer has a token for each byte, and one more."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    write_checkpoint(folder, "smollm2", seed, vocab_size=257 + len(SPECIAL), **sizes, **heads)
    vocabulary = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), "".join(MERGE)]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(vocabulary)}, [MERGE]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def write_small_recipe(folder: Path, rows: int = 12, **train: Any) -> Path:
    """A recipe with evaluations, samples, the best weights, checkpoints and their pruning, with all that it needs.

    Its paths are those from `folder`, where strop is to be called.
    """
    settings = {
        "output_dir": "run",
        "per_device_train_batch_size": 2,
        "max_steps": 4,
        "learning_rate": 1e-2,
        "save_steps": 2,
        "save_total_limit": 1,
        "eval_steps": 2,
        "load_best_model_at_end": True,
    } | train
    recipe = {
        "model": {"model_name_or_path": write_small_model(folder / "model", seed=rows).name, "max_seq_length": 512},
        "lora": {"r": 2, "lora_alpha": 4},
        "data": {
            "train_file": write_rows(folder / "train.jsonl", rows, offset=rows).name,
            "validation_file": write_rows(folder / "validation.jsonl", 3, offset=100 + rows).name,
        },
        "train": settings,
    }
    path = folder / "small.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    return path
