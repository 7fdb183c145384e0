"""Solve for the constants of `strop.forecast.speed` from the published figures.

    python benchmarks/fit_forecast.py

A step's predicted time is linear in the constants. Setting one of them to one and the others to zero gives its part;
least squares of the relative errors gives all of them. Run this after `strop.forecast.published` has changed.
"""

import numpy as np

from strop.forecast import speed
from strop.forecast.published import FIGURES, GPU, PHI3_MINI, Figure
from strop.forecast.workload import Load, Shape
from strop.gpus import GPUS
from strop.model.config import read_config
from strop.recipe import LoraSection

FITTED = ("float8", "bfloat16")
NAMES = ("1 / attention share", *(f"{name}, {kind}" for kind in ("passes", "layer seconds") for name in FITTED))


def seconds(figure: Figure, constants: np.ndarray) -> float:
    """A step's time under these constants, in the order of NAMES."""
    passes, small = dict(zip(FITTED, constants[1:3], strict=True)), dict(zip(FITTED, constants[3:5], strict=True))
    speed._ATTENTION_SHARE = 1 / constants[0] if constants[0] else float("inf")
    speed._PASSES = passes | {"nf4": passes["bfloat16"]}
    speed._LAYER_SECONDS = small | {"nf4": small["bfloat16"]}
    shape = Shape(read_config(PHI3_MINI), LoraSection())
    found = speed.Speed.of(shape, GPUS[GPU], figure.precision, True, figure.checkpointing)
    count = figure.microbatches
    load = Load(
        round(figure.tokens / count),
        round(figure.learned / count),
        shape.config.num_layers * figure.pairs / count,
        0,
        figure.samples,
    )
    return count * found.seconds(load)


def main() -> None:
    lines = [figure for figure in FIGURES.values() if figure.precision in FITTED]
    measured = np.array([figure.samples / figure.samples_per_second for figure in lines])
    nothing = np.zeros(len(NAMES))
    rest = np.array([seconds(figure, nothing) for figure in lines])
    parts = [[seconds(figure, unit) - base for figure, base in zip(lines, rest, strict=True)] for unit in np.eye(5)]
    constants, *_ = np.linalg.lstsq(np.array(parts).T / measured[:, None], 1 - rest / measured, rcond=None)
    for name, value in zip(NAMES, constants, strict=True):
        print(f"{name:22} {value:.4g}")
    print(f"{'attention share':22} {1 / constants[0]:.3f}")
    for name, figure in FIGURES.items():
        print(f"{name:52} {figure.samples / seconds(figure, constants):8.1f} for {figure.samples_per_second:8.1f}")


if __name__ == "__main__":
    main()
