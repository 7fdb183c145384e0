"""The time of a microbatch from shapes: products, attention, passes over memory, and a layer's fixed cost.

Products take as long as their operations, or as long as it takes to read the frozen weights if there are few tokens.

Each term is operations or bytes, divided by the share of the GPU's published rate that an H200 reached. Five numbers
for the fused layers are solved from `published.FIGURES` (`benchmarks/fit_forecast.py`): the two batch sizes give a
layer's fixed cost, however small the microbatch, the difference between short and long samples gives attention, and
the rest is bytes. `limit_of` gives the least time at the published rates themselves.
"""

from dataclasses import dataclass

from strop.forecast.memory import fused_layer_bytes
from strop.forecast.published import GPU, PRODUCTS
from strop.forecast.workload import Load, Shape
from strop.gpus import GPUS, Gpu, modal_name
from strop.run.manifest import SpeedLimit

_MEASURED = GPUS[GPU]
_PRODUCT_SHARES = {name: rate / (1e12 * _MEASURED.tflops[name]) for name, rate in PRODUCTS.items()} | {"float32": 0.8}
"""Shares of the published rate that products reach; float32's is an assumption."""

_ATTENTION_SHARE = 0.330
"""Share of the published bfloat16 rate, counting only the pairs that the mask keeps."""

_PASSES = {"float8": 17.6, "bfloat16": 16.7, "nf4": 16.7}
"""How often what a layer keeps goes through memory between the products, forward and backward."""

_LAYER_SECONDS = {"float8": 0.344e-3, "bfloat16": 0.259e-3, "nf4": 0.259e-3}
"""Time of kernels too small to fill a GPU, for each layer of each microbatch."""

_PLAIN_PASSES = 50.0
"""The same for the plain layers: three times as often. Not measured."""

_PLAIN_LAYER_SECONDS = 4.3e-3
"""Time to launch a plain layer's kernels, forward and backward, from 7.7 steps a second of SmolLM2-135M."""

_BYTES = {"float8": 1, "bfloat16": 2, "float32": 4}
"""Of a frozen weight; what NF4's take is in the traffic of making them dense."""

_RECOMPUTED = 1.39
"""Products with checkpointing relative to without: forward again, except each layer's last product, 22% of them."""

EVALUATION = 0.5
"""Share of a microbatch without its backward: half the products, a third of the rest, launched one by one."""


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast one kind of GPU trains one model.

    Attributes:
        product: Seconds for each token computed, of the layers' products.
        passes: Seconds for each token computed, of passes over memory.
        learned: Seconds for each learned position: the head's products.
        reading: Seconds in which all frozen weights are read for the products; no microbatch's take less.
        pair: Seconds for each query-key pair of one layer.
        microbatch: Seconds for each microbatch, however small.
        launch: Seconds in which the host launches a microbatch's kernels; no microbatch takes less.
    """

    product: float
    passes: float
    learned: float
    reading: float
    pair: float
    microbatch: float
    launch: float

    @classmethod
    def of(cls, shape: Shape, gpu: Gpu, precision: str, fused: bool, checkpointing: bool) -> "Speed":
        """The speed of a model stored in `precision` and trained by the fused or the plain layers."""
        nf4, activations = precision.startswith("nf4"), "float32" if precision.endswith("float32") else "bfloat16"
        layers, config = shape.config.num_layers, shape.config
        again = _RECOMPUTED if checkpointing else 1.0
        passes = _PASSES[precision] if fused else _PLAIN_PASSES * (2 if activations == "float32" else 1)
        products = 4 * shape.layer_weights / _rate(gpu, activations if nf4 else precision)
        bytes_moved = passes * layers * fused_layer_bytes(shape)
        head = 4 * shape.head_weights / _rate(gpu, activations)
        pair = 14 * config.num_heads * config.head_dim / (_ATTENTION_SHARE * 1e12 * gpu.tflops[activations])
        small = _LAYER_SECONDS[precision] if fused else 0.0
        # Each weight is made dense for each product: half a byte read, a dense one written and read.
        dense = 2 * shape.layer_weights * (4.5 if activations == "bfloat16" else 8.5) / gpu.bandwidth if nf4 else 0.0
        launch = 0.0 if fused else _PLAIN_LAYER_SECONDS
        # Forward, backward, and forward again; the head is not recomputed.
        of_layers = (3 if checkpointing else 2) * shape.layer_weights * (0 if nf4 else _BYTES[precision])
        of_head = 2 * shape.head_weights * _BYTES[activations]
        return cls(
            again * products,
            (4 / 3 if checkpointing else 1.0) * bytes_moved / gpu.bandwidth,
            head,
            (of_layers + of_head) / gpu.bandwidth,
            again * pair,
            again * (layers * small + dense),
            again * layers * launch,
        )

    def seconds(self, load: Load) -> float:
        """Forward and backward of one microbatch."""
        products = max(self.product * load.tokens + self.learned * load.learned, self.reading)
        device = products + self.passes * load.tokens + self.pair * load.pairs + self.microbatch
        return max(device, self.launch)


def _rate(gpu: Gpu, precision: str) -> float:
    return _PRODUCT_SHARES[precision] * 1e12 * gpu.tflops[precision]


def limit_of(shape: Shape, device: str, precision: str, gpus: int = 1) -> SpeedLimit | None:
    """The least time of the products with frozen matrices, forward and backward, for the manifest.

    Attention, LoRA's own products and everything else are not counted, so no run can reach a share of 1.

    Args:
        shape: The model and its adapter as counts.
        device: The GPU as the driver names it.
        precision: How the frozen weights are stored: float32, bfloat16, float8 or nf4.
        gpus: How many of these divide the work.

    Returns:
        None if no rate is published for the device or for that type on it.
    """
    name = modal_name(device)
    if name is None:
        return None
    rates = GPUS[name].tflops
    dense = "float32" if precision == "float32" or "bfloat16" not in rates else "bfloat16"
    in_layers = precision if precision == "float8" else dense
    if in_layers not in rates:
        return None
    return SpeedLimit(
        gpu=name,
        seconds_per_token=4 * shape.layer_weights / (1e12 * rates[in_layers] * gpus),
        seconds_per_learned_token=4 * shape.head_weights / (1e12 * rates[dense] * gpus),
    )
