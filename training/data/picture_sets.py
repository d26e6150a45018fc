"""A captioned folder of pictures, or two that are paired, becomes a training set. Faults are reported all at once."""

from __future__ import annotations

import os
from collections.abc import Mapping

from ..settings.dataset import DatasetConfig
from ..settings.geometry import Size
from .captions import Captions, missing_faults, nameless_warnings, read_captions, several_warnings
from .folder import (
    PictureFolder,
    duplicate_faults,
    folder_faults,
    only_sound,
    read_pictures,
    reading_warnings,
    scan_folder,
    shown,
    without_partner,
)
from .leftovers import empty_faults, leftover_warnings
from .media import PictureInfo
from .records import Source, TrainingSet, records_of


def survey_pictures(config: DatasetConfig) -> TrainingSet:
    """The pictures of a folder that are sound, and what is wrong with the others in `faults`."""
    sources = (Source(targets=config),)
    faults = folder_faults("pictures", config, "image")
    if config.caption_strategy == "none":
        faults.append(
            f"Dataset {config.id!r} has caption_strategy 'none'; pictures to learn need captions. Choose textfile,"
            " filename, instanceprompt, json or csv."
        )
    if faults:
        return TrainingSet(sources=sources, records=(), faults=tuple(faults))
    folder = scan_folder("pictures", config)
    if not folder.pictures:
        return TrainingSet(sources=sources, records=(), faults=tuple(empty_faults(folder, "pictures")))
    captions = read_captions(folder)
    infos, size_faults = read_pictures(folder)
    faults = duplicate_faults(folder.role, folder.path, folder.duplicates)
    missing = [name for name in folder.names if name not in captions.by_name]
    faults += [*captions.faults, *missing_faults(folder, captions, missing), *size_faults]
    usable = only_sound(folder, captions.by_name, infos) if faults else folder
    return TrainingSet(
        sources=sources,
        records=records_of(usable, _sizes_of(infos), captions.by_name),
        warnings=tuple(_warnings_of(folder, infos, captions)),
        faults=tuple(faults),
    )


def survey_picture_pairs(targets: DatasetConfig, references: DatasetConfig) -> TrainingSet:
    """Matches each target with the reference and the instruction of exactly the same stem, in natural order.

    The two pictures may have different suffixes. Buckets, crop and repeats come from the target's size and settings. A
    caption among the references replaces the target's, as in SimpleTuner, with a warning.

    Returns:
        the pairs that are sound, and what is wrong with the others in `faults`.
    """
    sources = (Source(targets=targets, references=references),)
    faults = _role_faults(targets, references)
    if faults:
        return TrainingSet(sources=sources, records=(), faults=tuple(faults))
    left, right = scan_folder("targets", targets), scan_folder("references", references)
    faults = empty_faults(left, "pictures") + empty_faults(right, "pictures")
    if not faults:
        faults = duplicate_faults(left.role, left.path, left.duplicates)
        faults += duplicate_faults(right.role, right.path, right.duplicates)
        faults += _unmatched_faults(left, right)
    own, replacing = read_captions(left), read_captions(right)
    captions = {**own.by_name, **replacing.by_name}
    missing = [name for name in left.names if name not in captions]
    infos, size_faults = read_pictures(left)
    right_infos, right_size_faults = read_pictures(right)
    faults += [*own.faults, *replacing.faults, *missing_faults(left, own, missing), *size_faults, *right_size_faults]
    usable = only_sound(left, captions, infos, right_infos) if faults else left
    return TrainingSet(
        sources=sources,
        records=records_of(usable, _sizes_of(infos), captions, right.pictures),
        warnings=(
            *_warnings_of(left, infos, own),
            *_replacing_warnings(right, replacing),
            *_warnings_of(right, right_infos, replacing),
        ),
        faults=tuple(faults),
    )


def _warnings_of(folder: PictureFolder, infos: Mapping[str, PictureInfo], captions: Captions) -> list[str]:
    return [
        *nameless_warnings(folder),
        *several_warnings(folder, captions),
        *reading_warnings(folder, {name: info.reading for name, info in infos.items()}),
        *leftover_warnings(folder, captions.files, folder.config.caption_strategy),
    ]


def _sizes_of(infos: Mapping[str, PictureInfo]) -> dict[str, Size]:
    return {name: info.size for name, info in infos.items()}


def _role_faults(targets: DatasetConfig, references: DatasetConfig) -> list[str]:
    faults = folder_faults("targets", targets, "image") + folder_faults("references", references, "conditioning")
    if targets.caption_strategy == references.caption_strategy == "none":
        faults.append(
            f"The targets (dataset {targets.id!r}) have caption_strategy 'none'; an edit needs instructions. Set it to"
            " 'textfile' and put each instruction into a .txt of the target's name."
        )
    if not faults and os.path.samefile(targets.instance_data_dir, references.instance_data_dir):
        faults.append(
            f"Targets and references are the same folder, {targets.instance_data_dir}. Put the reference pictures into"
            " a folder of their own, under the same names."
        )
    return faults


def _replacing_warnings(references: PictureFolder, captions: Captions) -> list[str]:
    if not captions.by_name:
        return []
    return [
        f"{len(captions.by_name)} of {len(references.pictures)} references (dataset {references.config.id!r}) have"
        " captions, and these replace the instructions of their targets. If that is not meant, set the references'"
        " caption_strategy to 'none'."
    ]


def _unmatched_faults(left: PictureFolder, right: PictureFolder) -> list[str]:
    faults = [*without_partner(left, right), *without_partner(right, left)]
    if faults:
        faults[-1] += (
            f"\n    {left.path} holds {len(left.pictures)} {left.role}: {shown(_file_names(left))}."
            f"\n    {right.path} holds {len(right.pictures)} {right.role}: {shown(_file_names(right))}."
            "\n    Rename, add or remove pictures until each target has its reference."
        )
    return faults


def _file_names(folder: PictureFolder) -> list[str]:
    return [folder.pictures[stem].name for stem in folder.names]
