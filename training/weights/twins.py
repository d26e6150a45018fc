"""The trained twins that come with the pack (folder `twins`, see its README.md), written out as model folders."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..files import A_DAY, remove_leftovers, replacing_folder
from ..settings.flavours import FLAVOURS

TWINS = Path(__file__).parents[1] / "tiny" / "twins"

SHARED = "image"
"""Parts that both image twins have in common; stored once."""

PARTS = {
    name: (name,) if flavour.draws_clips else (SHARED, name)
    for (_, name), flavour in FLAVOURS.items()
    if flavour.is_twin
}
"""Folders of `TWINS` that lie over each other, by `Flavour.folder_name`."""

MARK = "twin.json"
"""Says which training a twin comes from."""


def write_twin(folder: Path, twins: Path = TWINS) -> None:
    """Writes the twin called `folder.name`; the folder appears whole or not at all, an older twin is replaced.

    Args:
        folder: to be made; its name is one of `PARTS`.
        twins: where the trained twins are.

    Raises:
        OSError: the disk is full or the parent folder cannot be written.
    """
    remove_leftovers(folder.parent, older_than=A_DAY)
    with replacing_folder(folder) as temporary:
        for part in PARTS[folder.name]:
            # Contents only: the pack may be installed read-only.
            shutil.copytree(twins / part, temporary, copy_function=shutil.copyfile, dirs_exist_ok=True)


def is_outdated(folder: Path) -> bool:
    """Whether `folder` holds a twin of another training, or with other settings; a folder that is no twin of ours is
    not outdated."""
    if not (folder / MARK).is_file():
        return False
    shipped = [(TWINS / part, path) for part in PARTS[folder.name] for path in (TWINS / part).rglob("*.json")]
    return any(_contents(folder / path.relative_to(part)) != path.read_bytes() for part, path in shipped)


def _contents(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None
