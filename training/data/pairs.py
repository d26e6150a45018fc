"""Two folders of pictures become pairs: files of one stem belong together. All faults are told at once."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..config import DatasetConfig
from ..errors import DataError
from ..files import sha256_of_json
from .buckets import bucket_choices, nearest_bucket
from .captions import CAPTION_SUFFIX, read_caption
from .media import IMAGE_SUFFIXES, image_size
from .records import Record, Source, TrainingSet

NAMES_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class _Side:
    """What one folder holds."""

    role: str
    config: DatasetConfig
    pictures: dict[str, Path] = field(default_factory=dict)
    captions: dict[str, Path] = field(default_factory=dict)
    duplicates: list[str] = field(default_factory=list)
    subfolders: int = 0

    @property
    def folder(self) -> Path:
        return Path(self.config.instance_data_dir)


def pair_datasets(targets: DatasetConfig, references: DatasetConfig) -> TrainingSet:
    """Matches each target with the reference and the instruction of exactly the same stem, in natural order.

    The two pictures may have different suffixes. Read are the folders' own files: not hidden ones, not sub-folders,
    nothing that is no picture. The bucket comes from the target's size and settings; the reference's resolution and
    its captions are not used.

    Args:
        targets: dataset_type "image", captions in text files; instance_data_dir is an absolute path.
        references: dataset_type "conditioning"; instance_data_dir is an absolute path.

    Raises:
        DataError: lists everything that is wrong, with counts, names and remedies.
    """
    faults = _role_faults(targets, references)
    if not faults:
        left, right = _scan("targets", targets), _scan("references", references)
        faults = _empty_faults(left) + _empty_faults(right)
        if not faults:
            faults = _duplicate_faults(left) + _duplicate_faults(right)
            faults += _unmatched_faults(left, right)
        captions, caption_faults = _read_captions(left)
        sizes, size_faults = _read_sizes(left)
        faults += caption_faults + size_faults + _read_sizes(right)[1]
    if faults:
        raise DataError(_message(faults))
    names = sorted(left.pictures, key=_natural_order)
    records = tuple(
        Record(
            name=name,
            target=left.pictures[name],
            references=(right.pictures[name],),
            caption=captions[name],
            bucket=nearest_bucket(*sizes[name], choices),
            repeats=targets.repeats,
        )
        for choices in bucket_choices(targets)
        for name in names
    )
    return TrainingSet(sources=(Source(targets=targets, references=references),), records=records)


def folder_fingerprint(folder: Path) -> str:
    """Hash of the names, sizes and modification times of a folder's own files; equal for missing and empty ones.

    Cheap: it tells whether a folder may have changed, not what is in it.
    """
    if not folder.is_dir():
        return sha256_of_json([])
    with os.scandir(folder) as entries:
        files = [(entry.name, entry.stat()) for entry in entries if entry.is_file()]
    return sha256_of_json(sorted([name, state.st_size, state.st_mtime_ns] for name, state in files))


def _role_faults(targets: DatasetConfig, references: DatasetConfig) -> list[str]:
    faults = []
    for role, config, dataset_type in (("targets", targets, "image"), ("references", references, "conditioning")):
        if config.dataset_type != dataset_type:
            faults.append(
                f"The {role} (dataset {config.id!r}) have dataset_type {config.dataset_type!r}; it must be"
                f" {dataset_type!r}. Set it, or swap the two inputs."
            )
        if not Path(config.instance_data_dir).is_dir():
            faults.append(
                f"The {role} folder {config.instance_data_dir!r} does not exist. Create it, or correct"
                " instance_data_dir."
            )
    if targets.caption_strategy != "textfile":
        faults.append(
            f"The targets (dataset {targets.id!r}) have caption_strategy {targets.caption_strategy!r}; an edit needs"
            " instructions. Set it to 'textfile' and put each instruction into a .txt of the target's name."
        )
    if not faults and os.path.samefile(targets.instance_data_dir, references.instance_data_dir):
        faults.append(
            f"Targets and references are the same folder, {targets.instance_data_dir}. Put the reference pictures into"
            " a folder of their own, under the same names."
        )
    return faults


def _scan(role: str, config: DatasetConfig) -> _Side:
    pictures: dict[str, list[Path]] = {}
    captions: dict[str, list[Path]] = {}
    subfolders = 0
    for path in sorted(Path(config.instance_data_dir).iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            subfolders += 1
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            pictures.setdefault(path.stem, []).append(path)
        elif path.suffix.lower() == CAPTION_SUFFIX:
            captions.setdefault(path.stem, []).append(path)
    groups = [*pictures.values(), *captions.values()]
    return _Side(
        role=role,
        config=config,
        pictures={stem: paths[0] for stem, paths in pictures.items()},
        captions={stem: paths[0] for stem, paths in captions.items()},
        duplicates=[" = ".join(path.name for path in paths) for paths in groups if len(paths) > 1],
        subfolders=subfolders,
    )


def _empty_faults(side: _Side) -> list[str]:
    if side.pictures:
        return []
    hint = f" It has {side.subfolders} sub-folders, which are not read." if side.subfolders else ""
    return [
        f"The {side.role} folder {side.folder} holds no pictures (looked for {' '.join(IMAGE_SUFFIXES)}).{hint}"
        " Put the pictures directly into it, or correct instance_data_dir."
    ]


def _duplicate_faults(side: _Side) -> list[str]:
    if not side.duplicates:
        return []
    return [
        f"{len(side.duplicates)} names occur more than once in the {side.role} folder {side.folder}:"
        f" {_first(side.duplicates)}. Keep one file of each name."
    ]


def _unmatched_faults(left: _Side, right: _Side) -> list[str]:
    faults = [*_without_partner(left, right), *_without_partner(right, left)]
    if faults:
        faults[-1] += (
            f"\n    {left.folder} holds {len(left.pictures)} {left.role}: {_first(_names(left))}."
            f"\n    {right.folder} holds {len(right.pictures)} {right.role}: {_first(_names(right))}."
            f"\n    Looked for {' '.join(IMAGE_SUFFIXES)}. Rename, add or remove pictures until each target has its"
            " reference."
        )
    return faults


def _without_partner(side: _Side, other: _Side) -> list[str]:
    unmatched = sorted(side.pictures.keys() - other.pictures.keys(), key=_natural_order)
    if not unmatched:
        return []
    # A misspelt name is most likely to mean one that is left over, too.
    partners = sorted(other.pictures.keys() - side.pictures.keys()) or sorted(other.pictures)
    shown = []
    for name in unmatched[:NAMES_SHOWN]:
        nearest = difflib.get_close_matches(name, partners, n=1, cutoff=0.0)[0]
        shown.append(f"{side.pictures[name].name} (nearest: {other.pictures[nearest].name})")
    return [
        f"{len(unmatched)} of {len(side.pictures)} {side.role} have no picture of the same name among the {other.role}:"
        f" {_first(shown, len(unmatched))}."
    ]


def _read_captions(side: _Side) -> tuple[dict[str, str], list[str]]:
    captions, missing, faulty = {}, [], []
    for name in sorted(side.pictures, key=_natural_order):
        if name not in side.captions:
            missing.append(name + CAPTION_SUFFIX)
            continue
        try:
            captions[name] = read_caption(side.captions[name])
        except DataError as error:
            faulty.append(str(error))
    faults = _listed(f"{len(faulty)} of {len(side.captions)} caption files cannot be used", faulty)
    if missing:
        faults.append(
            f"{len(missing)} of {len(side.pictures)} {side.role} have no caption file: {_first(missing)} (looked in"
            f" {side.folder}). Write each instruction into a .txt of the picture's name."
        )
    return captions, faults


def _read_sizes(side: _Side) -> tuple[dict[str, tuple[int, int]], list[str]]:
    sizes, faulty = {}, []
    for name in sorted(side.pictures, key=_natural_order):
        try:
            sizes[name] = image_size(side.pictures[name])
        except DataError as error:
            faulty.append(str(error))
    return sizes, _listed(f"{len(faulty)} of {len(side.pictures)} {side.role} cannot be read", faulty)


def _listed(headline: str, lines: Sequence[str]) -> list[str]:
    if not lines:
        return []
    rest = [f"... and {len(lines) - NAMES_SHOWN} more"] if len(lines) > NAMES_SHOWN else []
    return ["\n    ".join([f"{headline}:", *lines[:NAMES_SHOWN], *rest])]


def _message(faults: Sequence[str]) -> str:
    if len(faults) == 1:
        return faults[0]
    return "\n".join([f"The two folders cannot be paired, for {len(faults)} reasons:", *(f"- {f}" for f in faults)])


def _names(side: _Side) -> list[str]:
    return [side.pictures[stem].name for stem in sorted(side.pictures, key=_natural_order)]


def _first(names: Sequence[str], total: int | None = None) -> str:
    total = len(names) if total is None else total
    more = f" and {total - NAMES_SHOWN} more" if total > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more


def _natural_order(name: str) -> tuple[Iterable[str | int], str]:
    """Numbers by value, so that 2 comes before 10; the name itself settles 1 against 01."""
    parts = re.split(r"(\d+)", name.lower())
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name
