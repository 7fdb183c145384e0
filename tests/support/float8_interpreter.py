"""Triton's interpreter rounding to float8 as GPUs do.

Its own conversion (3.7) cuts subnormals off and loses the carry where a significand rounds up to the next power of two
(126.7 becomes 64). Compiled kernels use the hardware's instruction, which rounds to nearest even, as torch does.
"""

from typing import Any

import numpy as np
import pytest
import torch
import triton.runtime.interpreter as interpreter


def round_as_hardware(patch: pytest.MonkeyPatch) -> None:
    """Replace the interpreter's conversion to e4m3 by torch's."""
    original = interpreter._convert_float

    def convert(array: np.ndarray, source: Any, target: Any, mode: Any) -> np.ndarray:
        if str(target) != "fp8e4nv" or array.dtype != np.float32:
            return original(array, source, target, mode)
        wide = torch.from_numpy(np.ascontiguousarray(array)).clamp(-448, 448)
        return wide.to(torch.float8_e4m3fn).view(torch.uint8).numpy()

    patch.setattr(interpreter, "_convert_float", convert)
