"""Captions and instructions of a folder's pictures, by each `caption_strategy`."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError, DataError
from .caption_files import (
    CAPTION_KEYS,
    NAME_KEYS,
    Row,
    read_csv_table,
    read_json_caption,
    read_json_table,
    read_lines,
    read_whole,
)
from .folder import PictureFolder, duplicate_faults, listed, same_names, shown

JSON_TABLES = ("captions.json", "metadata.json")


@dataclass(frozen=True, kw_only=True)
class Captions:
    """What a folder says about its pictures."""

    by_name: Mapping[str, tuple[str, ...]]
    """Captions by the picture's name; some may be missing, and those of a faulty file are empty."""
    files: Sequence[Path] = ()
    """Where they were read from."""
    faults: Sequence[str] = ()
    """What is wrong with the captions that are there."""
    remedy: str = ""
    """How to give one that is missing."""


def read_captions(folder: PictureFolder) -> Captions:
    """The captions of a folder's pictures, by its own `caption_strategy`. A missing caption is no fault here.

    The strategies are SimpleTuner's, its blanks for underscores included; `json` is ours.
    """
    strategy = folder.config.caption_strategy
    if strategy == "textfile":
        read = read_whole if folder.config.disable_multiline_split else read_lines
        return _beside(folder, ".txt", read, "Write each one into a .txt of the picture's name.")
    if strategy == "filename":
        return Captions(by_name={name: (_words_of(name),) for name in folder.pictures})
    if strategy == "instanceprompt":
        return Captions(by_name=dict.fromkeys(folder.pictures, (folder.config.instance_prompt.strip(),)))
    if strategy == "json":
        return _from_json(folder)
    if strategy == "csv":
        tables = [path for path in folder.others if path.suffix.lower() == ".csv"]
        columns = f"{' or '.join(NAME_KEYS)}, and {' or '.join(CAPTION_KEYS)}"
        return _from_tables(folder, tables, read_csv_table, f"Give each a row in one .csv with the columns {columns}.")
    if strategy == "none":
        return Captions(by_name={}, remedy="Choose another caption_strategy.")
    raise ConfigError(f"caption_strategy is {strategy!r}, which nothing here reads. Choose one of the list.")


def _words_of(name: str) -> str:
    return name.rpartition("/")[2].replace("_", " ").strip()


def missing_faults(folder: PictureFolder, captions: Captions, names: Sequence[str]) -> list[str]:
    """The fault that the pictures `names` have no caption; none without names."""
    if not names:
        return []
    if folder.config.caption_strategy == "textfile":
        what, missing = "no caption file", [f"{name}.txt" for name in names]
    else:
        what, missing = "no caption", [folder.pictures[name].name for name in names]
    return [
        f"{len(names)} of {len(folder.pictures)} {folder.role} have {what}: {shown(missing)} (looked in {folder.path})."
        f" {captions.remedy}"
    ]


def nameless_warnings(folder: PictureFolder) -> list[str]:
    """That captions from file names say nothing, such as 0012.png."""
    if folder.config.caption_strategy != "filename":
        return []
    names = [folder.pictures[name].name for name in folder.names if not any(map(str.isalpha, _words_of(name)))]
    if not names:
        return []
    return [
        f"{len(names)} of {len(folder.pictures)} {folder.role} (dataset {folder.config.id!r}) have file names without a"
        f" word, and these are their captions: {shown(names)}. Rename them, or choose another caption_strategy."
    ]


def several_warnings(folder: PictureFolder, captions: Captions) -> list[str]:
    """That text files hold several captions each."""
    several = [path for path in captions.files if len(captions.by_name.get(folder.name_of(path), ())) > 1]
    if not several:
        return []
    return [
        f"{len(several)} of {len(captions.files)} caption files have several lines: {shown_files(folder, several)}."
        " Each line is a caption of its own, and one of them is drawn each time that the file is seen, as in"
        " SimpleTuner. Turn on disable_multiline_split to make one caption of each file."
    ]


def shown_files(folder: PictureFolder, paths: Sequence[Path]) -> str:
    return shown([folder.shown_path(path) for path in paths])


def _beside(folder: PictureFolder, suffix: str, read: Callable[[Path], tuple[str, ...]], remedy: str) -> Captions:
    """Captions from a file of each picture's name; files of other names are left alone."""
    files: dict[str, list[Path]] = {}
    for path in folder.others:
        if path.suffix.lower() == suffix and folder.name_of(path) in folder.pictures:
            files.setdefault(folder.name_of(path), []).append(path)
    captions, faulty = {}, []
    for name, paths in files.items():
        try:
            captions[name] = read(paths[0])
        except DataError as error:
            faulty.append(str(error))
            # Faulty, not missing.
            captions[name] = ()
    faults = listed(f"{len(faulty)} of {len(files)} caption files cannot be used", faulty)
    faults += duplicate_faults(folder.role, folder.path, same_names(files.values()))
    return Captions(
        by_name=captions, files=[path for paths in files.values() for path in paths], faults=faults, remedy=remedy
    )


def _from_json(folder: PictureFolder) -> Captions:
    remedy = (
        'Write each one into a .json of the picture\'s name, as {"caption": "..."}, or all into captions.json, as'
        ' {"a.png": "..."}.'
    )
    own = _beside(folder, ".json", lambda path: (read_json_caption(path),), remedy)
    tables = [path for path in folder.others if path.parent == folder.path and path.name.lower() in JSON_TABLES]
    tables = [path for path in tables if folder.name_of(path) not in folder.pictures]
    common = _from_tables(folder, tables, read_json_table, remedy)
    both = [folder.pictures[name].name for name in folder.names if name in own.by_name and name in common.by_name]
    conflict = f"{len(both)} {folder.role} have a .json of their own and an entry in {tables[0].name}" if both else ""
    faults = [*own.faults, *common.faults, *([f"{conflict}: {shown(both)}. Remove one of them."] if both else [])]
    files = [*own.files, *common.files]
    return Captions(by_name={**common.by_name, **own.by_name}, files=files, faults=faults, remedy=remedy)


def _from_tables(
    folder: PictureFolder, tables: Sequence[Path], read: Callable[[Path], list[Row]], remedy: str
) -> Captions:
    """Captions from the one table in the folder."""
    if not tables:
        return Captions(by_name={}, remedy=remedy)
    if len(tables) > 1:
        names = shown([table.name for table in tables])
        fault = f"The {folder.role} folder {folder.path} holds {len(tables)} tables of captions: {names}. Keep one."
        return _unreadable(folder, tables, fault)
    try:
        rows = read(tables[0])
    except DataError as error:
        return _unreadable(folder, tables, str(error))
    return _matched(folder, tables[0], rows, remedy)


def _matched(folder: PictureFolder, table: Path, rows: Sequence[Row], remedy: str) -> Captions:
    """The pictures that the rows name, by file name or by stem, after the sub-folder if there is one."""
    stems = {unicodedata.normalize("NFC", folder.shown_path(path)): name for name, path in folder.pictures.items()}
    stems = {**{name: name for name in folder.pictures}, **stems}
    captions, unknown, repeated = {}, [], []
    for written, caption in rows:
        name = stems.get(unicodedata.normalize("NFC", written.replace("\\", "/").removeprefix("./")))
        if name is None:
            nearest = difflib.get_close_matches(written, stems, n=1, cutoff=0.0)
            unknown.append(f"{written} (nearest: {nearest[0]})" if nearest else written)
        elif name in captions:
            repeated.append(written)
        else:
            captions[name] = (caption,)
    faults = []
    if unknown:
        faults.append(
            f"{len(unknown)} of {len(rows)} entries of {table} name no picture of the folder: {shown(unknown)}."
            " Correct or remove them."
        )
    if repeated:
        faults.append(
            f"{len(repeated)} pictures occur more than once in {table}: {shown(repeated)}. Keep one entry each."
        )
    return Captions(by_name=captions, files=[table], faults=faults, remedy=remedy)


def _unreadable(folder: PictureFolder, tables: Sequence[Path], fault: str) -> Captions:
    # No further complaint that every single caption is missing.
    return Captions(by_name=dict.fromkeys(folder.pictures, ()), files=tables, faults=[fault])
