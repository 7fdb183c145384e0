"""LoRA on a decoder: target modules -> parameters in one flat buffer, named as PEFT names them."""

import math
import zlib
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from strop.errors import RecipeError
from strop.model.config import DecoderConfig
from strop.model.decoder import Decoder, Dropout, LoraTerms, Projection
from strop.model.pretrained.tensors import group_modules, module_path
from strop.recipe import LoraSection

_MERGED_NAMES = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


class LoraAdapter:
    """The trainable part of a decoder: every A and B is a view of one flat buffer.

    One buffer means one optimizer kernel, one tensor to checkpoint and, with several GPUs, one all-reduce.

    Attributes:
        flat: All parameters, float32 (float64 if the decoder is), one dimension.
        target_modules: The checkpoint's own names of the adapted modules, sorted.
        scaling: Factor on B A x.
        dropout: Of all modules; None for none.
    """

    def __init__(self, decoder: Decoder, section: LoraSection, seed: int) -> None:
        """Attach LoRA to `decoder`.

        A is drawn as PEFT draws it, uniform within 1/sqrt(I) (Kaiming with a = sqrt(5)), from `seed` and the
        module's name alone; B is zero, so the model starts as the base.

        Raises:
            RecipeError: A target matches no module of this model.
        """
        self.section = section
        self.decoder = decoder
        self.target_modules = resolve_targets(decoder.config, section.target_modules)
        self.scaling = section.lora_alpha / (math.sqrt(section.r) if section.use_rslora else section.r)
        dtype = torch.promote_types(decoder.dtype, torch.float32)
        self.dropout = decoder.dropout = Dropout(section.lora_dropout) if section.lora_dropout else None
        slots = self._slots()
        sizes = [projection_size for *_, shapes in slots for projection_size in map(math.prod, shapes)]
        self.flat = torch.zeros(sum(sizes), dtype=dtype, device=decoder.device)
        values = iter(self.flat.split(sizes))
        self._parameters: list[nn.Parameter] = []
        for (layer, group), projection, modules, shapes in slots:
            a, b = (nn.Parameter(next(values).view(shape)) for shape in shapes)
            self._parameters += (a, b)
            rows = tuple(projection.modules_rows[module] for module in modules)
            names = tuple(module_path(layer, group, module) for module in modules)
            projection.lora = LoraTerms(a, b, rows, self.scaling, names, self.dropout)
        for name, tensor in self.state_dict().items():
            if ".lora_A." in name:
                _fill_a(tensor, name, seed)

    def _slots(
        self,
    ) -> list[tuple[tuple[int, str], Projection, list[str], tuple[tuple[int, int], tuple[int, int]]]]:
        """Each adapted projection with its place, its target modules, and the shapes of its merged A and B."""
        slots = []
        for place, projection in projections(self.decoder).items():
            modules = [module for module in projection.modules_rows if module in self.target_modules]
            if modules:
                covered = sum(last - first for first, last in (projection.modules_rows[m] for m in modules))
                rank, width = self.section.r, projection.frozen.shape[1]
                slots.append((place, projection, modules, ((len(modules) * rank, width), (covered, rank))))
        return slots

    @property
    def num_parameters(self) -> int:
        """Trainable parameters."""
        return self.flat.numel()

    @cached_property
    def flat_grad(self) -> Tensor:
        """The gradients of all parameters in one buffer, into which backward passes of the plain decoder add.

        Made, and made the parameters' own, when it is first asked for: the fused decoder keeps its gradients elsewhere.
        """
        buffer = torch.zeros_like(self.flat)
        grads = buffer.split([parameter.numel() for parameter in self._parameters])
        for parameter, grad in zip(self._parameters, grads, strict=True):
            parameter.grad = grad.view(parameter.shape)
        return buffer

    def state_dict(self) -> dict[str, Tensor]:
        """Every A (r, I) and B (O, r) as a view of the buffer, under the names PEFT writes."""
        tensors: dict[str, Tensor] = {}
        rank = self.section.r
        for (layer, group), projection in projections(self.decoder).items():
            if projection.lora is None:
                continue
            modules = [module for module in projection.modules_rows if module in self.target_modules]
            heights = [last - first for first, last in projection.lora.rows]
            for module, a, b in zip(
                modules,
                projection.lora.a_RI.data.split(rank),
                projection.lora.b_OR.data.split(heights),
                strict=True,
            ):
                prefix = f"base_model.model.{module_path(layer, group, module)}"
                tensors |= {f"{prefix}.lora_A.weight": a, f"{prefix}.lora_B.weight": b}
        return tensors

    def enable(self, enabled: bool | Tensor) -> None:
        """Switch the low-rank terms on or off; off is exactly the base model.

        A tensor (T, 1) of ones and zeros switches them for each of the T tokens that are computed next.
        """
        for projection in projections(self.decoder).values():
            projection.lora_enabled = enabled


def initial_tensors(config: DecoderConfig, section: LoraSection, seed: int) -> dict[str, Tensor]:
    """The initial `LoraAdapter.state_dict`, in float32 and without a model: another engine starts from the same A.

    Raises:
        RecipeError: A target matches no module of this model.
    """
    targets = resolve_targets(config, section.target_modules)
    widths = {"o": config.num_heads * config.head_dim, "down": config.intermediate_size}
    tensors: dict[str, Tensor] = {}
    for layer in range(config.num_layers):
        for group, modules in group_modules(config).items():
            for module in (module for module in modules if module in targets):
                prefix = f"base_model.model.{module_path(layer, group, module)}"
                first, last = modules[module]
                a_RI = torch.empty(section.r, widths.get(group, config.hidden_size))
                _fill_a(a_RI, f"{prefix}.lora_A.weight", seed)
                tensors |= {
                    f"{prefix}.lora_A.weight": a_RI,
                    f"{prefix}.lora_B.weight": torch.zeros(last - first, section.r),
                }
    return tensors


def resolve_targets(config: DecoderConfig, targets: Sequence[str] | str) -> list[str]:
    """The checkpoint's own names for the modules that `targets` names, sorted.

    A fused checkpoint has qkv_proj and gate_up_proj where others have q, k, v and gate, up; naming all parts of a
    fused module selects that module.

    Raises:
        RecipeError: A target that matches nothing, or only a part of a fused module.
    """
    available = {module for modules in group_modules(config).values() for module in modules}
    if targets == "all-linear":
        return sorted(available)
    wanted, faults = set(targets), []
    for merged, parts in _MERGED_NAMES.items():
        if merged in available and wanted & set(parts):
            missing = [part for part in parts if part not in wanted]
            if missing:
                faults.append(f"this model stores {', '.join(parts)} as one {merged}; add {', '.join(missing)}")
            wanted = (wanted - set(parts)) | {merged}
    unmatched = sorted(wanted - available)
    if unmatched:
        faults.append(f"{', '.join(unmatched)} match no module; this model has {', '.join(sorted(available))}")
    if faults:
        raise RecipeError("lora.target_modules: " + "; ".join(faults))
    return sorted(wanted)


def projections(decoder: Decoder) -> dict[tuple[int, str], Projection]:
    """Every projection by (layer, group), in a fixed order."""
    return {
        (index, group): getattr(layer, group)
        for index, layer in enumerate(decoder.layers)
        for group in ("qkv", "o", "gate_up", "down")
    }


def _fill_a(a_RI: Tensor, name: str, seed: int) -> None:
    # One 32-bit number from both, because torch's CPU generator ignores the upper half of a seed.
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}".encode()))
    bound = 1 / math.sqrt(a_RI.shape[1])
    a_RI.copy_(torch.rand(a_RI.shape, generator=generator).mul_(2 * bound).sub_(bound))
