"""Keys of config.json as flags of the same name: `--learning_rate 1e-4`, `--lora_rank=8`, `--enable_group_offload`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from ...training.errors import ConfigError
from ...training.files import parse_json
from ...training.simpletuner.keys import CONFIG_KEYS
from ...training.simpletuner.values import nearest


def read_flags(words: Sequence[str]) -> dict[str, Any]:
    """Keys and values of the command line's words; a flag without a value means true.

    Raises:
        ConfigError: a word that belongs to no flag, or no such key (the nearest is named).
    """
    values: dict[str, Any] = {}
    waiting: str | None = None
    for word in words:
        if word.startswith("--"):
            name, equals, text = word[2:].partition("=")
            if name not in CONFIG_KEYS:
                raise ConfigError(
                    f"There is no flag --{name}{nearest(name, CONFIG_KEYS)}. Each key of config.json is a flag;"
                    " docs/configuration.md lists them."
                )
            values[name] = _parsed(name, text) if equals else True
            waiting = None if equals else name
        elif waiting is not None:
            values[waiting] = _parsed(waiting, word)
            waiting = None
        else:
            raise ConfigError(f"{word!r} belongs to no flag. Write --key value, with quotes around a value of words.")
    return values


def _parsed(name: str, text: str) -> Any:
    """JSON where it can be, else text. Of a setting that is a text only null is not one."""
    if text != "null" and _is_text(name):
        return text
    try:
        return parse_json(text, f"--{name}", ConfigError, "", kind=object)
    except ConfigError:
        return text


def _is_text(name: str) -> bool:
    key = CONFIG_KEYS[name]
    if key.owner is None:
        return False
    return any(field.name == key.field and isinstance(field.default, str) for field in dataclasses.fields(key.owner))
