"""What the decoder reads of a microbatch, on its device."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from strop.microbatch.pack import Microbatch
from strop.microbatch.tree import Tree


@dataclass(frozen=True, slots=True)
class PackedInputs:
    """A microbatch of T tokens, of which R predict E different learned tokens.

    Attributes:
        input_ids_T: int64.
        positions_T: int64, position of each token in its sample.
        sample_lengths_T: int64, length of the sample that each token belongs to (see `RotaryTable`).
        tree: How the tokens divide into nodes and samples.
        learned_R: int64, ascending: the tokens from which a learned one is predicted.
        label_rows_E: int64, the index in `learned_R` of each label's token.
        labels_E: int64, the token to predict.
        weights_E: float32, how many samples learn it there.
    """

    input_ids_T: Tensor
    positions_T: Tensor
    sample_lengths_T: Tensor
    tree: Tree
    learned_R: Tensor
    label_rows_E: Tensor
    labels_E: Tensor
    weights_E: Tensor

    @classmethod
    def of(cls, microbatch: Microbatch, device: torch.device) -> "PackedInputs":
        """A microbatch on `device`."""

        def put(array: NDArray[Any]) -> Tensor:
            return torch.from_numpy(array).to(device)

        tree = microbatch.tree
        return cls(
            input_ids_T=put(microbatch.input_ids),
            positions_T=put(tree.positions()),
            sample_lengths_T=put(np.repeat(tree.sample_lengths, tree.lengths)),
            tree=tree,
            learned_R=put(microbatch.learned),
            label_rows_E=put(microbatch.label_rows),
            labels_E=put(microbatch.labels),
            weights_E=put(microbatch.weights),
        )
