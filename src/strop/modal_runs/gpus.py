"""Modal's GPU types by memory: which ones are worth trying after one was too small."""

from collections.abc import Sequence

_GIB = {
    "T4": 16,
    "L4": 24,
    "A10": 24,
    "A100-40GB": 40,
    "L40S": 48,
    "A100-80GB": 80,
    "H100": 80,
    "RTX-PRO-6000": 96,
    "H200": 141,
    "B200": 180,
}
"""Of one GPU. What a run does not find room for on one, it does not find on several of the same type."""


def larger(gpus: Sequence[str], than: str) -> list[str]:
    """Those of `gpus` that have more memory than `than`, in their order."""
    return [gpu for gpu in gpus if _memory(gpu) > _memory(than)]


def _memory(gpu: str) -> int:
    return _GIB[gpu.partition(":")[0].rstrip("!+").upper()]
