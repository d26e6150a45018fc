"""Single keys and values of SimpleTuner's files: which are known, and the type a field wants."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import ConfigError
from .keys import Key


def check_keys(values: Mapping[str, Any], keys: Mapping[str, Key], where: str) -> None:
    """Refuses unknown keys, and values that cannot be had here.

    Raises:
        ConfigError: with the nearest known key, or the reason.
    """
    unknown = [name for name in values if name not in keys]
    if unknown:
        shown = "; ".join(f"{name!r}{nearest(name, keys)}" for name in unknown)
        raise ConfigError(
            f"{where} has {'a key' if len(unknown) == 1 else 'keys'} that nobody reads: {shown}. Correct or remove it;"
            " docs/configuration.md lists all keys."
        )
    for name, value in values.items():
        accepted = keys[name].accepts
        if accepted is not None and not any(_equal(value, each) for each in accepted):
            shown = " or ".join(_written(each) for each in accepted)
            raise ConfigError(f"{where}: {name} is {_written(value)}; it must be {shown}. {keys[name].help}")


def field_values(kind: type, values: Mapping[str, Any], keys: Mapping[str, Key]) -> dict[str, Any]:
    """What `values` say about the fields of dataclass `kind`. null says nothing: the default holds.

    Raises:
        ConfigError: two names of one field with different values, such as an alias and the name.
    """
    found: dict[str, tuple[str, Any]] = {}
    for name, value in values.items():
        key = keys[name]
        if key.owner is not kind or value is None or name == "output_dir":
            continue
        if name == "validation_steps" and value == 0:
            found[key.field] = (name, 0)
            continue
        value = value_of(kind, key.field, value)
        if key.field in found and found[key.field][1] != value:
            raise ConfigError(
                f"{found[key.field][0]} is {found[key.field][1]!r} and {name} is {value!r}; both mean the same"
                " setting. Remove one."
            )
        found[key.field] = (name, value)
    return {field: value for field, (_, value) in found.items()}


def value_of(kind: type, field: str, value: Any) -> Any:
    """`value` in the type of a dataclass field: 16.0 for 16, "768" for 768, "a,b" for ["a", "b"]. What does not fit
    is left as it is: the dataclass refuses it."""
    declared = next(each for each in dataclasses.fields(kind) if each.name == field)
    if isinstance(declared.default, str):
        if isinstance(value, list) and all(isinstance(part, (str, int, float)) for part in value):
            value = ",".join(map(str, value))
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            value = str(value)
    elif isinstance(declared.default, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    return value


def _equal(value: Any, accepted: Any) -> bool:
    # 1 == True in Python, but not in a configuration.
    return value == accepted and isinstance(value, bool) == isinstance(accepted, bool)


def _written(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def nearest(name: str, known: Iterable[str]) -> str:
    """` (the nearest is ...)`, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (the nearest is {near[0]!r})" if near else ""
