"""JSON with comments, as the quickstarts print it: `//` and `/* */` comments and trailing commas."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ..errors import ConfigError

# Each ends at one place only: a comment that could be matched shorter or longer would hide what stands behind it.
_COMMENT = r"//[^\n]*(?=\n|\Z)|/\*(?:[^*]|\*(?!/))*\*/"
_TOKEN = re.compile(rf'"(?:[^"\\\n]|\\.)*"|{_COMMENT}|,(?=(?:\s|{_COMMENT})*[\]}}])')
"""A string, which stays, or something that JSON does not have, which goes."""


def read_json(path: Path) -> Any:
    """The value of a JSON file with comments; a byte order mark is fine.

    Raises:
        ConfigError: not there, not UTF-8, no JSON, or a key twice in one object; with line and column.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}. Give the path of a configuration file.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (byte {error.start}). Save it as UTF-8.") from error
    return parse_json(text, str(path))


def parse_json(text: str, where: str) -> Any:
    """The value of a JSON text with comments; see `read_json`."""
    try:
        return json.loads(strip_comments(text), object_pairs_hook=_without_repeats, parse_constant=_no_constant)
    except ValueError as error:
        raise ConfigError(f"{where} is no JSON: {error}. Correct it there.") from error


def strip_comments(text: str) -> str:
    """Plain JSON of equal length and lines: comments and trailing commas become blanks, so that positions stay."""
    return _TOKEN.sub(lambda match: match[0] if match[0][0] == '"' else re.sub(r"[^\n]", " ", match[0]), text)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"the key {repeated[0]} occurs twice in one object")
    return dict(pairs)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")
