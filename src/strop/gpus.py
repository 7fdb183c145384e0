"""The GPUs that Modal rents out, by Modal's names: one table for the recipe, the forecast, the prices and the launcher.

Products are dense (datasheets print the double, with sparsity), at the form factor that clouds rent. Memory is what the
driver reports as total, a little under the datasheet's round number.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Gpu:
    """One type of GPU. It need not be in this machine: what asks a device for its capability takes a `Gpu` as well.

    Attributes:
        name: Modal's.
        capability: CUDA compute capability.
        memory_gib: Total, as the driver reports it.
        bandwidth: Of its memory, bytes a second.
        billing_key: How `modal billing rates --json` ends its gpu_hour_cost_ key. Read in public code that uses it, in
            2026-09.
        dollars_per_second: Of one GPU, in the stored price list (`modal_runs.prices.STORED`).
        tflops: Dense matrix products, 10^12 operations a second, by type of the factors.
    """

    name: str
    capability: tuple[int, int]
    memory_gib: float
    bandwidth: float
    billing_key: str
    dollars_per_second: float
    tflops: Mapping[str, float]

    @property
    def type(self) -> Literal["cuda"]:
        """As `torch.device` has it."""
        return "cuda"


def _gpu(
    name: str,
    capability: tuple[int, int],
    gib: float,
    bandwidth_gb: float,
    billing_key: str,
    dollars: float,
    *tflops: float,
) -> tuple[str, Gpu]:
    types = ("float32", "bfloat16", "float8")
    rates = dict(zip(types, tflops, strict=False))
    return name, Gpu(name, capability, gib, bandwidth_gb * 1e9, billing_key, dollars, rates)


GPUS: Mapping[str, Gpu] = dict(
    (
        # name, capability, GiB, GB/s, billing key, $ a second, TFLOP/s in float32, bfloat16 and float8
        _gpu("T4", (7, 5), 14.6, 320, "t4", 0.000164, 8.1),  # NVIDIA T4 datasheet; Turing has no bfloat16
        _gpu("L4", (8, 9), 22.0, 300, "l4", 0.000222, 30.3, 121, 242),  # L4 datasheet
        _gpu("A10", (8, 6), 22.0, 600, "a10g", 0.000306, 31.2, 125),  # A10 datasheet
        _gpu("L40S", (8, 9), 44.4, 864, "l40s", 0.000542, 91.6, 362, 733),  # L40S datasheet
        _gpu("A100-40GB", (8, 0), 39.4, 1555, "a100_40gb", 0.000583, 19.5, 312),  # A100 datasheet, SXM
        _gpu("A100-80GB", (8, 0), 79.1, 2039, "a100_80gb", 0.000694, 19.5, 312),  # the same
        # RTX PRO 6000 Blackwell Server Edition datasheet
        _gpu("RTX-PRO-6000", (12, 0), 94.9, 1597, "rtx6000", 0.000842, 120, 500, 1000),
        _gpu("H100", (9, 0), 79.1, 3350, "h100", 0.001097, 67, 989.4, 1978.9),  # H100 datasheet, SXM
        _gpu("H200", (9, 0), 139.8, 4800, "h200", 0.001261, 67, 989.4, 1978.9),  # H200 datasheet, SXM
        _gpu("B200", (10, 0), 178.3, 7700, "b200", 0.001736, 75, 2250, 4500),  # HGX B200 datasheet, an eighth
    )
)


_OTHER_NAMES = {"A10G": "A10", "A100": "A100-40GB"}
"""Names that Modal also takes, and what it gives for them."""


def modals_name(gpu: str) -> str:
    """A GPU as a recipe names it, with the type's name in the table: A100:2 is A100-40GB:2."""
    kind, colon, count = gpu.partition(":")
    return _OTHER_NAMES.get(kind.upper(), kind) + colon + count


def parse_gpu(gpu: str) -> tuple[str, int]:
    """Type and count of Modal's `TYPE:n`; H100! and B200+ count as their type."""
    kind, _, count = modals_name(gpu).partition(":")
    return kind.rstrip("!+").upper(), int(count or 1)


def larger(gpus: Sequence[str], than: str) -> list[str]:
    """Those of `gpus`, as a recipe names them, whose type has more memory than that of `than`, in their order.

    A run that does not fit on one GPU does not fit on several of the same type.
    """
    least = GPUS[parse_gpu(than)[0]].memory_gib
    return [gpu for gpu in gpus if GPUS[parse_gpu(gpu)[0]].memory_gib > least]


def modal_name(device_name: str) -> str | None:
    """Modal's name of a GPU, from the driver's, such as NVIDIA H200 or NVIDIA A100-SXM4-80GB."""
    words = set(re.findall("[A-Z0-9]+", device_name.upper().replace("A10G", "A10")))
    fitting = [name for name in GPUS if words.issuperset(name.split("-"))]
    return fitting[0] if fitting else None
