"""What the decoder reads of a microbatch, on its device."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from strop.ops.attention import Packing


class HostBatch(Protocol):
    """The microbatch as `microbatch.pack.Batch` has it, on the host; what the attributes are is said there."""

    @property
    def input_ids(self) -> NDArray[np.int64]: ...  # noqa: D102
    @property
    def lengths(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def parents(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def sample_lengths(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def learned(self) -> NDArray[np.int64]: ...  # noqa: D102
    @property
    def label_rows(self) -> NDArray[np.int64]: ...  # noqa: D102
    @property
    def labels(self) -> NDArray[np.int64]: ...  # noqa: D102
    @property
    def weights(self) -> NDArray[np.float32]: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class PackedInputs:
    """A microbatch of T tokens, of which R predict E different learned tokens.

    Attributes:
        input_ids_T: int64.
        positions_T: int64, position of each token in its sample.
        sample_lengths_T: int64, length of the sample that each token belongs to (see `RotaryTable`).
        packing: How the tokens divide into nodes and samples.
        learned_R: int64, ascending: the tokens from which a learned one is predicted.
        label_rows_E: int64, the index in `learned_R` of each label's token.
        labels_E: int64, the token to predict.
        weights_E: float32, how many samples learn it there.
    """

    input_ids_T: Tensor
    positions_T: Tensor
    sample_lengths_T: Tensor
    packing: Packing
    learned_R: Tensor
    label_rows_E: Tensor
    labels_E: Tensor
    weights_E: Tensor

    @classmethod
    def of(cls, batch: HostBatch, device: torch.device) -> "PackedInputs":
        """A microbatch of the host's, on `device`."""

        def put(array: NDArray[Any]) -> Tensor:
            return torch.from_numpy(array).to(device)

        packing = Packing.of(batch.lengths, batch.parents)
        return cls(
            input_ids_T=put(batch.input_ids),
            positions_T=packing.positions().to(device),
            sample_lengths_T=put(np.repeat(batch.sample_lengths, batch.lengths)),
            packing=packing,
            learned_R=put(batch.learned),
            label_rows_E=put(batch.label_rows),
            labels_E=put(batch.labels),
            weights_E=put(batch.weights),
        )
