"""A model and its adapter as counts, from which memory and time are computed without reading any weights."""

from dataclasses import dataclass
from functools import cached_property

from strop.model.checkpoint.weights import group_modules, part_rows
from strop.model.config import DecoderConfig
from strop.model.lora import resolve_targets
from strop.recipe import LoraSection


@dataclass(frozen=True)
class Shape:
    """The counts of a decoder with LoRA; O and I are a merged projection's outputs and inputs."""

    config: DecoderConfig
    lora: LoraSection

    @cached_property
    def projections(self) -> dict[str, tuple[int, int]]:
        """(O, I) of each merged projection of a layer."""
        config = self.config
        inputs = {"o": config.num_heads * config.head_dim, "down": config.intermediate_size}
        return {
            group: (rows[-1][1], inputs.get(group, config.hidden_size)) for group, rows in part_rows(config).items()
        }

    @property
    def layer_weights(self) -> int:
        """Elements of all layers' frozen matrices: each takes 2 operations per token in a product."""
        return self.config.num_layers * sum(o * i for o, i in self.projections.values())

    @property
    def largest_matrix(self) -> int:
        """Elements of the largest frozen matrix of a layer."""
        return max(o * i for o, i in self.projections.values())

    @property
    def head_weights(self) -> int:
        """Elements of the output projection."""
        return self.config.vocab_size * self.config.hidden_size

    @property
    def other_weights(self) -> int:
        """Embedding and head, once if they are tied, and the norms."""
        config = self.config
        norms = (2 * config.num_layers + 1) * config.hidden_size
        return self.head_weights * (1 if config.tie_word_embeddings else 2) + norms

    @cached_property
    def _modules(self) -> dict[str, list[int]]:
        """Output rows of each targeted module of each merged projection."""
        targets = resolve_targets(self.config, self.lora.target_modules)
        return {
            group: [last - first for module, (first, last) in modules.items() if module in targets]
            for group, modules in group_modules(self.config).items()
        }

    @property
    def lora_parameters(self) -> int:
        """Trainable parameters."""
        rank = self.lora.r
        each = (
            len(rows) * rank * self.projections[group][1] + sum(rows) * rank for group, rows in self._modules.items()
        )
        return self.config.num_layers * sum(each)

    @property
    def thin_rows(self) -> int:
        """Rows in all A matrices of a layer."""
        return self.lora.r * sum(map(len, self._modules.values()))

    def thin_width(self, group: str) -> int:
        """Columns of a projection's thin matrices as the fused kernels read them (`fused.lora_work`)."""
        return self._block * _power_of_two(max(1, len(self._modules[group])))

    @property
    def work_elements(self) -> int:
        """Elements of LoRA's working copy."""
        each = (i * self.thin_width(group) + o * self._block for group, (o, i) in self.projections.items())
        return self.config.num_layers * sum(each)

    @property
    def _block(self) -> int:
        """Columns of one module."""
        return max(16, _power_of_two(self.lora.r))


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()
