"""What of a data folder is neither used nor known to be harmless: named in reports, so that nothing is missed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from .folder import PictureFolder, is_harmless, shown
from .media import OPTIONAL_SUFFIXES, is_picture
from .video_files import VIDEO_SUFFIXES

TEXT_SUFFIXES = (
    *(".txt", ".caption", ".captions", ".cap", ".tags", ".tag", ".wd14", ".blip", ".prompt"),
    *(".json", ".jsonl", ".csv", ".tsv", ".parquet", ".yaml", ".yml", ".xml", ".toml"),
)
"""What programs write captions into."""

OWN_SUFFIXES = {"textfile": (".txt",), "json": (".json",), "csv": (".csv",)}
"""caption_strategy -> suffixes of the files that it reads."""


def leftover_warnings(folder: PictureFolder, used: Collection[Path], strategy: str) -> list[str]:
    """One for each reason why files of the folder are not used.

    Args:
        used: the caption files and tables that were read.
        strategy: the caption_strategy that the folder is read with.
    """
    reasons: dict[str, list[str]] = {}
    inside = [path for item in folder.pictures.values() if item.is_dir() for path in _files_of(item)]
    for path in [*folder.others, *(path for path in inside if not is_picture(path))]:
        if path not in used:
            reasons.setdefault(_reason(folder, path, strategy), []).append(folder.shown_path(path))
    for path in folder.subfolders:
        count = len(_files_of(path))
        if count:
            why = "not read; turn on recursive, or move the files up"
            reasons.setdefault(f"sub-folders: {why}", []).append(f"{folder.shown_path(path)}/ ({count} files)")
    return [
        f"Not used in the {folder.role} folder {folder.path}: {shown(names)} ({len(names)} {reason})."
        for reason, names in reasons.items()
    ]


def empty_faults(folder: PictureFolder, wanted: str) -> list[str]:
    """The fault that a folder holds nothing of `wanted`, with what it holds instead."""
    if folder.pictures:
        return []
    rest = leftover_warnings(folder, (), folder.config.caption_strategy)
    headline = (
        f"The {folder.role} folder {folder.path} holds no {wanted}. Put them directly into it, or correct"
        " instance_data_dir."
    )
    return ["\n    ".join([headline, *rest])]


def _reason(folder: PictureFolder, path: Path, strategy: str) -> str:
    """What the file is, and why it is not used."""
    suffix = path.suffix.lower()
    if suffix in OPTIONAL_SUFFIXES:
        package = OPTIONAL_SUFFIXES[suffix]
        return f"pictures: install {package} (pip install {package}), or save them as PNG or JPEG"
    if is_picture(path):
        return "pictures: they do not move; put the pictures of one video into a sub-folder of their own"
    if suffix in VIDEO_SUFFIXES:
        return "videos: these need a dataset of dataset_type video"
    if suffix in OWN_SUFFIXES.get(strategy, ()):
        return f"caption files: none of the {folder.role} has their name"
    if suffix in TEXT_SUFFIXES:
        return f"caption files: caption_strategy {strategy} does not read them"
    return "files: nothing here reads their kind"


def _files_of(folder: Path) -> Sequence[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and not is_harmless(path))
