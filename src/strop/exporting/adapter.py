"""The adapter in PEFT's format, in the base's own layout, and the check that what was written is what was trained."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from strop.errors import CheckpointError, StropError
from strop.microbatch.tree import Tree
from strop.model.lora import LoraAdapter
from strop.model.pretrained.headers import load_strict_json
from strop.recipe.wording import show
from strop.run.durable import staged_folder, write_durably

WEIGHTS_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"


def save_adapter(
    adapter: LoraAdapter, folder: Path, base: str, revision: str | None, carry: Callable[[Path], None]
) -> None:
    """Write a PEFT adapter folder; it takes its name whole and on the disk.

    Args:
        adapter: The trained adapter; written in float32, as it was trained.
        folder: The target folder; replaced if it exists.
        base: The value of `base_model_name_or_path`.
        revision: The base's revision, if the recipe pins one.
        carry: Writes what belongs with the adapter, such as the tokenizer, to the folder it is given.

    Raises:
        StropError: The written files do not read back as what was trained; the target is left unchanged.
        StorageError: They cannot be written; likewise.
    """
    tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in adapter.state_dict().items()}
    config = json.dumps(peft_config(adapter, base, revision), indent=2, sort_keys=True)
    with staged_folder(folder) as staging:
        write_durably(staging / WEIGHTS_FILE, save(tensors, metadata={"format": "pt"}))
        (staging / CONFIG_FILE).write_text(config + "\n", encoding="utf-8")
        carry(staging)
        check_adapter(adapter, staging)


def peft_config(adapter: LoraAdapter, base: str, revision: str | None) -> dict[str, Any]:
    """The contents of adapter_config.json."""
    section = adapter.section
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "revision": revision,
        "r": section.r,
        "lora_alpha": section.lora_alpha,
        "lora_dropout": section.lora_dropout,
        "use_rslora": section.use_rslora,
        "use_dora": False,
        "bias": "none",
        "target_modules": adapter.target_modules,
        "init_lora_weights": True,
        "fan_in_fan_out": False,
        "inference_mode": True,
    }


def load_adapter(adapter: LoraAdapter, folder: Path) -> None:
    """Fill an attached adapter from a PEFT folder.

    Raises:
        CheckpointError: Its adapter_config.json asks for another computation than the adapter makes.
        StropError: Keys or shapes differ from what the adapter expects.
    """
    _refuse_other_settings(adapter, folder / CONFIG_FILE)
    fill_adapter(adapter, load_file(folder / WEIGHTS_FILE), str(folder / WEIGHTS_FILE))


_SAME_ANSWERS = frozenset(
    {
        *("base_model_name_or_path", "revision", "task_type", "inference_mode", "lora_dropout", "auto_mapping"),
        *("peft_version", "megatron_core", "qalora_group_size"),
    }
)
"""Keys of adapter_config.json that change nothing of what an adapter answers."""

_REQUIRED = ("peft_type", "r", "lora_alpha", "target_modules")


def _refuse_other_settings(adapter: LoraAdapter, file: Path) -> None:
    """PEFT obeys each of these keys, so the file must say what is computed here."""
    try:
        found = load_strict_json(file.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{file}: cannot be read as JSON ({error})") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{file}: contains no JSON object")
    trained = peft_config(adapter, "", None)
    asked = dict.fromkeys(_REQUIRED) | found
    differ = [f"{key} {show(value)}" for key, value in asked.items() if not _is_as_trained(key, value, trained)]
    if differ:
        raise CheckpointError(
            f"{file}: {', '.join(differ)}: not what the run's recipe trained "
            f"(r {trained['r']}, lora_alpha {trained['lora_alpha']:g}, use_rslora {trained['use_rslora']}, modules "
            f"{', '.join(trained['target_modules'])}, and nothing beside them); put back the file that the run wrote"
        )


def _is_as_trained(key: str, value: Any, trained: Mapping[str, Any]) -> bool:
    if key in _SAME_ANSWERS:
        return True
    if key == "target_modules":
        return isinstance(value, list) and set(map(str, value)) == set(trained[key])
    if key in trained:
        return isinstance(value, bool) == isinstance(trained[key], bool) and bool(value == trained[key])
    return not value  # what an adapter of this kind does without


def copy_adapter(folder: Path, target: Path) -> None:
    """Copy weights and configuration from one PEFT folder into another, and nothing else."""
    for name in (WEIGHTS_FILE, CONFIG_FILE):
        shutil.copyfile(folder / name, target / name)


def fill_adapter(adapter: LoraAdapter, tensors: Mapping[str, Tensor], source: str) -> None:
    """Fill an attached adapter from tensors with PEFT's names; error messages name `source` as their origin.

    Raises:
        StropError: Keys or shapes differ from what the adapter expects.
    """
    expected = adapter.state_dict()
    if tensors.keys() != expected.keys():
        differ = sorted(tensors.keys() ^ expected.keys())
        raise StropError(f"{source}: {len(differ)} tensors are missing or unexpected, such as {differ[0]}")
    for name, tensor in expected.items():
        if tensors[name].shape != tensor.shape:
            raise StropError(f"{source}: {name} has shape {tuple(tensors[name].shape)}, expected {tuple(tensor.shape)}")
        tensor.copy_(tensors[name])


def check_adapter(adapter: LoraAdapter, folder: Path) -> None:
    """Read a written adapter back and compare it with the model in memory.

    Every expected key must be there, no lora_B may be all zero, the configuration must give the same scaling, and the
    file's tensors must give the same logits on a probe as the trained ones.

    Raises:
        StropError: One of these fails; the message says which.
    """
    written = load_file(folder / WEIGHTS_FILE)
    zero = [name for name, tensor in written.items() if ".lora_B." in name and not tensor.any()]
    if zero:
        raise StropError(
            f"{folder / WEIGHTS_FILE}: {len(zero)} lora_B matrices are all zero, such as {zero[0]}: these modules were "
            "not trained. Did the run take any step with a learning rate above 0?"
        )
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    rank = config["r"] ** 0.5 if config["use_rslora"] else config["r"]
    if config["lora_alpha"] / rank != adapter.scaling:
        raise StropError(
            f"{folder / CONFIG_FILE}: lora_alpha and r give a scaling other than the trained {adapter.scaling}"
        )
    trained = adapter.flat.clone()
    before = _probe(adapter)
    try:
        adapter.flat.zero_()
        load_adapter(adapter, folder)
        after = _probe(adapter)
    finally:
        adapter.flat.copy_(trained)
    if not torch.equal(before, after):
        worst = (before - after).abs().max().item()
        raise StropError(f"{folder / WEIGHTS_FILE}: logits differ from the trained model's by up to {worst:.3g}")


@torch.inference_mode()
def _probe(adapter: LoraAdapter) -> Tensor:
    """Logits of a few arbitrary tokens."""
    decoder = adapter.decoder
    training = decoder.training
    decoder.eval()
    ids_T = torch.arange(16, device=decoder.device) * 7 % decoder.config.vocab_size
    logits_TV = decoder.logits(decoder.packed_hidden_states(ids_T, Tree.of((16,))))
    decoder.train(training)
    return logits_TV
