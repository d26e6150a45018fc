"""Two folders of pictures become pairs: files of one stem belong together. All faults are told at once."""

from __future__ import annotations

import difflib
import os

from ..config import DatasetConfig
from .captions import Captions, missing_faults, nameless_warnings, read_captions
from .folder import (
    NAMES_SHOWN,
    PictureFolder,
    duplicate_faults,
    empty_faults,
    folder_faults,
    natural_order,
    only_sound,
    read_sizes,
    refuse,
    scan_folder,
    shown,
)
from .media import IMAGE_SUFFIXES
from .records import Source, TrainingSet
from .sets import records_of

HEADLINE = "The two folders cannot be paired"


def pair_datasets(targets: DatasetConfig, references: DatasetConfig) -> TrainingSet:
    """Matches each target with the reference and the instruction of exactly the same stem, in natural order.

    Targets that are videos have start frames for references, see `video_sets.scan_videos`. Of pictures:

    The two pictures may have different suffixes. Read are the folders' own files: not hidden ones, not sub-folders,
    nothing that is no picture. Buckets, crop and repeats come from the target's size and settings. A caption among the
    references replaces the target's, as in SimpleTuner, with a warning.

    Args:
        targets: dataset_type "image" or "video"; instance_data_dir is an absolute path.
        references: dataset_type "conditioning"; instance_data_dir is an absolute path.

    Raises:
        DataError: lists everything that is wrong, with counts, names and remedies.
    """
    if targets.dataset_type == "video":
        # Here, as it makes use of this module.
        from .video_sets import scan_videos

        return scan_videos(targets, references)
    found = survey_pairs(targets, references)
    refuse(HEADLINE, found.faults)
    return found


def survey_pairs(targets: DatasetConfig, references: DatasetConfig) -> TrainingSet:
    """As `pair_datasets`, but with the pairs that are sound, and what is wrong with the others in `faults`."""
    if targets.dataset_type == "video":
        from .video_sets import survey_videos

        return survey_videos(targets, references)
    sources = (Source(targets=targets, references=references),)
    faults = _role_faults(targets, references)
    if faults:
        return TrainingSet(sources=sources, records=(), faults=tuple(faults))
    left, right = scan_folder("targets", targets), scan_folder("references", references)
    faults = empty_faults(left) + empty_faults(right)
    if not faults:
        faults = duplicate_faults(left.role, left.path, left.duplicates)
        faults += duplicate_faults(right.role, right.path, right.duplicates)
        faults += _unmatched_faults(left, right)
    own, replacing = read_captions(left), read_captions(right)
    captions = {**own.by_name, **replacing.by_name}
    missing = [name for name in left.names if name not in captions]
    sizes, size_faults = read_sizes(left)
    right_sizes, right_size_faults = read_sizes(right)
    faults += [*own.faults, *replacing.faults, *missing_faults(left, own, missing), *size_faults, *right_size_faults]
    usable = only_sound(left, captions, sizes, right_sizes) if faults else left
    return TrainingSet(
        sources=sources,
        records=records_of(usable, sizes, captions, right.pictures),
        warnings=(*nameless_warnings(left), *_replacing_warnings(right, replacing)),
        faults=tuple(faults),
    )


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
            f"\n    Looked for {' '.join(IMAGE_SUFFIXES)}. Rename, add or remove pictures until each target has its"
            " reference."
        )
    return faults


def without_partner(side: PictureFolder, other: PictureFolder) -> list[str]:
    """The fault, if any, that files of `side` have none of their name on the `other` side."""
    unmatched = sorted(side.pictures.keys() - other.pictures.keys(), key=natural_order)
    if not unmatched:
        return []
    # A misspelt name is most likely to mean one that is left over, too.
    partners = sorted(other.pictures.keys() - side.pictures.keys()) or sorted(other.pictures)
    lines = []
    for name in unmatched[:NAMES_SHOWN]:
        nearest = difflib.get_close_matches(name, partners, n=1, cutoff=0.0)[0]
        lines.append(f"{side.pictures[name].name} (nearest: {other.pictures[nearest].name})")
    return [
        f"{len(unmatched)} of {len(side.pictures)} {side.role} have no picture of the same name among the {other.role}:"
        f" {shown(lines, len(unmatched))}."
    ]


def _file_names(folder: PictureFolder) -> list[str]:
    return [folder.pictures[stem].name for stem in folder.names]
