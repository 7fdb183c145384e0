"""How far the frozen products of a model are from exact ones, on its real weights, activations and gradients.

A `Recorder` replaces each frozen matrix while the plain decoder computes one microbatch in bfloat16. For every product,
it also computes other kinds of product of the same two factors and records their errors relative to the float32 product
of the same bfloat16 factors. The model itself continues with its bfloat16 products, so errors do not accumulate.
"""

import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from strop.microbatch.pack import Microbatch
from strop.model.lora import LoraAdapter, projections
from strop.ops.linear import Float8Weight, FrozenWeight, Operand, quantise_rows
from strop.ops.nf4 import dequantise, quantise
from strop.training.gradients import PlainGradients

KINDS = {  # heading: what is inexact about the product
    "bf16": "the result, rounded to bfloat16",
    "fp8": "strop's product: both factors in e4m3, rowwise scales, fast accumulation, result in bfloat16",
    "fp8 slow": "the same with use_fast_accum=False",
    "fp8 exact": "the same factors, float32 products and sums, result in float32: what rounding the factors costs",
    "fp8 W": "the weights alone in e4m3",
    "nf4": "the weights alone in NF4, result in bfloat16, as QLoRA computes it",
}
TO_EXACT = {"fast": "fp8", "slow": "fp8 slow"}
"""For these, also the distance to "fp8 exact" in bfloat16: the cost of the GPU's way of adding up."""


def error(x: Tensor, exact: Tensor) -> float:
    """The Frobenius norm of the difference, relative to that of the exact tensor."""
    return float((x.float() - exact.float()).norm() / exact.float().norm())


class Matrix(NamedTuple):
    """A frozen matrix in every format compared; products sum over its second axis. Gradients use the transpose."""

    plain: Tensor
    float8: Operand
    nf4: Tensor

    def errors(self, x: Tensor) -> dict[str, float]:
        """The error of each kind of product X M^T."""
        exact, rounded, quantised = x.float() @ self.plain.float().t(), wide(self.float8), quantise_rows(x)
        products = {
            "bf16": x @ self.plain.t(),
            "fp8": self._scaled(quantised, fast=True),
            "fp8 slow": self._scaled(quantised, fast=False),
            "fp8 exact": wide(quantised) @ rounded.t(),
            "fp8 W": x.float() @ rounded.t(),
            "nf4": x @ self.nf4.t(),
        }
        best = products["fp8 exact"].bfloat16()
        to_exact = {name: error(products[kind], best) for name, kind in TO_EXACT.items()}
        return {kind: error(product, exact) for kind, product in products.items()} | to_exact

    def _scaled(self, x: Operand, fast: bool) -> Tensor:
        scales = {"scale_a": x.scale_T[:, None], "scale_b": self.float8.scale_T[None, :]}
        product = self.float8.values.t()
        return torch._scaled_mm(x.values, product, **scales, out_dtype=torch.bfloat16, use_fast_accum=fast)


def wide(x: Operand) -> Tensor:
    return x.values.float() * x.scale_T[:, None]


class Recorder(FrozenWeight):
    """Computes a frozen matrix's bfloat16 products and records the errors of the other kinds."""

    def __init__(self, frozen: FrozenWeight, note: Callable[[str, dict[str, float]], None]) -> None:
        super().__init__(frozen.weight)
        self.frozen, self.note = frozen, note
        weight, float8 = frozen.weight, Float8Weight(frozen.weight)
        rounded = dequantise(quantise(weight), weight.dtype)
        self.forward_side = Matrix(weight, Operand(float8.weight, float8.scale_O), rounded)
        self.backward_side = Matrix(weight.t(), Operand(float8.weight_t, float8.scale_I), rounded.t())
        note("weight", {"fp8": error(wide(self.forward_side.float8), weight), "nf4": error(rounded, weight)})

    def project(self, x_TI: Tensor) -> Tensor:
        y_TO = super().project(x_TI)
        self.note("forward", self.forward_side.errors(x_TI))
        return y_TO

    def backproject(self, grad_TO: Tensor) -> Tensor:
        x_TI = super().backproject(grad_TO)
        self.note("backward", self.backward_side.errors(grad_TO))
        return x_TI


def record(adapter: LoraAdapter, batch: Microbatch) -> list[dict[str, Any]]:
    """The errors of every product in a microbatch's forward and backward, and of the weights themselves."""
    results: list[dict[str, Any]] = []
    for (layer, group), projection in projections(adapter.decoder).items():

        def note(what: str, errors: dict[str, float], layer: int = layer, group: str = group) -> None:
            results.append({"layer": layer, "group": group, "of": what} | errors)

        projection.frozen = Recorder(projection.frozen, note)
    try:
        with torch.enable_grad():
            PlainGradients(adapter).of([batch], 1.0 / batch.num_loss_tokens)
    finally:
        for projection in projections(adapter.decoder).values():
            projection.frozen = projection.frozen.frozen
    return results


def table(results: Sequence[dict[str, Any]]) -> str:
    """Smallest, median and largest error over the layers, in percent, and the layer where float8 is worst."""
    columns = [*KINDS, *TO_EXACT]
    lines = [["product", "of", *columns, "fp8's worst"]]
    for of in ("weight", "forward", "backward"):
        for group in ("qkv", "o", "gate_up", "down"):
            rows = [row for row in results if (row["of"], row["group"]) == (of, group)]
            cells = [_span([100 * row[kind] for row in rows]) if kind in rows[0] else "" for kind in columns]
            worst = max(rows, key=lambda row: row["fp8"])
            lines.append([group, of, *cells, f"layer {worst['layer']}"])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(f"{c:<{w}}" for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def _span(values: Sequence[float]) -> str:
    return f"{min(values):.2f}/{statistics.median(values):.2f}/{max(values):.2f}"
