"""The base model's folder, found and vetted once per command and then handed on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strop.errors import ModelError, RecipeError
from strop.model.config import DecoderConfig, read_config, unused_keys
from strop.model.pretrained.locate import locate_model
from strop.model.pretrained.tensors import check_tensors
from strop.model.pretrained.vet import holds_nf4, vet_model_folder
from strop.recipe import ModelSection
from strop.recipe.wording import show


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A vetted model folder. Make one with `vetted` or `open_model`, never by hand.

    Attributes:
        path: The local folder.
        settings: Its config.json.
        config: What the decoder takes from that.
    """

    path: Path
    settings: Mapping[str, Any]
    config: DecoderConfig

    @classmethod
    def vetted(cls, path: Path, needs_weights: bool = True) -> "ModelFolder":
        """Vet a local folder.

        Args:
            path: The folder.
            needs_weights: False accepts a folder without weights.

        Raises:
            ModelError: The folder is unsafe, damaged or of an unsupported family, or its weights are not those that
                its config.json describes.
        """
        settings, tensors = vet_model_folder(path, needs_weights)
        try:
            config = read_config(settings)
            if tensors:
                check_tensors(config, tensors)
        except ModelError as error:
            raise ModelError(f"model.model_name_or_path: {path}: {error}") from None
        return cls(path, settings, config)

    @property
    def holds_nf4(self) -> bool:
        """Whether the weights are stored in bitsandbytes' NF4."""
        return holds_nf4(self.settings)

    def refuse_nf4_unless(self, asked: bool) -> None:
        """Train on 4-bit weights only if the recipe asks for it, even if the checkpoint has no others.

        Raises:
            RecipeError: The checkpoint has NF4 weights and the recipe does not ask for them.
        """
        if self.holds_nf4 and not asked:
            raise RecipeError(
                "model.model_name_or_path: this checkpoint has NF4 weights (bitsandbytes); set "
                "model.load_in_4bit=true, or name the checkpoint it was made from"
            )


def open_model(
    model: ModelSection, note: Callable[[str], None] = lambda line: None, needs_weights: bool = True
) -> ModelFolder:
    """Find the model that a recipe names and vet its folder; downloads or converts it if need be.

    Args:
        model: The recipe's section.
        note: Called with a line before anything that takes a while.
        needs_weights: False downloads no weights and accepts a folder without them.

    Raises:
        RecipeError: The model cannot be found or fetched, or holds NF4 weights that the recipe does not ask for.
        ModelError: Its folder is unsafe, damaged or of an unsupported family.
    """
    path = locate_model(model.model_name_or_path, model.revision, note, needs_weights)
    folder = ModelFolder.vetted(path, needs_weights)
    if unused := unused_keys(folder.settings):
        note(f"config.json: neither strop nor transformers uses {show(', '.join(unused))}")
    folder.refuse_nf4_unless(model.load_in_4bit)
    return folder
