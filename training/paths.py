"""Which folders and names a workflow may give: paths in a graph come from anyone who can reach the server."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .errors import ConfigError, PathError

LONGEST_NAME = 255
"""Bytes of one file's or folder's name, the least of Linux, Windows and macOS."""

LONGEST_PATH = 900
"""Bytes of a folder's whole path: macOS takes 1,024, and files in it have names of their own."""

LINKS_SHOWN = 3

WINDOWS_RESERVED_NAMES = {"CON", "PRN", "AUX", "NUL", *(f"{port}{i}" for port in ("COM", "LPT") for i in range(10))}


MOVE_OR_ALLOW = (
    "Move the data into one of them, or let the server's owner add its folder to LONGCAT_DATA_ROOTS (separated as in"
    " PATH)."
)


@dataclass(frozen=True, kw_only=True)
class AllowedRoots:
    """The folders that paths of a workflow must lie in.

    `roots` None means no bound: on the terminal the user's own paths are the user's.
    `bases` are the folders that a relative path is looked up in, in this order.
    """

    bases: tuple[Path, ...]
    roots: tuple[Path, ...] | None = None

    def resolve_folder(self, text: str, what: str) -> Path:
        """An existing folder, as its real path.

        Args:
            text: as the user wrote it; relative to one of `bases`, or absolute.
            what: what the folder is for, to begin the message with, e.g. `"LongCatDataset.instance_data_dir"`.

        Raises:
            PathError: empty, outside the allowed roots (compared as real paths, so links and `..` do not help),
                no such folder, or one that holds links to places outside the allowed roots.
        """
        # Not Path.is_dir, which raises for names that are too long.
        return self._first(text, what, os.path.isdir, "folder")

    def resolve_existing(self, text: str, what: str) -> Path:
        """An existing folder or file, as its real path; otherwise as `resolve_folder`."""
        return self._first(text, what, os.path.exists, "folder or file")

    def resolve_new(self, text: str, what: str) -> Path:
        """A path that need not exist yet, in the first base unless absolute; same containment as `resolve_folder`.

        Raises:
            PathError: empty, or outside the allowed roots.
        """
        return self._candidates(text, what)[0]

    def _first(self, text: str, what: str, is_there: Callable[[Path], bool], wanted: str) -> Path:
        for candidate in self._candidates(text, what):
            if is_there(candidate):
                self._refuse_links_out_of(candidate, what)
                return candidate
        hint = " Write / between folders here, not a backslash." if "\\" in text and os.sep == "/" else ""
        raise PathError(
            f"{what} is {text!r}; there is no such {wanted} (looked in {self._shown()}). Create it, or correct the"
            f" path.{hint}"
        )

    def _refuse_links_out_of(self, place: Path, what: str) -> None:
        """Refuses a folder with links that lead out of the roots; of `place` itself this is known."""
        if self.roots is None or not place.is_dir():
            return
        leading_out = [str(link.relative_to(place)) for link in self._links_below(place) if not self.contains(link)]
        if leading_out:
            more = f" and {len(leading_out) - LINKS_SHOWN} more" if len(leading_out) > LINKS_SHOWN else ""
            raise PathError(
                f"{what} is {place}, where {', '.join(leading_out[:LINKS_SHOWN])}{more} are links that lead out of the"
                f" allowed folders: {self._shown()}. {MOVE_OR_ALLOW}"
            )

    def _links_below(self, folder: Path) -> Iterator[Path]:
        """Links in `folder` and its sub-folders, also in allowed ones that are links themselves."""
        waiting, entered = [folder], set()
        while waiting:
            here = waiting.pop()
            if here.resolve() in entered:  # a link may lead back
                continue
            entered.add(here.resolve())
            with os.scandir(here) as entries:
                for entry in entries:
                    path = Path(entry.path)
                    # Junctions are Windows' other links, known from Python 3.12 on.
                    is_link = entry.is_symlink() or getattr(entry, "is_junction", bool)()
                    if is_link:
                        yield path
                    if entry.is_dir() and (not is_link or self.contains(path)):
                        waiting.append(path)

    def _candidates(self, text: str, what: str) -> list[Path]:
        if not text.strip():
            raise PathError(f"{what} is empty; give a folder inside {self._shown()}.")
        if "\0" in text:
            raise PathError(f"{what} holds a NUL character; give a folder inside {self._shown()}.")
        text = text.strip()
        if text[0] == text[-1] and text[0] in "\"'" and len(text) > 2:  # as file managers copy paths
            text = text[1:-1]
        path = Path(text).expanduser() if self.roots is None else Path(text)
        known = any(path.is_relative_to(folder) for folder in (*self.bases, *(self.roots or ())))
        if self.roots is not None and len(text) > 1 and set(text[:2]) <= {"/", "\\"} and not known:
            # Before anything resolves it, which would ask that machine.
            raise PathError(f"{what} is {text!r}, a path of another machine; give a folder inside {self._shown()}.")
        try:
            candidates = [(base / path).resolve() for base in self.bases]
            _check_lengths(candidates)
        except (OSError, RuntimeError, ValueError) as error:  # a circle of links, or characters no file name can have
            raise PathError(f"{what} is {_short(text)}, which is no usable path ({error}). Correct it.") from error
        allowed = [candidate for candidate in candidates if self.contains(candidate)]
        if not allowed:
            raise PathError(
                f"{what} is {text!r}, which lies outside the allowed folders: {self._shown()}. {MOVE_OR_ALLOW}"
            )
        return allowed

    def contains(self, path: Path) -> bool:
        """Whether the real path of `path` lies in one of the roots."""
        if self.roots is None:
            return True
        real = path.resolve()
        return any(real.is_relative_to(root.resolve()) for root in self.roots)

    def _shown(self) -> str:
        return ", ".join(str(folder) for folder in dict.fromkeys((*self.bases, *(self.roots or ()))))


def _short(text: str) -> str:
    return repr(text if len(text) <= LONGEST_NAME else text[:LONGEST_NAME] + "...")


def _check_lengths(paths: Iterable[Path]) -> None:
    """Raises ValueError for what no system takes as the path of a folder with files in it."""
    for path in paths:
        longest = max((len(os.fsencode(part)) for part in path.parts), default=0)
        if longest > LONGEST_NAME or len(os.fsencode(path)) > LONGEST_PATH:
            raise ValueError(f"over {LONGEST_NAME} bytes in one name, or {LONGEST_PATH} in all")


def check_name(where: str, name: str) -> None:
    """Refuses names that cannot be a folder or file name on Linux, Windows and macOS alike.

    Raises:
        ConfigError: empty, over 100 characters or 200 bytes, a path separator or one of `<>:"|?*`, a control character,
            half a character, a dot or a blank at an end, or a name that Windows reserves.
    """
    forbidden = sorted({c for c in name if c in '<>:"/\\|?*' or ord(c) < 32})
    reserved = name.split(".")[0].upper() in WINDOWS_RESERVED_NAMES
    too_long = len(name) > 100 or len(name.encode("utf-8", "surrogatepass")) > 200
    broken = any("\ud800" <= c <= "\udfff" for c in name)
    if not name or too_long or broken or forbidden or reserved or name != name.strip(" ."):
        raise ConfigError(
            f"{where} is {name!r}; use 1 to 100 characters that can be a file name on every system"
            ' (no path separators, no <>:"|?*, no blank or dot at an end). Choose another name.'
        )
