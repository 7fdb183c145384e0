"""Converts an adapter to the other layout of its base: q, k, v and gate, up as separate matrices, or each group fused.

Phi-3 exists in both (microsoft's checkpoint has qkv_proj and gate_up_proj, unsloth's has them split), and an adapter
fits only the layout it was trained on. Both conversions are exact:

split -> fused: a fused module has one A for all its parts. So the As of the parts are stacked, and in B each part's
rows get their own columns: [B_q A_q; B_k A_k; B_v A_v] = diag(B_q, B_k, B_v) [A_q; A_k; A_v], of rank 3 r.

fused -> split: every part takes the whole A and its own rows of B, without the columns that are zero in those rows. So
converting there and back gives the original.

All modules are padded with zeros to one rank, and lora_alpha grows with the rank so that the scaling stays the same.
PEFT allows a rank per module, but vLLM reads only one.
"""

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from strop.errors import RecipeError, StropError
from strop.exporting.adapter import CONFIG_FILE, WEIGHTS_FILE
from strop.model.config import DecoderConfig
from strop.model.pretrained.tensors import part_rows

Layout = Literal["fused", "split"]
Factors = dict[str, tuple[Tensor, Tensor]]
"""A (r, I) and B (O, r) of each adapted module, by full name."""

PARTS = {"qkv": ("q_proj", "k_proj", "v_proj"), "gate_up": ("gate_proj", "up_proj")}
_FUSED_FAMILIES = ("phi3", "llama", "mistral")
_ERROR = 1e-9


def convert_layout(source: Path, target: Path, layout: Layout, config: DecoderConfig, base: str | None) -> None:
    """Write the adapter of `source` for a base with the other layout.

    Args:
        source: A PEFT adapter folder.
        target: The folder to fill.
        layout: The layout of the other base.
        config: Config of either base; they differ only in the layout.
        base: Name of the other base, recorded in adapter_config.json; None records no base.

    Raises:
        RecipeError: There is nothing to convert.
        StropError: The result does not compute the same as `source`.
    """
    old = read_factors(source)
    if any(_leaf(name) in _names(layout) for name in old) or not any(_leaf(name) in _names(None) for name in old):
        raise RecipeError(f"{source}: nothing to convert to the {layout} layout: it adapts {', '.join(_leaves(old))}")
    if layout == "fused" and config.family not in _FUSED_FAMILIES:
        raise RecipeError(f"{source}: {config.family} models have no fused layout; only Phi-3 has one")
    rows = part_rows(config)
    new = padded(dict(fuse(old, rows) if layout == "fused" else split(old, rows)))
    settings = json.loads((source / CONFIG_FILE).read_text(encoding="utf-8"))
    rank = next(iter(new.values()))[0].shape[0]
    ratio = rank / settings["r"]
    alpha = settings["lora_alpha"] * (math.sqrt(ratio) if settings["use_rslora"] else ratio)
    settings |= {"r": rank, "lora_alpha": alpha, "target_modules": _leaves(new)}
    settings |= {"base_model_name_or_path": base, "revision": None}
    _write(source, target, new, settings, rows)


def read_factors(folder: Path) -> Factors:
    """Read the matrices of a PEFT adapter folder."""
    tensors = load_file(folder / WEIGHTS_FILE)
    names = [name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")]
    return {name: (tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]) for name in names}


def fuse(factors: Factors, rows: dict[str, tuple[tuple[int, int], ...]]) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
    """Join parts: stack the As, put the Bs on a diagonal; a part without LoRA gets rows of zeros."""
    fused: dict[str, list[tuple[int, tuple[Tensor, Tensor]]]] = {}
    for name, pair in factors.items():
        if group := _group_of(name):
            fused.setdefault(f"{_parent(name)}.{group}_proj", []).append((PARTS[group].index(_leaf(name)), pair))
        else:
            yield name, pair
    for name, parts in fused.items():
        spans = rows[_leaf(name).removesuffix("_proj")]
        a_RI = torch.cat([a for _, (a, _) in sorted(parts, key=lambda part: part[0])])
        b_OR, start = torch.zeros(spans[-1][1], len(a_RI)), 0
        for index, (a, b) in sorted(parts, key=lambda part: part[0]):
            b_OR[slice(*spans[index]), start : start + len(a)] = b
            start += len(a)
        yield name, (a_RI, b_OR)


def split(
    factors: Factors, rows: dict[str, tuple[tuple[int, int], ...]]
) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
    """Separate the parts; one whose rows of B are zero in all layers was not trained and is dropped."""
    idle = {
        part
        for group, parts in PARTS.items()
        for part, span in zip(parts, rows[group], strict=True)
        if not any(b[slice(*span)].any() for name, (_, b) in factors.items() if _leaf(name) == f"{group}_proj")
    }
    for name, (a_RI, b_OR) in factors.items():
        group = _leaf(name).removesuffix("_proj")
        if group not in PARTS:
            yield name, _trimmed(a_RI, b_OR)
            continue
        for part, span in zip(PARTS[group], rows[group], strict=True):
            if part not in idle:
                yield f"{_parent(name)}.{part}", _trimmed(a_RI, b_OR[slice(*span)])


def _trimmed(a_RI: Tensor, b_OR: Tensor) -> tuple[Tensor, Tensor]:
    """The same product without the zero columns of B."""
    used = b_OR.any(dim=0)
    return a_RI[used], b_OR[:, used]


def padded(factors: Factors) -> Factors:
    """Pad all modules to the largest rank."""
    rank = max(len(a) for a, _ in factors.values())
    pad = torch.nn.functional.pad
    return {
        name: (pad(a, (0, 0, 0, rank - len(a))), pad(b, (0, rank - b.shape[1]))) for name, (a, b) in factors.items()
    }


def _write(
    source: Path, target: Path, new: Factors, settings: dict[str, Any], rows: dict[str, tuple[tuple[int, int], ...]]
) -> None:
    others = shutil.ignore_patterns(WEIGHTS_FILE, CONFIG_FILE, "README.md")
    shutil.copytree(source, target, ignore=others, dirs_exist_ok=True)
    tensors = {
        f"{name}.lora_{letter}.weight": matrix.contiguous()
        for name, pair in new.items()
        for letter, matrix in zip("AB", pair, strict=True)
    }
    save_file(tensors, target / WEIGHTS_FILE, metadata={"format": "pt"})
    (target / CONFIG_FILE).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    before, after = _answers(source, rows), _answers(target, rows)
    for name in before.keys() | after.keys():
        want, got = (answers.get(name, torch.zeros(())) for answers in (before, after))
        if (got - want).norm() > _ERROR * want.norm():
            raise StropError(f"{target}: {name} does not compute the same as in {source}; this is a bug in strop")


def _answers(folder: Path, rows: dict[str, tuple[tuple[int, int], ...]]) -> dict[str, Tensor]:
    """What each part of an adapter adds for a few random inputs, in float64, by the part's name when split."""
    settings = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    scaling = settings["lora_alpha"] / (math.sqrt(settings["r"]) if settings["use_rslora"] else settings["r"])
    answers: dict[str, Tensor] = {}
    for name, (a_RI, b_OR) in read_factors(folder).items():
        generator = torch.Generator().manual_seed(a_RI.shape[1])
        x = torch.randn(a_RI.shape[1], 4, generator=generator, dtype=torch.float64)
        y = scaling * (b_OR.double() @ (a_RI.double() @ x))
        group = _leaf(name).removesuffix("_proj")
        if group in PARTS:
            parts = zip(PARTS[group], rows[group], strict=True)
            answers |= {f"{_parent(name)}.{part}": y[slice(*span)] for part, span in parts}
        else:
            answers[name] = y
    return answers


def _names(layout: Layout | None) -> set[str]:
    """Module names that only checkpoints of this layout have; None gives those of both."""
    fused, apart = {f"{group}_proj" for group in PARTS}, {part for parts in PARTS.values() for part in parts}
    return {"fused": fused, "split": apart, None: fused | apart}[layout]


def _group_of(name: str) -> str | None:
    return next((group for group, parts in PARTS.items() if _leaf(name) in parts), None)


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _leaves(factors: Factors) -> list[str]:
    return sorted({_leaf(name) for name in factors})
