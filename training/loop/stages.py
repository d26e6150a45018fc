"""The stages of a training behind one interface; whoever chooses the model chooses who fulfils it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import torch

from ..caches.cache import Cache, CacheFolders, CacheReport
from ..caches.latents import cache_latents
from ..caches.text import cache_text
from ..data.records import TrainingSet
from ..data.sets import refuse_faults
from ..errors import ConfigError
from ..events import Callbacks
from ..settings.run import TrainConfig
from ..weights.spec import LoraUse, ModelSpec
from .train import RunPlaces, TrainResult, train

T = TypeVar("T")


@runtime_checkable
class Stages(Protocol):
    """A model, and the stages of a training on it."""

    @property
    def spec(self) -> ModelSpec:
        """What encodes, samples and is trained on."""
        ...

    def with_lora(self, use: LoraUse, made_here: bool) -> Stages:
        """The same model with one more LoRA.

        Args:
            made_here: whether these very stages have trained it.
        """
        ...

    def fitted(self, config: T) -> T:
        """The sampling settings that this model can do."""
        ...

    def cache_latents(
        self, data: TrainingSet, folders: CacheFolders, device: torch.device, callbacks: Callbacks
    ) -> tuple[Cache, CacheReport]:
        """As `caches.latents.cache_latents`."""
        ...

    def cache_text(
        self, cache: Cache, folder: Path, device: torch.device, callbacks: Callbacks
    ) -> tuple[Cache, CacheReport]:
        """As `caches.text.cache_text`."""
        ...

    def train(self, config: TrainConfig, cache: Cache, places: RunPlaces, callbacks: Callbacks) -> TrainResult:
        """As `loop.train.train`."""
        ...


@dataclass(frozen=True, kw_only=True)
class RealStages:
    """Fulfils `Stages` with the model that is meant. Data with faults is refused before anything is loaded."""

    spec: ModelSpec

    def with_lora(self, use: LoraUse, made_here: bool) -> RealStages:
        return replace(self, spec=self.spec.with_lora(use))

    def fitted(self, config: T) -> T:
        return config

    def cache_latents(
        self, data: TrainingSet, folders: CacheFolders, device: torch.device, callbacks: Callbacks
    ) -> tuple[Cache, CacheReport]:
        refuse_faults(data)
        return cache_latents(data, self.spec, folders, device, callbacks)

    def cache_text(
        self, cache: Cache, folder: Path, device: torch.device, callbacks: Callbacks
    ) -> tuple[Cache, CacheReport]:
        check_kind(cache, Cache)
        return cache_text(cache, self.spec, folder, device, callbacks)

    def train(self, config: TrainConfig, cache: Cache, places: RunPlaces, callbacks: Callbacks) -> TrainResult:
        for each in filter(None, (cache, places.validation_cache)):
            check_kind(each, Cache)
            refuse_faults(each.dataset)
        return train(config, self.spec, cache, places, callbacks)


def check_kind(cache: Cache, wanted: type[Cache]) -> None:
    """Refuses a cache that other stages have made: nothing else would tell the latents of two models apart.

    Raises:
        ConfigError: `cache` is not exactly a `wanted`.
    """
    if type(cache) is not wanted:
        raise ConfigError(
            f"The cache was made for {cache.PURPOSE}, the model is for {wanted.PURPOSE}. Wire one Load LongCat into the"
            " cache nodes and Train LoRA."
        )
