"""Declaring an option once: default, range, choices and help text, for dataclass, widget, terminal flag and docs."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

from ..errors import ConfigError

LARGEST_INT = 2**53 - 1
"""Largest whole number that survives JSON in a browser; the bound of seeds and counts."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Option:
    """What a field may hold and what it means; lives in the field's metadata under the key "option"."""

    help: str
    low: float | None = None
    high: float | None = None
    step: float | None = None
    choices: tuple[str, ...] | None = None
    multiline: bool = False
    advanced: bool = False


def option(default: Any, help: str, **limits: Any) -> Any:
    """A dataclass field with an `Option`; `limits` are the Option's other fields."""
    return dataclasses.field(default=default, metadata={"option": Option(help=help, **limits)})


def option_of(config_class: type, name: str) -> Option:
    """The `Option` of field `name`.

    Raises:
        KeyError: there is no such field, or it was not declared by `option`.
    """
    for field in dataclasses.fields(config_class):
        if field.name == name:
            return field.metadata["option"]
    raise KeyError(f"{config_class.__name__} has no field {name}")


class Checked:
    """Base of config dataclasses: refuses values outside their `Option` when an instance is made."""

    node: ClassVar[str]
    """Display name of the node that has these settings, for messages."""

    @classmethod
    def named(cls, field: str) -> str:
        """A field as messages name it: `learning_rate (Train LoRA)`."""
        return f"{field} ({cls.node})"

    def __post_init__(self) -> None:
        faults = []
        for field in dataclasses.fields(self):
            declared = field.metadata.get("option")
            if declared is not None:
                try:
                    _check(self.named(field.name), getattr(self, field.name), field.default, declared)
                except ConfigError as error:
                    faults.append(str(error))
        if faults:
            raise ConfigError(*faults)


def _check(where: str, value: Any, default: Any, declared: Option) -> None:
    if value is None and default is None:
        return
    if declared.choices is not None:
        if value not in declared.choices:
            raise ConfigError(f"{where} is {value!r}; it must be one of {', '.join(declared.choices)}.")
        return
    if isinstance(default, (bool, str)) and not isinstance(value, type(default)):
        wanted = "true or false" if isinstance(default, bool) else "a text"
        raise ConfigError(f"{where} is {value!r}; it must be {wanted}.")
    if declared.low is None and declared.high is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ConfigError(f"{where} is {value!r}; it must be a number.")
    if isinstance(default, int) and not isinstance(value, int):
        raise ConfigError(f"{where} is {value!r}; it must be a whole number.")
    low = -math.inf if declared.low is None else declared.low
    high = math.inf if declared.high is None else declared.high
    if not low <= value <= high:
        raise ConfigError(f"{where} is {value}; it must lie between {declared.low} and {declared.high}.")
