"""Keys of config.json as flags of the same name: `--learning_rate 1e-4`, `--lora_rank=8`, `--enable_group_offload`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...training.errors import ConfigError


def read_flags(words: Sequence[str]) -> dict[str, Any]:
    """Keys and values of the command line's words: a value is a text, `null` is None, no value at all is True.

    Whether there are such keys, and what the texts mean, is read together with config.json.

    Raises:
        ConfigError: a word that belongs to no flag.
    """
    values: dict[str, Any] = {}
    waiting: str | None = None
    for word in words:
        if word.startswith("--"):
            name, equals, text = word[2:].partition("=")
            values[name] = _value(text) if equals else True
            waiting = None if equals else name
        elif waiting is not None:
            values[waiting] = _value(word)
            waiting = None
        else:
            raise ConfigError(f"{word!r} belongs to no flag. Write --key value, with quotes around a value of words.")
    return values


def _value(text: str) -> str | None:
    return None if text == "null" else text
