"""Reading the files that captions come in: text, JSON and CSV; all of them UTF-8, with or without byte order mark."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..files import read_json

NAME_KEYS = ("filename", "file_name")
CAPTION_KEYS = ("caption", "prompt", "text")

DELIMITERS = (",", ";", "\t")
"""A semicolon is what spreadsheets write in countries with a decimal comma."""

ROWS_SHOWN = 5

NO_JSON = "Correct it, and save it as UTF-8."

Row = tuple[str, str]
"""(file name as written, caption)"""


def read_whole(path: Path) -> tuple[str]:
    """The text of a caption file, without a byte order mark and without blanks at its ends.

    Raises:
        DataError: the file is missing, empty, or not UTF-8 text; names the file.
    """
    text = _read_text(path).strip()
    if not text:
        raise DataError(f"{path} is empty. Write the caption into it.")
    return (text,)


def read_lines(path: Path) -> tuple[str, ...]:
    """The captions of a text file: each line that is not blank is one, as in SimpleTuner.

    Raises:
        DataError: as `read_whole`.
    """
    (text,) = read_whole(path)
    return tuple(line.strip() for line in text.split("\n") if line.strip())


def read_json_caption(path: Path) -> str:
    """The caption of a picture's own .json: an object with `caption`, `prompt` or `text`.

    Raises:
        DataError: as `read_whole`, no JSON, no such text in it, or several that differ; names the file.
    """
    value = read_json(path, DataError, NO_JSON)
    _refuse_contradictions(path, [("it", value)])
    caption = _caption_of(value)
    if caption is None:
        raise DataError(f'{path} holds no caption. Write {{"caption": "..."}} into it.')
    return caption


def read_json_table(path: Path) -> list[Row]:
    """Rows of one .json for a folder: `{"a.png": "caption"}`, `{"a.png": {"caption": ...}}` or a list of objects with
    `filename` and `caption` (or `file_name`; `prompt`, `text`).

    Raises:
        DataError: no UTF-8 text, no JSON, or of no such form; names the file and the entries.
    """
    value = read_json(path, DataError, NO_JSON, kind=object)
    if isinstance(value, dict):
        entries = [(f"the entry {name!r}", name, entry) for name, entry in value.items()]
    elif isinstance(value, list):
        entries = [(f"entry {number}", _first_text(entry, NAME_KEYS), entry) for number, entry in enumerate(value, 1)]
    else:
        raise DataError(f'{path} is no table of captions. Write {{"a.png": "its caption", ...}} into it.')
    _refuse_contradictions(path, [(where, entry) for where, _, entry in entries])
    return _complete_rows(path, [(where, name, _caption_of(entry)) for where, name, entry in entries])


def read_csv_table(path: Path) -> list[Row]:
    """Rows of one .csv for a folder, by the columns `filename` or `file_name`, and `caption`, `prompt` or `text`.

    Raises:
        DataError: no UTF-8 text, a column is missing, or a row has too few or too many cells; names file and lines.
    """
    lines = _read_text(path).splitlines(keepends=True)
    head = lines[0] if lines else ""
    for delimiter in DELIMITERS:
        columns = [cell.strip().lower() for cell in next(csv.reader([head], delimiter=delimiter), [])]
        if set(columns) & set(NAME_KEYS) and set(columns) & set(CAPTION_KEYS):
            return _rows_of_csv(path, lines, delimiter, columns)
    raise DataError(
        f"{path} begins with {head.strip()[:80]!r}; its first line must name a column {' or '.join(NAME_KEYS)} and a"
        f" column {' or '.join(CAPTION_KEYS)}. Add that line."
    )


def _rows_of_csv(path: Path, lines: list[str], delimiter: str, columns: list[str]) -> list[Row]:
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    next(reader)
    twice = [column for column in {*NAME_KEYS, *CAPTION_KEYS} if columns.count(column) > 1]
    if twice:
        raise DataError(f"{path} has several columns called {', '.join(sorted(twice))}. Keep one of each.")
    found, torn, rows = [], [], []
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(columns):
                torn.append(f"line {reader.line_num} has {len(cells)} cells, the first line {len(columns)}")
                continue
            row = dict(zip(columns, cells, strict=True))
            rows.append((f"line {reader.line_num}", row))
            found.append((f"line {reader.line_num}", _first_text(row, NAME_KEYS), _caption_of(row)))
    except csv.Error as error:
        raise DataError(f"{path} is no CSV table: {error} (line {reader.line_num}). Save it again as CSV.") from error
    if torn:
        raise DataError(
            f"{path}: {_some(torn)}. Put every caption that holds a {delimiter!r} or a line break into double quotes."
        )
    _refuse_contradictions(path, rows)
    return _complete_rows(path, found)


def _refuse_contradictions(path: Path, entries: list[tuple[str, Any]]) -> None:
    """
    Raises:
        DataError: one of the entries, each with where it stands, gives two names or two captions that differ.
    """
    faulty = [
        f"{where} has {' and '.join(keys)} with different texts"
        for where, entry in entries
        if isinstance(entry, Mapping)
        for keys in (_given(entry, NAME_KEYS), _given(entry, CAPTION_KEYS))
        if len({entry[key].strip() for key in keys}) > 1
    ]
    if faulty:
        raise DataError(f"{path}: {_some(faulty)}. Keep one of them.")


def _given(entry: Mapping[str, Any], keys: tuple[str, ...]) -> list[str]:
    return [key for key in keys if isinstance(entry.get(key), str) and entry[key].strip()]


def _complete_rows(path: Path, found: list[tuple[str, str | None, str | None]]) -> list[Row]:
    """(where, file name, caption) of each row -> its row."""
    rows = [(name, caption) for _, name, caption in found if name and caption]
    if not found:
        raise DataError(f"{path} holds no captions. Add them, or choose another caption_strategy.")
    if len(rows) < len(found):
        faulty = [
            f"{where} has no {'caption' if name else 'file name'}" for where, name, cap in found if not (name and cap)
        ]
        raise DataError(f"{path}: {_some(faulty)}. Add what is missing, or remove the entry.")
    return rows


def _caption_of(entry: Any) -> str | None:
    return entry.strip() if isinstance(entry, str) else _first_text(entry, CAPTION_KEYS)


def _first_text(entry: Any, keys: tuple[str, ...]) -> str | None:
    if not isinstance(entry, Mapping):
        return None
    texts = (entry[key].strip() for key in keys if isinstance(entry.get(key), str))
    return next((text for text in texts if text), None)


def _read_text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text. Save it as UTF-8.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}). Put the caption there.") from error
    if "\0" in text:
        raise DataError(f"{path} holds NUL characters: it is UTF-16 or no text. Save it as UTF-8.")
    return text


def _some(lines: list[str]) -> str:
    more = f" and {len(lines) - ROWS_SHOWN} more" if len(lines) > ROWS_SHOWN else ""
    return ", ".join(lines[:ROWS_SHOWN]) + more
