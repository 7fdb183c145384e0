"""What is published of each GPU that Modal rents out, by Modal's names.

Products are dense (datasheets print the double, with sparsity), at the form factor that clouds rent. Memory is what the
driver reports as total, a little under the datasheet's round number.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from strop.model.precision import GpuKind


@dataclass(frozen=True, slots=True)
class Gpu:
    """One type.

    Attributes:
        kind: Its name and CUDA compute capability.
        memory_gib: Total, as the driver reports it.
        tflops: Dense matrix products, 10^12 operations a second, by type of the factors.
        bandwidth: Of its memory, bytes a second.
    """

    kind: GpuKind
    memory_gib: float
    tflops: Mapping[str, float]
    bandwidth: float


def _gpu(name: str, capability: tuple[int, int], gib: float, bandwidth_gb: float, *tflops: float) -> tuple[str, "Gpu"]:
    names = ("float32", "bfloat16", "float8")
    return name, Gpu(GpuKind(name, capability), gib, dict(zip(names, tflops, strict=False)), bandwidth_gb * 1e9)


GPUS: Mapping[str, Gpu] = dict(
    (
        # name, capability, GiB, GB/s, float32, bfloat16 and float8 TFLOP/s
        _gpu("T4", (7, 5), 14.6, 320, 8.1),  # NVIDIA T4 datasheet; Turing has no bfloat16
        _gpu("L4", (8, 9), 22.0, 300, 30.3, 121, 242),  # L4 datasheet
        _gpu("A10", (8, 6), 22.0, 600, 31.2, 125),  # A10 datasheet
        _gpu("L40S", (8, 9), 44.4, 864, 91.6, 362, 733),  # L40S datasheet
        _gpu("A100-40GB", (8, 0), 39.4, 1555, 19.5, 312),  # A100 datasheet, SXM
        _gpu("A100-80GB", (8, 0), 79.1, 2039, 19.5, 312),  # the same
        _gpu("RTX-PRO-6000", (12, 0), 94.9, 1597, 120, 500, 1000),  # RTX PRO 6000 Blackwell Server Edition datasheet
        _gpu("H100", (9, 0), 79.1, 3350, 67, 989.4, 1978.9),  # H100 datasheet, SXM
        _gpu("H200", (9, 0), 139.8, 4800, 67, 989.4, 1978.9),  # H200 datasheet, SXM
        _gpu("B200", (10, 0), 178.3, 7700, 75, 2250, 4500),  # HGX B200 datasheet, an eighth
    )
)


def modal_name(device_name: str) -> str | None:
    """Modal's name of a GPU that the driver calls so, such as NVIDIA H200 or NVIDIA A100-SXM4-80GB."""
    words = set(re.findall("[A-Z0-9]+", device_name.upper().replace("A10G", "A10")))
    fitting = [name for name in GPUS if words.issuperset(name.split("-"))]
    return fitting[0] if fitting else None
