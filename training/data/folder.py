"""One folder of pictures: what it holds, and what is wrong with it. Faults are collected and reported all at once."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import DataError
from ..files import sha256_of_json, state_of
from ..settings.dataset import DatasetConfig
from .colours import Reading
from .media import PictureInfo, image_info, is_picture

NAMES_SHOWN = 10

SYSTEM_FILES = ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r")
"""Lower case."""


@dataclass(frozen=True, kw_only=True)
class PictureFolder:
    """The files of a dataset's folder that are not hidden; with `recursive` those of its sub-folders, too."""

    role: str
    """What its pictures are called in messages: targets, references, pictures."""
    config: DatasetConfig
    pictures: dict[str, Path]
    """By name: the stem, after the sub-folders on the way to it, as in "more/a"."""
    others: tuple[Path, ...]
    """Every other file, by name: captions, tables, and files that nothing uses."""
    duplicates: tuple[str, ...]
    subfolders: tuple[Path, ...]
    """Those that were not read."""

    @property
    def path(self) -> Path:
        return Path(self.config.instance_data_dir)

    @property
    def names(self) -> list[str]:
        """2 before 10."""
        return sorted(self.pictures, key=natural_order)

    def name_of(self, path: Path) -> str:
        """The name that a file of the folder shares with its picture."""
        return name_in(self.path, path)

    def shown_path(self, path: Path) -> str:
        """For messages: from this folder on."""
        return path.relative_to(self.path).as_posix()


def scan_folder(role: str, config: DatasetConfig) -> PictureFolder:
    """Lists the folder of pictures; opens no file.

    Raises:
        OSError: there is no such folder, or it cannot be read.
    """
    return scan(role, config, lambda path: is_picture(path) and not path.is_dir())


def scan(role: str, config: DatasetConfig, is_item: Callable[[Path], bool]) -> PictureFolder:
    """Lists a folder whose files, or sub-folders, `is_item` are what is trained.

    Raises:
        OSError: there is no such folder, or it cannot be read.
    """
    folder = Path(config.instance_data_dir)
    items: dict[str, list[Path]] = {}
    others: list[Path] = []
    subfolders: list[Path] = []
    waiting, entered = [folder], set()
    while waiting:
        here = waiting.pop()
        # A link may lead back to a folder on the way.
        if here.resolve() in entered:
            continue
        entered.add(here.resolve())
        for path in sorted(here.iterdir()):
            if is_harmless(path):
                continue
            if is_item(path):
                items.setdefault(name_in(folder, path), []).append(path)
            elif path.is_dir():
                (waiting if config.recursive else subfolders).append(path)
            else:
                others.append(path)
    return PictureFolder(
        role=role,
        config=config,
        pictures={name: paths[0] for name, paths in items.items()},
        others=tuple(others),
        duplicates=same_names(items.values()),
        subfolders=tuple(subfolders),
    )


def is_harmless(path: Path) -> bool:
    """Whether it is known to be no data: hidden files, and what systems and SimpleTuner leave in folders."""
    name = path.name.lower()
    return name.startswith((".", "@eadir", "__macosx", "aspect_ratio_bucket_")) or name in SYSTEM_FILES


def folder_fingerprint(folder: Path, subfolders: bool = False) -> str:
    """Hash of the names, sizes, times and samples of a folder's files; equal for missing and empty ones.

    Cheap: shows whether a folder may have changed, not what is in it. Size and modification time alone would miss a
    file that was replaced by one of the same.

    Args:
        subfolders: whether the files of its sub-folders count, too.
    """
    if not folder.is_dir():
        return sha256_of_json([])
    paths = folder.rglob("*") if subfolders else folder.iterdir()
    return sha256_of_json(sorted([str(path.relative_to(folder)), *state_of(path)] for path in paths if path.is_file()))


def name_in(folder: Path, path: Path) -> str:
    """A file's place in `folder` without its suffix, in the form that Linux, Windows and macOS share.

    The name of a folder is all stem: "take.1" has no suffix ".1".
    """
    place = path.relative_to(folder)
    name = place if path.is_dir() else place.with_name(place.stem)
    return unicodedata.normalize("NFC", name.as_posix())


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


def duplicate_faults(role: str, folder: Path, duplicates: Sequence[str]) -> list[str]:
    if not duplicates:
        return []
    return [
        f"{len(duplicates)} names occur more than once in the {role} folder {folder}: {shown(duplicates)}."
        " Keep one file of each name."
    ]


def read_pictures(folder: PictureFolder) -> tuple[dict[str, PictureInfo], list[str]]:
    """What each picture's head says, by name, and the faults."""
    infos, faulty = {}, []
    for name in folder.names:
        try:
            infos[name] = image_info(folder.pictures[name])
        except DataError as error:
            faulty.append(str(error))
    return infos, listed(f"{len(faulty)} of {len(folder.pictures)} {folder.role} cannot be read", faulty)


def reading_warnings(folder: PictureFolder, readings: Mapping[str, Reading]) -> list[str]:
    """That files are read in another way than by decoding alone; one for each way."""
    by_note: dict[str, list[str]] = {}
    for name, reading in readings.items():
        if reading.note:
            by_note.setdefault(reading.note, []).append(folder.shown_path(folder.pictures[name]))
    total = len(folder.pictures)
    return [
        f"{len(names)} of {total} {folder.role} ({note}): {shown(names)}." for note, names in sorted(by_note.items())
    ]


def only_sound(
    folder: PictureFolder, captions: Mapping[str, Sequence[str]], *known: Mapping[str, object]
) -> PictureFolder:
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
