"""Single keys and values of SimpleTuner's files: which are known, and what their texts, numbers and paths mean."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from ..errors import ConfigError
from ..settings.option import option_of
from .keys import Key

TRUE, FALSE = ("1", "true", "yes", "y", "on"), ("0", "false", "no", "n", "off")
"""What SimpleTuner takes for a boolean, in any case."""

_PLACEHOLDER = re.compile(r"\{([^{}]+)\}")

T = TypeVar("T")


class Faults(list[str]):
    """What is wrong with a configuration, a sentence for each fault, so that all of them are reported at once."""

    @contextlib.contextmanager
    def noted(self, where: str = "") -> Iterator[None]:
        """Notes the faults of a ConfigError that the block raises, and goes on behind the block."""
        try:
            yield
        except ConfigError as error:
            self += [f"{where}: {fault}" if where else fault for fault in error.faults]

    def check(self) -> None:
        """
        Raises:
            ConfigError: with all faults, if there are any.
        """
        if self:
            raise ConfigError(*dict.fromkeys(self))


def read_values(values: Mapping[str, Any], keys: Mapping[str, Key], where: str, faults: Faults) -> dict[str, Any]:
    """The values of known keys, in the types that they have here; faulty ones are noted in `faults` and left out.

    As in SimpleTuner, numbers and booleans may be written as texts, and an empty text is no value.
    """
    unknown = [name for name in values if name not in keys]
    if unknown:
        shown = "; ".join(f"{name!r}{nearest(name, keys)}" for name in unknown)
        faults.append(
            f"{where} has {'a key' if len(unknown) == 1 else 'keys'} that nobody reads: {shown}. Correct or remove it;"
            " docs/configuration.md lists all keys."
        )
    read = {}
    for name, value in values.items():
        key = keys.get(name)
        if key is None or value == "":
            continue
        if key.accepts is not None:
            accepted = [each for each in key.accepts if means(value, each)]
            if not accepted:
                shown = " or ".join(_written(each) for each in key.accepts)
                faults.append(f"{where}: {name} is {_written(value)}; it must be {shown}. {key.help}")
                continue
            value = accepted[0]
        elif key.owner is not None and value is not None:
            value = value_of(key.owner, key.field, value)
        read[name] = value
    return read


def fill_placeholders(value: Any, variables: Mapping[str, str | None], where: str, faults: Faults) -> Any:
    """`value` with `{env:NAME}` and the names of `variables` in braces replaced in every text, as SimpleTuner does.

    Other braces stay. A variable that is not set is noted in `faults`; SimpleTuner would put nothing in its place.
    """
    if isinstance(value, Mapping):
        return {name: fill_placeholders(each, variables, where, faults) for name, each in value.items()}
    if isinstance(value, list):
        return [fill_placeholders(each, variables, where, faults) for each in value]
    if not isinstance(value, str):
        return value

    def replacement(match: re.Match[str]) -> str:
        name = match[1]
        if not name.startswith("env:") and name not in variables:
            return match[0]
        found = os.environ.get(name.removeprefix("env:")) if name.startswith("env:") else variables[name]
        if not found:
            kind = "environment variable" if name.startswith("env:") else "key"
            faults.append(
                f"{where} holds {match[0]}, but the {kind} {name.removeprefix('env:')} is not set. Set it, or write out"
                f" what {value!r} means."
            )
        return found or match[0]

    return _PLACEHOLDER.sub(replacement, value)


def field_values(kind: type, values: Mapping[str, Any], keys: Mapping[str, Key], faults: Faults) -> dict[str, Any]:
    """What read `values` say about the fields of dataclass `kind`. null says nothing: the default holds.

    Two names of one field, such as an alias and the name, with different values are a fault.
    """
    found: dict[str, tuple[str, Any]] = {}
    for name, value in values.items():
        key = keys[name]
        if key.owner is not kind or value is None or name == "output_dir":
            continue
        if key.field in found and found[key.field][1] != value:
            faults.append(
                f"{found[key.field][0]} is {found[key.field][1]!r} and {name} is {value!r}; both mean the same"
                " setting. Remove one."
            )
        found[key.field] = (name, value)
    return {field: value for field, (_, value) in found.items()}


def build(kind: type[T], values: Mapping[str, Any], where: str, faults: Faults) -> T:
    """`kind` of `values`; if it refuses them the reasons are noted in `faults`, and its defaults stand in."""
    try:
        return kind(**values)
    except ConfigError as error:
        prefix = f"{where}: " if where else ""
        faults += [prefix + fault for fault in error.faults]
        return kind()


def value_of(kind: type, field: str, value: Any) -> Any:
    """`value` in the type of a dataclass field: 16.0 for 16, "768" for 768, 8 for "8", "a,b" for ["a", "b"]. What does
    not fit is left as it is: the dataclass refuses it."""
    declared = next(each for each in dataclasses.fields(kind) if each.name == field)
    if isinstance(declared.default, str):
        return _as_text(value, strip=option_of(kind, field).choices is not None)
    if isinstance(declared.default, bool):
        return next((known for known in (True, False) if means(value, known)), value)
    wanted = type(declared.default)
    if isinstance(value, str) or wanted is float and isinstance(value, int) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):
            return wanted(value)
    return value


def _as_text(value: Any, strip: bool) -> Any:
    if isinstance(value, list) and all(isinstance(part, (str, int, float)) for part in value):
        return ",".join(map(str, value))
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    return value.strip() if strip and isinstance(value, str) else value


def means(value: Any, accepted: Any) -> bool:
    """Whether `value`, as it is written in a configuration, is `accepted`."""
    if isinstance(accepted, bool):
        known = TRUE if accepted else FALSE
        return str(value).strip().lower() in known if isinstance(value, (bool, int, str)) else False
    if isinstance(accepted, (int, float)) and isinstance(value, str):
        try:
            return float(value) == accepted
        except ValueError:
            return False
    if isinstance(accepted, str) and isinstance(value, str):
        return value.strip() == accepted
    return value == accepted and not isinstance(value, bool)


def _written(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def nearest(name: str, known: Iterable[str]) -> str:
    """` (the nearest is ...)`, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (the nearest is {near[0]!r})" if near else ""
