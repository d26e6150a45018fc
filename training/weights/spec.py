"""A model as nodes pass it on: a description; nothing is loaded until a stage asks."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import ConfigError
from ..settings.model import ModelConfig


@dataclass(frozen=True, kw_only=True)
class LoraUse:
    """A LoRA file and how strongly it acts."""

    path: Path
    strength: float = 1.0

    def __post_init__(self) -> None:
        """
        Raises:
            ConfigError: the strength is NaN or infinite.
        """
        if not math.isfinite(self.strength):
            raise ConfigError(f"strength (Load LongCat LoRA) is {self.strength}; it must be a number. Usual is 1.")


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """ComfyUI's single files of one model; see single_file.py."""

    transformer: Path
    vae: Path
    text_encoder: Path
    tokenizer: Path
    """The folder with vocab.json, see `single_file.find_tokenizer`."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """What Load LongCat chooses: settings, where models live, the LoRAs on top."""

    config: ModelConfig
    models_dirs: tuple[Path, ...]
    """Folders searched for `<name>/model_index.json`; downloads and tiny twins go into the first."""
    folder: Path | None = None
    """The diffusers folder named by the user (already checked); None: found by flavour, see `source.resolve_folder`."""
    files: ModelFiles | None = None
    """Single files (already checked) instead of a folder."""
    loras: tuple[LoraUse, ...] = ()

    def with_lora(self, use: LoraUse) -> ModelSpec:
        """The same model with one more LoRA."""
        return replace(self, loras=(*self.loras, use))
