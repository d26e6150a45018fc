"""The entries of a data file -> datasets, who belongs to whom, and where caches lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import ConfigError
from ..settings.dataset import REFERENCES_FOLDER, TARGETS_FOLDER, DatasetConfig
from .keys import CLIP_FIELDS, CONFIG_KEYS, DATA_KEYS, VIDEO_KEYS
from .values import Faults, build, field_values, fill_placeholders, means, nearest, read_values

CACHE_ONLY = ("text_embeds", "image_embeds", "conditioning_image_embeds")
"""Dataset types of SimpleTuner that only say where a cache lies."""

OWN_TO_TARGETS = ("caption_strategy", "instance_prompt")
"""Keys of config.json that are not meant for reference pictures: their captions would replace the instructions."""

OWN_TO_VIDEOS = (*CLIP_FIELDS, "is_i2v")
"""Keys that say nothing about pictures."""


LINKS = ("id", "dataset_type", "conditioning_data")
"""What one entry says about others."""


@dataclass(frozen=True, kw_only=True)
class SimpleTunerDataset:
    """Pictures or videos to learn, with their references or start frames if there are any."""

    targets: DatasetConfig
    references: DatasetConfig | None = None
    cache_dir_vae: str = TARGETS_FOLDER
    reference_cache_dir_vae: str = REFERENCES_FOLDER


def read_sets(
    config: Mapping[str, Any], datasets: Sequence[Mapping[str, Any]], notes: list[str], faults: Faults
) -> tuple[tuple[SimpleTunerDataset, ...], tuple[SimpleTunerDataset, ...], str | None]:
    """(training sets, evaluation sets, folder of text caches or None); adds to `notes` and `faults`.

    Args:
        config: the values of config.json, read.
        datasets: the entries of the data file, as written.
    """
    entries, text_cache = _entries(config, datasets, notes, faults)
    referenced: dict[str, str | None] = dict.fromkeys(entries)
    for name, entry in entries.items():
        with faults.noted():
            referenced[name] = _references_of(name, entry, entries)
    with faults.noted():
        _check_use(entries, referenced)
    targets = [name for name in entries if name not in referenced.values()]
    sets = {name: _set_of(config, entries, name, referenced[name], faults) for name in targets}
    evaluation: list[str] = []
    with faults.noted():
        evaluation = _evaluation(config, entries, targets)
    training = _cached_together([each for name, each in sets.items() if name not in evaluation], notes)
    return training, _cached_together([sets[name] for name in evaluation], notes), text_cache


def _entries(
    config: Mapping[str, Any], datasets: Sequence[Mapping[str, Any]], notes: list[str], faults: Faults
) -> tuple[dict[str, Mapping[str, Any]], str | None]:
    """(read entries of folders by id, folder of text caches)"""
    entries: dict[str, Mapping[str, Any]] = {}
    text_cache = None
    for number, written in enumerate(datasets, start=1):
        name = written.get("id")
        where = f"dataset {name!r}" if name else f"dataset {number} of the data file"
        kind = written.get("dataset_type") or "image"
        disabled = any(means(written.get(key), True) for key in ("disabled", "disable"))
        if (written.get("type") or "local") != "local" and kind not in CACHE_ONLY and not disabled:
            faults.append(_elsewhere(where, written))
            # Its other keys are about that place; what others say about it is still looked at.
            written = {key: written[key] for key in LINKS if key in written} | {"instance_data_dir": "elsewhere"}
        if disabled:
            notes.append(f"{where} is disabled and left out.")
            continue
        variables = {key: config.get(key) for key in ("model_family", "output_dir")} | {"id": name}
        entry = read_values(fill_placeholders(written, variables, where, faults), DATA_KEYS, where, faults)
        if kind in CACHE_ONLY:
            notes.append(f"{where}: of {kind} only cache_dir counts. {DATA_KEYS['text_embeds'].meaning}")
            if kind == "text_embeds":
                text_cache = text_cache or entry.get("cache_dir")
        else:
            with faults.noted():
                _check_entry(where, entry, entries)
                entries[entry["id"]] = _with_video_keys(entry, where, faults)
            notes += [f"{where}, {key}: {DATA_KEYS[key].meaning}" for key in entry if DATA_KEYS[key].without_effect]
            section = entry.get("video") if isinstance(entry.get("video"), dict) else {}
            idle = [key for key in section if key in VIDEO_KEYS and VIDEO_KEYS[key].without_effect]
            notes += [f"{where}, video, {key}: {VIDEO_KEYS[key].meaning}" for key in idle]
    return entries, text_cache


def _elsewhere(where: str, entry: Mapping[str, Any]) -> str:
    """Why a dataset that is in no local folder is refused."""
    kind = entry["type"]
    place = f" ({entry['dataset_name']})" if isinstance(entry.get("dataset_name"), str) else ""
    what = f"a dataset of the Hugging Face hub{place}" if kind == "huggingface" else f"of type {kind!r}"
    return (
        f"{where} is {what}; data are read from local folders only. Download it, save its pictures or videos into a"
        " folder, each with its caption in a .txt of the same name, and write type local, instance_data_dir and"
        " caption_strategy textfile (or instanceprompt) instead."
    )


def _check_entry(where: str, entry: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    name = entry.get("id")
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{where} has id {name!r}; give it a name of its own, by which others refer to it.")
    if name in known:
        raise ConfigError(f"Two datasets have the id {name!r}. Rename one, here and where it is referred to.")
    if not entry.get("instance_data_dir"):
        raise ConfigError(f"{where} has no instance_data_dir; give the folder of its pictures.")
    given = [key for key in ("video", *OWN_TO_VIDEOS) if entry.get(key)]
    if given and entry.get("dataset_type") not in ("video", "eval"):
        raise ConfigError(
            f"{where} has {given[0]}, which is about videos, and dataset_type {entry.get('dataset_type') or 'image'!r}."
            " Set dataset_type to 'video', or remove the key."
        )


def _with_video_keys(entry: Mapping[str, Any], where: str, faults: Faults) -> dict[str, Any]:
    """`entry` with what its section `video` says put beside it.

    Raises:
        ConfigError: the section is no object, or contradicts a key beside it.
    """
    section = entry.get("video") or {}
    if not isinstance(section, dict):
        raise ConfigError(f'{where}: video is {section!r}; it must be an object, such as {{"num_frames": 93}}.')
    section = read_values(section, VIDEO_KEYS, f"{where}, video", faults)
    flat = {key: value for key, value in entry.items() if key != "video"}
    for key, value in section.items():
        if VIDEO_KEYS[key].owner is None:
            continue
        if flat.get(key, value) != value:
            raise ConfigError(
                f"{where}: {key} is {flat[key]!r}, and {value!r} in its section video. Remove one of them."
            )
        flat[key] = value
    return flat


def _references_of(name: str, entry: Mapping[str, Any], entries: Mapping[str, Any]) -> str | None:
    named = entry.get("conditioning_data") or []
    named = [named] if isinstance(named, str) else named
    if not isinstance(named, list) or len(named) > 1 or not all(isinstance(each, str) for each in named):
        raise ConfigError(
            f"dataset {name!r} has conditioning_data {named!r}; the released models take one reference picture or"
            " start frame: give the id of one dataset."
        )
    if not named:
        return None
    if named[0] not in entries or named[0] == name:
        raise ConfigError(
            f"dataset {name!r} has conditioning_data {named[0]!r}, but there is no other dataset of that"
            f" id{nearest(str(named[0]), entries)}. Add the dataset of reference pictures, or correct the id."
        )
    return named[0]


def _check_use(entries: Mapping[str, Any], referenced: Mapping[str, str | None]) -> None:
    used = set(referenced.values())
    for name, entry in entries.items():
        if entry.get("dataset_type") == "conditioning" and name not in used:
            raise ConfigError(
                f"dataset {name!r} has dataset_type 'conditioning', but no dataset names it. Write"
                f' "conditioning_data": ["{name}"] into the dataset whose references these are, or remove it.'
            )
        if name in used and referenced[name] is not None:
            raise ConfigError(
                f"dataset {name!r} is a reference set and has conditioning_data itself. Remove that key from it."
            )


def _evaluation(config: Mapping[str, Any], entries: Mapping[str, Any], targets: Sequence[str]) -> list[str]:
    named = config.get("eval_dataset_id")
    if named and named not in targets:
        raise ConfigError(
            f"eval_dataset_id is {named!r}, but the data file has no such dataset of pictures to learn"
            f"{nearest(str(named), targets)}; it has {', '.join(targets) or 'none'}. Add it, or correct the id."
        )
    return [name for name in targets if name == named or entries[name].get("dataset_type") == "eval"]


def _set_of(
    config: Mapping[str, Any],
    entries: Mapping[str, Mapping[str, Any]],
    name: str,
    references: str | None,
    faults: Faults,
) -> SimpleTunerDataset:
    targets = _dataset(config, entries[name], _role_of(config, entries[name]), faults)
    caches = {}
    if cache := entries[name].get("cache_dir_vae"):
        caches["cache_dir_vae"] = str(cache)
    if references is None:
        return SimpleTunerDataset(targets=targets, **caches)
    if cache := entries[references].get("cache_dir_vae"):
        caches["reference_cache_dir_vae"] = str(cache)
    if len(caches) == 2 and len(set(caches.values())) == 1:
        faults.append(
            f"datasets {name!r} and {references!r} have one cache_dir_vae, {cache!r}. Give each a folder of its own."
        )
    return SimpleTunerDataset(
        targets=targets, references=_dataset(config, entries[references], "conditioning", faults), **caches
    )


def _role_of(config: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
    kind = entry.get("dataset_type")
    is_video = kind == "video" or (kind == "eval" and config.get("model_family") == "longcat_video")
    return "video" if is_video else "image"


def _dataset(config: Mapping[str, Any], entry: Mapping[str, Any], role: str, faults: Faults) -> DatasetConfig:
    without = OWN_TO_TARGETS if role == "conditioning" else ()
    without = (*without, *(() if role == "video" else OWN_TO_VIDEOS))
    # What the dataset itself says overrides what is said for all of them.
    shared = {key: value for key, value in config.items() if key not in without}
    # SimpleTuner reads all sub-folders.
    values = {"recursive": True} | field_values(DatasetConfig, shared, CONFIG_KEYS, faults)
    values |= field_values(DatasetConfig, entry, DATA_KEYS, faults)
    values["dataset_type"] = role
    if role == "conditioning" or "caption_strategy" in entry and entry["caption_strategy"] is None:
        values["caption_strategy"] = entry.get("caption_strategy") or "none"
    if (crop := entry.get("crop", config.get("crop"))) is not None:
        values["crop_aspect"] = values.get("crop_aspect", "square") if crop else "preserve"
    return build(DatasetConfig, values, f"dataset {entry['id']!r}", faults)


def _cached_together(sets: Sequence[SimpleTunerDataset], notes: list[str]) -> tuple[SimpleTunerDataset, ...]:
    """The sets with one pair of cache folders, since they go through the cache nodes as one."""
    if not sets:
        return ()
    folders = {"cache_dir_vae": sets[0].cache_dir_vae}
    of_references = [each.reference_cache_dir_vae for each in sets if each.references is not None]
    folders["reference_cache_dir_vae"] = next(iter(of_references), REFERENCES_FOLDER)
    for each in sets[1:]:
        if each.cache_dir_vae not in (sets[0].cache_dir_vae, TARGETS_FOLDER):
            notes.append(
                f"dataset {each.targets.id!r}, cache_dir_vae: datasets of one run share the first one's,"
                f" {sets[0].cache_dir_vae}."
            )
    return tuple(replace(each, **folders) for each in sets)
