"""One folder of pictures: what it holds, and what is wrong with it. Faults are collected and reported all at once."""

from __future__ import annotations

import difflib
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import DataError
from ..files import sha256_of_json
from ..settings.dataset import DatasetConfig
from ..settings.geometry import Size
from .media import IMAGE_SUFFIXES, image_size

NAMES_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class PictureFolder:
    """The own files of a dataset's folder: not hidden ones, not those of sub-folders."""

    role: str
    """What its pictures are called in messages: targets, references, pictures."""
    config: DatasetConfig
    pictures: dict[str, Path]
    """By stem."""
    others: tuple[Path, ...]
    """Every other file, by name: captions, tables, and files that nothing uses."""
    duplicates: tuple[str, ...]
    subfolders: int

    @property
    def path(self) -> Path:
        return Path(self.config.instance_data_dir)

    @property
    def names(self) -> list[str]:
        """The stems, 2 before 10."""
        return sorted(self.pictures, key=natural_order)


def scan_folder(role: str, config: DatasetConfig) -> PictureFolder:
    """Lists the folder; opens no file.

    Raises:
        OSError: there is no such folder, or it cannot be read.
    """
    pictures: dict[str, list[Path]] = {}
    others: list[Path] = []
    subfolders = 0
    for path in sorted(Path(config.instance_data_dir).iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            subfolders += 1
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            pictures.setdefault(stem_of(path.name), []).append(path)
        else:
            others.append(path)
    return PictureFolder(
        role=role,
        config=config,
        pictures={stem: paths[0] for stem, paths in pictures.items()},
        others=tuple(others),
        duplicates=same_names(pictures.values()),
        subfolders=subfolders,
    )


def folder_fingerprint(folder: Path, subfolders: bool = False) -> str:
    """Hash of the names, sizes and modification times of a folder's own files; equal for missing and empty ones.

    Cheap: shows whether a folder may have changed, not what is in it.

    Args:
        subfolders: whether the files of its sub-folders count, too: those of videos that are folders of pictures.
    """
    if not folder.is_dir():
        return sha256_of_json([])
    inner = sorted(path for path in folder.iterdir() if path.is_dir()) if subfolders else []
    own = _states_of(folder)
    return sha256_of_json([own, *([path.name, _states_of(path)] for path in inner)] if inner else own)


def _states_of(folder: Path) -> list[list[str | int]]:
    with os.scandir(folder) as entries:
        files = [(entry.name, entry.stat()) for entry in entries if entry.is_file()]
    return sorted([name, state.st_size, state.st_mtime_ns] for name, state in files)


def stem_of(name: str) -> str:
    """A file's name without its suffix, in the form that files from Linux, Windows and macOS share."""
    return unicodedata.normalize("NFC", Path(name).stem)


def same_names(groups: Iterable[Sequence[Path]]) -> tuple[str, ...]:
    """Those of `groups` that hold several files, as "a.jpg = a.png"."""
    return tuple(" = ".join(path.name for path in paths) for paths in groups if len(paths) > 1)


def folder_faults(role: str, config: DatasetConfig, dataset_type: str) -> list[str]:
    """What makes it useless to look into the folder."""
    faults = []
    if config.dataset_type != dataset_type:
        faults.append(
            f"The {role} (dataset {config.id!r}) have dataset_type {config.dataset_type!r}; it must be"
            f" {dataset_type!r}. Set it, or swap the two inputs."
        )
    if not Path(config.instance_data_dir).is_dir():
        faults.append(
            f"The {role} folder {config.instance_data_dir!r} does not exist. Create it, or correct instance_data_dir."
        )
    return faults


def empty_faults(folder: PictureFolder) -> list[str]:
    if folder.pictures:
        return []
    hint = f" It has {folder.subfolders} sub-folders, which are not read." if folder.subfolders else ""
    return [
        f"The {folder.role} folder {folder.path} holds no pictures (looked for {' '.join(IMAGE_SUFFIXES)}).{hint}"
        " Put the pictures directly into it, or correct instance_data_dir."
    ]


def duplicate_faults(role: str, folder: Path, duplicates: Sequence[str]) -> list[str]:
    if not duplicates:
        return []
    return [
        f"{len(duplicates)} names occur more than once in the {role} folder {folder}: {shown(duplicates)}."
        " Keep one file of each name."
    ]


def read_sizes(folder: PictureFolder) -> tuple[dict[str, Size], list[str]]:
    """(width, height) px of every picture by stem, and the faults."""
    sizes, faulty = {}, []
    for name in folder.names:
        try:
            sizes[name] = image_size(folder.pictures[name])
        except DataError as error:
            faulty.append(str(error))
    return sizes, listed(f"{len(faulty)} of {len(folder.pictures)} {folder.role} cannot be read", faulty)


def only_sound(folder: PictureFolder, captions: Mapping[str, str], *known: Mapping[str, object]) -> PictureFolder:
    """The folder without the pictures whose caption is missing or faulty, and those that `known` does not have."""
    names = (name for name in folder.pictures if captions.get(name) and all(name in each for each in known))
    return replace(folder, pictures={name: folder.pictures[name] for name in names})


def listed(headline: str, lines: Sequence[str]) -> list[str]:
    """One fault with its first lines below it; none without lines."""
    if not lines:
        return []
    rest = [f"... and {len(lines) - NAMES_SHOWN} more"] if len(lines) > NAMES_SHOWN else []
    return ["\n    ".join([f"{headline}:", *lines[:NAMES_SHOWN], *rest])]


def refuse(headline: str, faults: Sequence[str], found_by: str = "") -> None:
    """
    Raises:
        DataError: there are faults; `headline` comes before several.
    """
    by = f"Found by {found_by}: " if found_by else ""
    if len(faults) == 1:
        raise DataError(by + faults[0])
    if faults:
        lines = [f"{by}{headline}, for {len(faults)} reasons:", *(f"- {fault}" for fault in faults)]
        raise DataError("\n".join(lines))


def shown(names: Sequence[str], total: int | None = None) -> str:
    """The first names, and how many more there are of `total` (None: of these)."""
    total = len(names) if total is None else total
    more = f" and {total - NAMES_SHOWN} more" if total > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more


def natural_order(name: str) -> tuple[Iterable[str | int], str]:
    """Numbers by value, so that 2 comes before 10; the name itself settles 1 against 01."""
    parts = re.split(r"(\d+)", name.lower())
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name


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
