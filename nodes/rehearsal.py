"""Where nodes take another way while a run is rehearsed: faults of the data are kept, everything is made small."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..training.caches.cache import Cache, CacheFolders, CacheReport, RealData
from ..training.data.records import TrainingSet
from ..training.errors import ConfigError
from ..training.settings.dataset import DatasetConfig
from ..training.settings.run import TrainConfig
from ..training.weights.spec import ModelSpec
from .host import Host, current_host

if TYPE_CHECKING:
    from ..training.events import Callbacks
    from ..training.loop.train import RunPlaces, TrainResult
    from ..training.rehearsal.report import RehearsalReport

T = TypeVar("T")


def is_rehearsal(prompt: Mapping[str, Any] | None) -> bool:
    """Whether a graph is rehearsed; asked by nodes that come before any model.

    Args:
        prompt: the graph in API format, as hosts give it to a hidden input PROMPT; None: not known.
    """
    loaders = (node for node in (prompt or {}).values() if node.get("class_type") == "LoadLongCat")
    return any(node.get("inputs", {}).get("rehearsal") is True for node in loaders)


def fitted(model: ModelSpec, class_type: str, config: T) -> T:
    """The settings of node `class_type`, made small if `model` is rehearsed on."""
    if model.rehearsal is None:
        return config
    from .graph.tiny import tiny_config

    return tiny_config(class_type, config)


def paired(targets: DatasetConfig, references: DatasetConfig, prompt: Mapping[str, Any] | None) -> TrainingSet:
    """The pairs; in a rehearsal those that are sound, with the faults of the others.

    Raises:
        DataError: as `pair_datasets`; not in a rehearsal.
    """
    from ..training.data.sets import pair_datasets, survey_pairs

    if not is_rehearsal(prompt):
        return pair_datasets(targets, references)
    return _readable(survey_pairs(targets, references), None)


def data_of(given: TrainingSet | DatasetConfig, prompt: Mapping[str, Any] | None) -> TrainingSet:
    """What PairDatasets or LongCatDataset gave; in a rehearsal what is sound of it, with the faults of the rest.

    Raises:
        DataError: as `training_set_of`; not in a rehearsal.
    """
    from ..training.data.sets import training_set_of

    return _surveyed(given, None) if is_rehearsal(prompt) else training_set_of(given)


def cache_data(
    model: ModelSpec, pairs: TrainingSet | DatasetConfig, folders: CacheFolders, node_id: str | None
) -> tuple[Cache, CacheReport]:
    """`cache_latents` of the data; in a rehearsal of some of them, small, in a folder apart.

    Raises:
        DataError, ConfigError, ModelError, CacheError, StoppedByUserError: as `training_set_of` and `cache_latents`.
    """
    from ..training.caches.latents import cache_latents
    from ..training.data.sets import training_set_of
    from ..training.rehearsal.small import small_set

    host = current_host()
    if model.rehearsal is None:
        dataset = training_set_of(pairs)
        with host.work(node_id) as callbacks:
            return cache_latents(dataset, model, folders, host.device(), callbacks)
    found = _surveyed(pairs, node_id)
    real = RealData(dataset=_with_folder_faults(found, folders), folders=folders)
    places = CacheFolders(targets=_folder(host, "targets"), references=_folder(host, "references"))
    small = small_set(found, model.config, _scale())
    with host.work(node_id) as callbacks:
        cache, report = cache_latents(small, model, places, host.device(), callbacks)
    return replace(cache, real=real), report


def cache_captions(model: ModelSpec, cache: Cache, folder: Path, node_id: str | None) -> tuple[Cache, CacheReport]:
    """`cache_text`; in a rehearsal in a folder apart.

    Raises:
        ConfigError, DataError, ModelError, CacheError, StoppedByUserError: as `cache_text`.
    """
    from ..training.caches.text import cache_text
    from ..training.loop.check import check_same_purpose

    check_same_purpose(model, cache, "cache")
    host = current_host()
    if cache.real is not None:
        folders = replace(cache.real.folders, text=folder)
        dataset = _with_folder_faults(cache.real.dataset, folders)
        cache = replace(cache, real=RealData(dataset=dataset, folders=folders))
        folder = _folder(host, "text")
    with host.work(node_id) as callbacks:
        return cache_text(cache, model, folder, host.device(), callbacks)


def rehearse_training(
    config: TrainConfig, model: ModelSpec, cache: Cache, places: RunPlaces, callbacks: Callbacks
) -> tuple[TrainResult, RehearsalReport]:
    """Trains the twin that `model` is, and reports on the run that it stands for.

    Raises:
        ConfigError: one of the caches is not of a rehearsal.
        RehearsalError, StoppedByUserError: as `rehearse`.
    """
    from ..training.loop.check import check_same_purpose
    from ..training.rehearsal.checks import RealRun
    from ..training.rehearsal.run import SmallRun, rehearse
    from .graph.tiny import tiny_training

    validation_cache = places.validation_cache
    for each in (cache, validation_cache):
        if each is not None:
            check_same_purpose(model, each, "cache")
    real = RealRun(
        config=config,
        rehearsal=model.rehearsal,
        data=cache.real,
        validation_data=validation_cache.real if validation_cache else None,
        places=places,
    )
    small = SmallRun(config=tiny_training(config), spec=model, cache=cache, validation_cache=validation_cache)
    return rehearse(real, small, callbacks)


def _surveyed(given: TrainingSet | DatasetConfig, node_id: str | None) -> TrainingSet:
    from ..training.data.sets import survey_dataset

    return given if isinstance(given, TrainingSet) else _readable(survey_dataset(given), node_id)


def _readable(found: TrainingSet, node_id: str | None) -> TrainingSet:
    from ..training.rehearsal.small import only_readable

    host = current_host()
    with host.work(node_id) as callbacks:
        return only_readable(found, callbacks)


def _with_folder_faults(dataset: TrainingSet, folders: CacheFolders) -> TrainingSet:
    from ..training.caches.store import check_folders

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


def _folder(host: Host, role: str) -> Path:
    from ..training.rehearsal.run import FOLDER

    return host.cache_dir() / FOLDER / role


def _scale() -> Any:
    from ..training.rehearsal.small import SmallScale
    from .graph.tiny import LONGEST_PROMPT, TINY_FRAMES, TINY_SIDE

    return SmallScale(side=TINY_SIDE, frames=TINY_FRAMES, characters=LONGEST_PROMPT)
