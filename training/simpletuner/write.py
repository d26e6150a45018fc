"""The settings of a run -> SimpleTuner's config.json and data file: the way back of read.py.

What was read is kept as it was written; only what has changed since is written again, so that nothing is lost.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from ..errors import ConfigError
from ..settings.dataset import DatasetConfig
from ..settings.run import TrainConfig, TrainingOptions, given_shift
from ..settings.validation import ValidationConfig
from .datasets import OWN_TO_VIDEOS, SimpleTunerDataset
from .keys import CLIP_FIELDS, CONFIG_KEYS
from .read import SimpleTunerRun, read_run
from .values import means

REPLACED = {"base_model_precision": ("mixed_precision",), "enable_group_offload": ("ramtorch",)}
"""Field -> keys that also have a say in it, and would contradict its new value."""

Entries = dict[str, dict[str, Any]]
"""Entries of the data file by id."""


def write_run(run: SimpleTunerRun) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(config.json, data file) that `read_run` reads as this run. Empty `run.config`: every setting is written.

    Raises:
        ConfigError: two datasets have one id, or the files cannot say it.
    """
    base = read_run(run.config, run.datasets)
    config = dict(run.config)
    if not config:
        config = {"model_type": "lora"}
    for part, before in _parts(run, base):
        for field, value in _changes(part, before if run.config else None).items():
            _set(config, type(part), field, value)
    if run.train.validation is None and base.train.validation is not None:
        _set(config, ValidationConfig, "validation_steps", 0)
    if run.cache_dir_text != base.cache_dir_text:
        config["cache_dir_text"] = run.cache_dir_text
    datasets = _datasets(run, base, config)
    again = read_run(config, datasets)
    if again.settings != run.settings:
        raise ConfigError(f"This run cannot be written as config.json and data file: {_difference(run, again)}.")
    return config, datasets


def _parts(run: SimpleTunerRun, base: SimpleTunerRun) -> list[tuple[Any, Any]]:
    parts = [
        (run.model, base.model),
        (run.train, base.train),
        (run.train.options, base.train.options),
    ]
    if run.train.validation is not None:
        parts.append((run.train.validation, base.train.validation))
    return parts


def _changes(part: Any, before: Any) -> dict[str, Any]:
    """Fields of `part` that differ from `before`; all if that is None."""
    fields = [field.name for field in dataclasses.fields(part) if "option" in field.metadata]
    return {
        name: getattr(part, name) for name in fields if before is None or getattr(part, name) != getattr(before, name)
    }


def _set(config: dict[str, Any], owner: type, field: str, value: Any) -> None:
    for name, key in CONFIG_KEYS.items():
        # Another name of the same field would contradict the new value.
        if (key.owner, key.field) == (owner, field) and name not in (field, "output_dir"):
            config.pop(name, None)
    if owner is TrainConfig and field == "run_name" and config.get("output_dir"):
        config.pop("run_name", None)
        config["output_dir"] = PurePath(str(config["output_dir"])).with_name(value).as_posix()
        return
    if owner is TrainingOptions and field == "flow_schedule_shift":
        config["flow_schedule_auto_shift"] = given_shift(value) is None
    for other in REPLACED.get(field, ()):
        config.pop(other, None)
    config[field] = value


def _datasets(run: SimpleTunerRun, base: SimpleTunerRun, config: dict[str, Any]) -> list[dict[str, Any]]:
    wanted = _by_id((*run.sets, *run.eval_sets))
    known = _by_id((*base.sets, *base.eval_sets))
    entries: Entries = {}
    others: list[dict[str, Any]] = []
    for entry in run.datasets:
        if entry.get("id") in known and not any(means(entry.get(key), True) for key in ("disabled", "disable")):
            entries[entry["id"]] = dict(entry)
        else:
            others.append(dict(entry))
    written = [_entry(entries.get(name, {}), dataset, known.get(name)) for name, dataset in wanted.items()]
    by_id = {entry["id"]: entry for entry in written}
    for sets, before in ((run.sets, base.sets), (run.eval_sets, base.eval_sets)):
        _write_links(by_id, sets)
        _write_caches(by_id, sets, before)
    _write_evaluation(config, by_id, run.eval_sets)
    order = [entry.get("id") for entry in run.datasets]
    # As they stood in the file, new ones behind.
    return sorted((*written, *others), key=lambda e: order.index(e.get("id")) if e.get("id") in order else len(order))


def _by_id(sets: Sequence[SimpleTunerDataset]) -> dict[str, DatasetConfig]:
    found: dict[str, DatasetConfig] = {}
    for each in sets:
        for dataset in (each.targets, each.references):
            if dataset is not None and found.setdefault(dataset.id, dataset) != dataset:
                raise ConfigError(
                    f"Two datasets have the id {dataset.id!r}. Give each LongCatDataset an id of its own."
                )
    return found


def _entry(entry: Mapping[str, Any], dataset: DatasetConfig, before: DatasetConfig | None) -> dict[str, Any]:
    changed = dict(entry) or {"id": dataset.id, "type": "local"}
    changes = _changes(dataset, before)
    if dataset.dataset_type == "video":
        section = dict(changed.get("video") or {})
        inside = [name for name in changes if name in section or (name in CLIP_FIELDS and name not in entry)]
        section |= {name: changes.pop(name) for name in inside}
        changed |= {"video": section} if inside else {}
    else:
        for name in ("video", *OWN_TO_VIDEOS):
            changed.pop(name, None)
            changes.pop(name, None)
    for name, value in changes.items():
        if name == "dataset_type" and value == "image":
            changed.pop(name, None)
        elif name == "crop_aspect" and "crop" in changed:
            changed |= {"crop": value == "square", name: value}
        else:
            changed[name] = _plain(name, value)
    return changed


def _plain(name: str, value: Any) -> Any:
    """As SimpleTuner writes it."""
    if name == "caption_strategy" and value == "none":
        return None
    return int(value) if name == "resolution" and value.isdecimal() else value


def _write_links(entries: Entries, sets: Sequence[SimpleTunerDataset]) -> None:
    for each in sets:
        entry = entries[each.targets.id]
        named = entry.get("conditioning_data") or []
        if each.references is None:
            entry.pop("conditioning_data", None)
        elif each.references.id not in ([named] if isinstance(named, str) else named):
            entry["conditioning_data"] = [each.references.id]


def _write_caches(entries: Entries, sets: Sequence[SimpleTunerDataset], before: Sequence[SimpleTunerDataset]) -> None:
    fallback = SimpleTunerDataset(targets=DatasetConfig())
    for number, each in enumerate(sets):
        old = before[number] if number < len(before) else fallback
        if each.cache_dir_vae != old.cache_dir_vae:
            entries[each.targets.id]["cache_dir_vae"] = each.cache_dir_vae
        if each.references is not None and each.reference_cache_dir_vae != old.reference_cache_dir_vae:
            entries[each.references.id]["cache_dir_vae"] = each.reference_cache_dir_vae


def _write_evaluation(config: dict[str, Any], entries: Entries, sets: Sequence[SimpleTunerDataset]) -> None:
    evaluated = [each.targets.id for each in sets]
    if config.get("eval_dataset_id") not in evaluated:
        config.pop("eval_dataset_id", None)
    for name, entry in entries.items():
        marked = entry.get("dataset_type") == "eval"
        if marked and name not in evaluated:
            del entry["dataset_type"]
        elif name in evaluated and not marked and name != config.get("eval_dataset_id"):
            if len(evaluated) == 1:
                config["eval_dataset_id"] = name
            else:
                entry["dataset_type"] = "eval"


def _difference(run: SimpleTunerRun, again: SimpleTunerRun) -> str:
    named = ("model", "training", "datasets", "evaluation datasets", "cache_dir_text")
    pairs = zip(named, run.settings, again.settings, strict=True)
    return "; ".join(f"{name} would be {after}, not {before}" for name, before, after in pairs if before != after)
