"""Captions and instructions from text files."""

from __future__ import annotations

from pathlib import Path

from ..errors import DataError

CAPTION_SUFFIX = ".txt"


def read_caption(path: Path) -> str:
    """The text of a caption file, without a byte order mark and without blanks at its ends.

    Raises:
        DataError: the file is missing, empty, or not UTF-8 text; names the file.
    """
    try:
        text = path.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text. Save it as UTF-8.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}). Put the caption there.") from error
    if "\0" in text:
        raise DataError(f"{path} holds NUL characters: it is UTF-16 or no text. Save it as UTF-8.")
    if not text:
        raise DataError(f"{path} is empty. Write the caption into it.")
    return text
