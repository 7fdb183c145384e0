"""How a config.json says that positions become angles."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from strop.model.config_keys import Keys, is_integer, is_positive
from strop.recipe.wording import show

_KINDS = ("default", "linear", "llama3", "longrope")
_LIMIT = 1 << 40


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """How positions become angles.

    Attributes:
        theta: Base of the frequencies.
        width: Channels of a head that are rotated; the rest pass through.
        kind: default, linear, llama3 or longrope.
        parameters: What the kind needs: factor, low_freq_factor, short_factor, ... as in config.json.
        original_positions: Length the model was pre-trained on (llama3, longrope).
        attention_factor: Factor on cos and sin (longrope).
    """

    theta: float
    width: int
    kind: str
    parameters: Mapping[str, Any]
    original_positions: int
    attention_factor: float = 1.0

    @property
    def long_from(self) -> int | None:
        """Samples longer than this use other frequencies (longrope); None if length makes no difference."""
        return self.original_positions if self.kind == "longrope" else None


def read_rope(keys: Keys, family: str, head_dim: int, max_positions: int) -> RopeConfig:
    """From transformers 5's `rope_parameters`, or `rope_theta` and `rope_scaling` of older files."""
    where, parameters = _parameters(keys)
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if family == "phi3" and kind in ("su", "yarn"):
        kind = "longrope"  # the name in early Phi-3 files
    allowed = ("default", "longrope") if family == "phi3" else _KINDS
    if kind not in allowed:
        keys.fault(f"rope_type {show(kind)} is not supported for {family}; {', '.join(allowed)} are")
        kind = "default"
    inside = "rope_theta" in parameters
    theta = keys.number("rope_theta", 10000.0, parameters, where) if inside else keys.number("rope_theta", 10000.0)
    width = _width(keys, parameters, family, head_dim)
    original = _original_positions(keys, parameters, family, max_positions) if kind in ("llama3", "longrope") else 0
    if kind in ("linear", "llama3"):
        keys.number("factor", None, parameters, where)
    if kind == "llama3":
        _check_llama3(keys, parameters, where)
    factor = 1.0
    if kind == "longrope":
        _check_factors(keys, parameters, where, width)
        factor = _attention_factor(keys, parameters, where, max_positions, original)
    return RopeConfig(theta, width, kind, parameters, original or max_positions, factor)


def _parameters(keys: Keys) -> tuple[str, dict[str, Any]]:
    """The object that says it, with the name it goes by, and a dot."""
    old, new = keys.values.get("rope_scaling"), keys.values.get("rope_parameters")
    for key, value in (("rope_scaling", old), ("rope_parameters", new)):
        if value is not None and not isinstance(value, dict):
            keys.fault(f"{key} {show(value)} must be an object or null; correct it, or download the file again")
            return f"{key}.", {}
    if old and new and old != new:
        keys.fault(
            "rope_scaling and rope_parameters say different things, and programs differ in which they take; remove one"
        )
    key, value = ("rope_scaling", old) if old else ("rope_parameters", new or {})
    if nested := [name for name, each in value.items() if isinstance(each, dict)]:
        keys.fault(f"{key}.{nested[0]}: other angles in some layers are not supported")
    return f"{key}.", dict(value)


def _width(keys: Keys, parameters: Mapping[str, Any], family: str, head_dim: int) -> int:
    """How many channels of a head are rotated: an even number, because they are rotated in pairs."""
    share = parameters.get("partial_rotary_factor", keys.values.get("partial_rotary_factor"))
    if share is None:
        share = 1.0
    if not is_positive(share) or share > 1:
        keys.fault(f"partial_rotary_factor {show(share)} must be a number above 0 and at most 1")
        share = 1.0
    if share != 1 and family != "phi3":
        keys.fault(
            f"partial_rotary_factor {share} is not supported for {family}: transformers' model of that family rotates "
            "every channel; remove the key, or set it to 1"
        )
        share = 1.0
    width = int(head_dim * share)
    if width < 2 or width % 2:
        what = "head_dim" if share == 1 else "head_dim times partial_rotary_factor"
        keys.fault(f"{what} is {width}: channels are rotated in pairs, so it must be even and at least 2")
    return width


def _original_positions(keys: Keys, parameters: Mapping[str, Any], family: str, max_positions: int) -> int:
    """Beside the object it goes before the one inside, and Phi-3 has it there always, by default 4,096."""
    name = "original_max_position_embeddings"
    inside, beside = parameters.get(name), keys.values.get(name, 4096 if family == "phi3" else None)
    if inside is not None and beside is not None and inside != beside:
        keys.fault(
            f"{name} is {show(beside)} by itself{'' if name in keys.values else ' (by default)'} and {show(inside)} "
            "with the rope parameters; write the right one in both places"
        )
    value = inside if beside is None else beside
    value = max_positions if value is None else value
    if not is_integer(value) or not 2 <= value <= _LIMIT:
        keys.fault(f"{name} {show(value)} must be a whole number from 2 to {_LIMIT:,}")
        return 2
    return int(value)


def _check_llama3(keys: Keys, parameters: Mapping[str, Any], where: str) -> None:
    low, high = (keys.number(f"{side}_freq_factor", None, parameters, where) for side in ("low", "high"))
    if not keys.faults and high <= low:
        keys.fault(f"{where}high_freq_factor {high:g} must be more than low_freq_factor, which is {low:g}")


def _check_factors(keys: Keys, parameters: Mapping[str, Any], where: str, width: int) -> None:
    for key in ("short_factor", "long_factor"):
        values = parameters.get(key)
        if not isinstance(values, list) or not all(map(is_positive, values)):
            keys.fault(f"{where}{key} {show(values)} must be a list of numbers above 0")
        elif len(values) != width // 2:
            keys.fault(
                f"{where}{key} has {len(values)} numbers, but a head has {width // 2} pairs of channels to rotate"
            )


def _attention_factor(
    keys: Keys, parameters: Mapping[str, Any], where: str, max_positions: int, original: int
) -> float:
    """sqrt(1 + ln s / ln L) for a context stretched s times beyond L (Ding et al. 2024, arXiv 2402.13753)."""
    if parameters.get("attention_factor") is not None:
        return keys.number("attention_factor", 1.0, parameters, where)
    stretch = max_positions / original
    if parameters.get("factor") is not None:
        stretch = keys.number("factor", 1.0, parameters, where)
    return 1.0 if stretch <= 1 else math.sqrt(1 + math.log(stretch) / math.log(original))
