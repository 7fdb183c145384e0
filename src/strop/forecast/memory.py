"""Peak memory of a training step from shapes alone.

What is always in memory is exact: frozen weights, LoRA's parameters with gradients and moments, and the kernels'
working copy. What a microbatch keeps for its backward is counted from the layers' own code. A microbatch that is
captured as a graph counts twice: graphs have a memory pool of their own, beside that of the eager run before each
capture. docs/plan.md says how far off this was.
"""

from dataclasses import dataclass

from strop.forecast.workload import Shape
from strop.fused.inputs import most_captured_tokens

GIB = 2**30
CONTEXT_GIB = 0.6
"""Memory of the driver and its kernels, which torch does not count."""

_FIXED = 1.0 * GIB
"""Logits of one chunk, workspaces of the matrix products and captured graphs: 1 to 2 GiB beside 8 samples."""

_NF4_BYTES = 0.5 + 1.016 / 64
"""Bytes of a weight and its share of a block's scale, which is a byte and its own share of a second scale."""

_WEIGHT_BYTES = {
    "float32": 4.0,
    "bfloat16": 2.0,
    "float8": 2.0,  # kept in two layouts
    "nf4": _NF4_BYTES,
    "nf4, float32": _NF4_BYTES,
}


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of a training run.

    Attributes:
        weights: Frozen weights.
        adapter: LoRA's parameters, gradients, moments and working copy.
        token: Kept for the backward, for each computed token.
        learned: Kept in addition, for each learned position.
        captured: Microbatches of up to this many tokens are captured.
    """

    weights: float
    adapter: float
    token: float
    learned: float
    captured: int

    @classmethod
    def of(cls, shape: Shape, precision: str, fused: bool, checkpointing: bool, moments_8bit: bool = False) -> "Memory":
        """The memory of a model stored in `precision` and trained by the fused or the plain layers."""
        item = 4 if precision.endswith("float32") else 2
        other = shape.other_weights * item
        weights = shape.layer_weights * _WEIGHT_BYTES[precision] + other
        if precision.startswith("nf4"):
            weights += shape.largest_matrix * item  # made dense for a product, one at a time
        moments = 2 + 8 / 256 if moments_8bit else 8
        adapter = (4 + moments) * shape.lora_parameters
        # The fused layers accumulate gradients in their working copy, beside its values.
        adapter += (2 + 4) * shape.work_elements if fused else 4 * shape.lora_parameters
        layer = fused_layer_bytes(shape) if fused else plain_layer_bytes(shape, item)
        working = layer if checkpointing else layer / 2  # of the layer whose backward is computed
        kept = shape.config.hidden_size * item if checkpointing else layer
        token = shape.config.num_layers * kept + working
        captured = most_captured_tokens(shape.layer_weights + shape.other_weights) if fused else 0
        return cls(weights, adapter, token, 3 * shape.config.hidden_size * item, captured)

    @property
    def constant(self) -> float:
        """Bytes in use before the first microbatch."""
        return self.weights + self.adapter

    def peak_gib(self, tokens: int, learned: int) -> float:
        """GiB that torch reserves if the largest microbatch computes this many tokens."""
        times = 2 if tokens <= self.captured else 1
        return (self.constant + _FIXED + times * (self.token * tokens + self.learned * learned)) / GIB

    def free(self, memory_gib: float) -> float:
        """Bytes left for microbatches on a GPU of this size; negative if the model itself does not fit."""
        return (memory_gib - CONTEXT_GIB) * GIB - self.constant

    def holds(self, memory_gib: float, tokens: int) -> bool:
        """Whether a microbatch of this many tokens, all learned, fits at all."""
        return self.free(memory_gib) >= _FIXED + (self.token + self.learned) * tokens


def fused_layer_bytes(shape: Shape) -> int:
    """Bytes that a fused layer keeps for a token: `fused.layer.Kept` in bfloat16, and some numbers in float32."""
    config, widths = shape.config, sum(shape.thin_width(group) for group in shape.projections)
    wide = 2 * config.hidden_size + _qkv(shape) + config.num_heads * config.head_dim + 2 * config.intermediate_size
    return 2 * (wide + widths) + 4 * (2 + config.num_heads)


def plain_layer_bytes(shape: Shape, item: int) -> int:
    """Bytes that autograd keeps for a token of a plain layer: inputs of norms, projections, attention and SwiGLU."""
    config = shape.config
    attention = _qkv(shape) * (2 if config.qk_norm else 1) + config.num_heads * config.head_dim
    wide = 4 * config.hidden_size + attention + 3 * config.intermediate_size
    head_norms = config.num_heads + config.num_kv_heads if config.qk_norm else 0
    return item * (wide + shape.thin_rows) + 4 * (2 + config.num_heads + head_norms)


def _qkv(shape: Shape) -> int:
    return shape.projections["qkv"][0]
