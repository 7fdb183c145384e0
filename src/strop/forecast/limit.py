"""How fast a GPU could go at its published rate: what a run's throughput is a share of."""

from strop.forecast.shape import Shape
from strop.gpus import GPUS, modal_name
from strop.run.manifest import SpeedLimit


def limit_of(shape: Shape, device: str, precision: str) -> SpeedLimit | None:
    """The least time of the products with frozen matrices, forward and backward, for the manifest.

    Attention, LoRA's own products and everything else are ignored, so no run can reach a share of 1.

    Args:
        shape: The model and its adapter as counts.
        device: As the driver calls it.
        precision: How the frozen weights are held: float32, bfloat16, float8 or nf4.

    Returns:
        None where nothing is published of the device or of that type on it.
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
        seconds_per_token=4 * shape.layer_weights / (1e12 * rates[in_layers]),
        seconds_per_learned_token=4 * shape.head_weights / (1e12 * rates[dense]),
    )
