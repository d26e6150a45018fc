"""Names of the types that links carry, the classes behind them, and widgets made from the options of training/."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..training.errors import ConfigError
from ..training.settings.option import Option, option_of
from ..training.settings.validation import ValidationConfig

if TYPE_CHECKING:
    from ..training.caches.cache import Cache
    from ..training.loop.train import Report

LONGCAT_MODEL = "LONGCAT_MODEL"
"""`Stages`"""
LONGCAT_DATASET = "LONGCAT_DATASET"
"""`DatasetConfig`, its folder absolute and inside the allowed roots"""
LONGCAT_PAIRS = "LONGCAT_PAIRS"
"""`TrainingSet`"""
LONGCAT_CACHE = "LONGCAT_CACHE"
"""`Cache`"""
LONGCAT_VALIDATION = "LONGCAT_VALIDATION"
"""`ValidationPlan`"""
LONGCAT_OPTIONS = "LONGCAT_OPTIONS"
"""`TrainingOptions`"""
LONGCAT_LORA = "LONGCAT_LORA"
"""`TrainedLora`"""

UI_LARGEST_INT = 2**31 - 1
"""Bound of whole numbers whose option gives none: without one the user interface stops at 2048."""

Widget = tuple[Any, dict[str, Any]]

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ValidationPlan:
    """What LongCatValidation returns: how to sample while training, and on which pairs."""

    config: ValidationConfig
    cache: Cache | None = None
    """None: on pairs of the training data."""


@dataclass(frozen=True, kw_only=True)
class TrainedLora:
    """What TrainLoRA returns: the LoRA file and the folder of the run that made it."""

    path: Path
    folder: Path
    lora_dir: Path | None = None
    """Where files made of it go; None: the host's own folder of LoRAs."""
    report: Report | None = None
    """What else there is to say of the run."""


def widget(config_class: type, name: str, **overrides: Any) -> Widget:
    """ComfyUI's widget for field `name` of a config dataclass: type, default, range and help text of its option.

    `overrides` replace entries of the widget's dict, e.g. another tooltip.

    Raises:
        KeyError: there is no such field, or it was not declared by `option`.
    """
    declared = option_of(config_class, name)
    default = next(field.default for field in dataclasses.fields(config_class) if field.name == name)
    common = {"default": default, "tooltip": declared.help}
    if declared.advanced:
        common["advanced"] = True
    if declared.choices is not None:
        # A list, not the newer "COMBO" string: tools that read workflows know only this form.
        return list(declared.choices), common | overrides
    if isinstance(default, bool):
        return "BOOLEAN", common | overrides
    if isinstance(default, int):
        return "INT", common | _whole_range(declared) | _seed_settings(name) | overrides
    if isinstance(default, float):
        return "FLOAT", common | _range(declared) | overrides
    return "STRING", common | _text_settings(declared.multiline) | overrides


def widgets(config_class: type, *names: str) -> dict[str, Widget]:
    """`widget` of several fields, or of every field if none is named."""
    names = names or tuple(field.name for field in dataclasses.fields(config_class))
    return {name: widget(config_class, name) for name in names}


def text(tooltip: str, default: str = "", multiline: bool = False) -> Widget:
    """A STRING widget that is no option of a config dataclass."""
    return "STRING", {"default": default, "tooltip": tooltip} | _text_settings(multiline)


def configured(node: type, config_class: type[T], settings: Mapping[str, Any], **others: Any) -> T:
    """The config dataclass that the widgets of `node` describe.

    Args:
        settings: values by widget; optional ones may be missing, as in workflows saved before the node had them.
        others: fields that are no widgets.

    Raises:
        ConfigError: an input that the node does not have, a required one that is missing, or a value that is refused.
    """
    declared = node.INPUT_TYPES()
    fields = {field.name for field in dataclasses.fields(config_class)}
    required = [name for name in declared["required"] if name in fields]
    known = [*required, *(name for name in declared.get("optional", {}) if name in fields - others.keys())]
    unknown = [name for name in settings if name not in known]
    missing = [name for name in required if name not in settings]
    if unknown:
        raise ConfigError(
            f"{node.DISPLAY_NAME} has no input {', '.join(unknown)}; its settings are {', '.join(known)}. Remove it, or"
            " correct its name."
        )
    if missing:
        raise ConfigError(f"{node.DISPLAY_NAME} was given no {', '.join(missing)}. Give it a value.")
    return config_class(**settings, **others)


def own_check(config_class: type, *names: str, **defaults: Any) -> classmethod:
    """A node's VALIDATE_INPUTS: True, or why these widgets are refused, before any node of the graph runs.

    Core shows the answer once for each of these inputs, and no longer checks them itself: a node names only those that
    core cannot judge by range and choices. Values that are wired are not known yet (None); then the node itself
    refuses, when it runs.

    Args:
        defaults: further widgets, with the values that they have where a workflow does not name them.
    """
    known_without = dict.fromkeys(names) | defaults

    def validate(cls: type, **given: Any) -> bool | str:
        values = known_without | given
        if None in values.values():
            return True
        try:
            config_class(**values)
        except ConfigError as error:
            return str(error)
        return True

    # Core reads from the signature which inputs a node checks itself.
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind, default=default) for name, default in known_without.items()]
    validate.__signature__ = inspect.Signature([inspect.Parameter("cls", kind), *parameters])
    return classmethod(validate)


def socket(type_name: str, tooltip: str) -> Widget:
    """An input that is wired, not typed."""
    return type_name, {"tooltip": tooltip}


def _range(declared: Option) -> dict[str, float]:
    # Without a step the user interface steps by 0.5, and shows a learning rate of 5e-5 as 0.
    return {"min": declared.low or 0.0, "max": declared.high or 1e9, "step": declared.step or 1e-7}


def _whole_range(declared: Option) -> dict[str, int]:
    return {
        "min": int(declared.low or 0),
        "max": int(declared.high or UI_LARGEST_INT),
        "step": int(declared.step or 1),
    }


def _seed_settings(name: str) -> dict[str, bool]:
    # A run and a sample are repeatable unless the user changes the seed; and no second widget shifts saved values.
    return {"control_after_generate": False} if name.endswith("seed") else {}


def _text_settings(multiline: bool) -> dict[str, bool]:
    # Without this, braces in an instruction would be drawn from at random, and // would start a comment.
    return {"multiline": multiline, "dynamicPrompts": False}
