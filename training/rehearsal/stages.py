"""The stages of a rehearsal: the user's own graph on a tiny twin, with his own data made small."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch

from ..caches.cache import Cache, CacheFolders, CacheReport
from ..caches.latents import cache_latents
from ..caches.store import check_folders
from ..caches.text import cache_text
from ..data.records import TrainingSet
from ..errors import ConfigError, LongCatError
from ..events import Callbacks
from ..loop.stages import check_kind
from ..loop.train import RunPlaces, TrainResult
from ..settings.model import ModelConfig
from ..settings.run import TrainConfig
from ..weights.precisions import ensure_available
from ..weights.spec import LoraUse, ModelSpec
from .cache import RealData, RehearsedCache
from .checks import RealRun
from .run import FOLDER, SmallRun, rehearse
from .scale import small
from .small import only_readable, small_set

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class RehearsalStages:
    """Fulfils `loop.stages.Stages`. Faults of the data end nothing: they are kept for the report."""

    spec: ModelSpec
    """The twin's."""
    real: ModelSpec
    """What it stands for; its folder and files are None where none was found."""
    faults: tuple[str, ...]
    """What would end the real run where its model is chosen."""
    cache_dir: Path
    """Caches lie in a folder of their own below it."""

    def with_lora(self, use: LoraUse, made_here: bool) -> RehearsalStages:
        """A LoRA of the real model is left out: it fits no module of the twin."""
        return replace(self, spec=self.spec.with_lora(use)) if made_here else self

    def fitted(self, config: T) -> T:
        return small(config)

    def cache_latents(
        self, data: TrainingSet, folders: CacheFolders, device: torch.device, callbacks: Callbacks
    ) -> tuple[RehearsedCache, CacheReport]:
        """Encodes some of the data; all of it is read."""
        found = only_readable(data, callbacks)
        real = RealData(dataset=_with_folder_faults(found, folders), folders=folders)
        places = CacheFolders(targets=self._folder("targets"), references=self._folder("references"))
        few = small_set(found, self.spec.config)
        cache, report = cache_latents(few, self.spec, places, device, callbacks)
        return RehearsedCache(**vars(cache), real=real), report

    def cache_text(
        self, cache: Cache, folder: Path, device: torch.device, callbacks: Callbacks
    ) -> tuple[RehearsedCache, CacheReport]:
        check_kind(cache, RehearsedCache)
        folders = replace(cache.real.folders, text=folder)
        real = RealData(dataset=_with_folder_faults(cache.real.dataset, folders), folders=folders)
        return cache_text(replace(cache, real=real), self.spec, self._folder("text"), device, callbacks)

    def train(self, config: TrainConfig, cache: Cache, places: RunPlaces, callbacks: Callbacks) -> TrainResult:
        """As `run.rehearse`."""
        validation_cache = places.validation_cache
        for each in filter(None, (cache, validation_cache)):
            check_kind(each, RehearsedCache)
        real = RealRun(
            config=config,
            model=self.real,
            model_faults=self.faults,
            data=cache.real,
            validation_data=validation_cache.real if validation_cache else None,
            places=places,
        )
        twin = SmallRun(config=small(config), spec=self.spec, cache=cache, validation_cache=validation_cache)
        return rehearse(real, twin, callbacks)

    def _folder(self, role: str) -> Path:
        return self.cache_dir / FOLDER / role


def rehearsal_of(
    config: ModelConfig, choose: Callable[[ModelConfig], ModelSpec], models_dirs: tuple[Path, ...], cache_dir: Path
) -> RehearsalStages:
    """The stages on the tiny twin of `config`, with what would fail where the real model is chosen.

    Args:
        choose: as `weights.choice.choose_model`.
        models_dirs: where models lie, for a real one that cannot be chosen.
    """
    faults: dict[str, None] = {}
    real = ModelSpec(config=config, models_dirs=models_dirs)
    for precision in (config.base_model_precision, config.text_encoder_1_precision):
        try:
            ensure_available(precision)
        except LongCatError as error:
            faults[str(error)] = None
    if not faults:
        try:
            real = choose(config)
        except LongCatError as error:
            faults[str(error)] = None
    return RehearsalStages(spec=choose(small(config)), real=real, faults=tuple(faults), cache_dir=cache_dir)


def _with_folder_faults(dataset: TrainingSet, folders: CacheFolders) -> TrainingSet:
    named = {
        "cache_dir_vae": folders.targets,
        "reference_cache_dir_vae": folders.references,
        "cache_dir_text": folders.text,
    }
    try:
        check_folders(dataset, {name: folder for name, folder in named.items() if folder is not None})
    except ConfigError as error:
        return replace(dataset, faults=tuple(dict.fromkeys((*dataset.faults, str(error)))))
    return dataset
