"""The entrance of every node: what is not wired as declared is refused, and the machine's faults get our words."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from ..training.errors import ConfigError
from ..training.resources import machine_faults_named
from ..training.settings.dataset import DatasetConfig
from ..training.settings.run import TrainingOptions
from .types import (
    LONGCAT_CACHE,
    LONGCAT_DATASET,
    LONGCAT_LORA,
    LONGCAT_MODEL,
    LONGCAT_OPTIONS,
    LONGCAT_PAIRS,
    LONGCAT_VALIDATION,
    TrainedLora,
    ValidationPlan,
)

WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN")
"""Types whose values are typed; ComfyUI checks them itself, as it does lists of choices."""

LONGEST_VALUE = 60
"""Characters of a refused value that are shown."""


def with_entrance(nodes: dict[str, type]) -> dict[str, type]:
    """`nodes`, each with the entrance before its FUNCTION."""
    for node in nodes.values():
        setattr(node, node.FUNCTION, _entered(node, getattr(node, node.FUNCTION), nodes))
    return nodes


def _entered(node: type, function: Callable[..., Any], nodes: Mapping[str, type]) -> Callable[..., Any]:
    signature = inspect.signature(function)

    @functools.wraps(function)
    def run(self: Any, *args: Any, **inputs: Any) -> Any:
        with machine_faults_named(lambda: node.DISPLAY_NAME):
            _check_sockets(node, signature.bind(self, *args, **inputs).arguments, nodes)
            return function(self, *args, **inputs)

    return run


def _check_sockets(node: type, given: Mapping[str, Any], nodes: Mapping[str, type]) -> None:
    """Refuses a value that no link of the declared type carries: core lets through what is typed into a socket.

    Raises:
        ConfigError: names the socket, and the nodes to wire into it.
    """
    declared = node.INPUT_TYPES()
    optional = declared.get("optional", {})
    for name, (kind, _) in {**declared["required"], **optional}.items():
        value = given.get(name)
        is_socket = isinstance(kind, str) and kind not in WIDGETS
        if not is_socket or name not in given or value is None and name in optional:
            continue
        if not any(_fits(value, each) for each in kind.split(",")):
            raise ConfigError(
                f"{name} ({node.DISPLAY_NAME}) is {_shown(value)}; it must be wired from {_makers(kind, nodes)}."
            )


def _fits(value: Any, kind: str) -> bool:
    """Whether links of `kind` carry such a value. A kind's module is imported already if one of its values is here."""
    if kind == "CONDITIONING":
        return isinstance(value, list) and all(_is_conditioning(each) for each in value)
    return isinstance(value, _classes(kind))


def _is_conditioning(entry: Any) -> bool:
    return (
        isinstance(entry, (list, tuple))
        and len(entry) == 2
        and isinstance(entry[0], _classes("IMAGE"))
        and isinstance(entry[1], dict)
    )


@functools.cache
def _classes(kind: str) -> tuple[type, ...]:
    """What links of `kind` carry, see types.py."""
    return _CLASSES[kind]()


def _tensors() -> tuple[type, ...]:
    import torch

    return (torch.Tensor,)


def _models() -> tuple[type, ...]:
    from ..training.loop.stages import Stages

    return (Stages,)


def _pairs() -> tuple[type, ...]:
    from ..training.data.records import TrainingSet

    return (TrainingSet,)


def _caches() -> tuple[type, ...]:
    from ..training.caches.cache import Cache

    return (Cache,)


_CLASSES: dict[str, Callable[[], tuple[type, ...]]] = {
    "IMAGE": _tensors,
    LONGCAT_MODEL: _models,
    LONGCAT_DATASET: lambda: (DatasetConfig,),
    LONGCAT_PAIRS: _pairs,
    LONGCAT_CACHE: _caches,
    LONGCAT_VALIDATION: lambda: (ValidationPlan,),
    LONGCAT_OPTIONS: lambda: (TrainingOptions,),
    LONGCAT_LORA: lambda: (TrainedLora,),
}


def _shown(value: Any) -> str:
    if isinstance(value, (str, int, float, list, dict, type(None))):
        text = repr(value)
        return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."
    return f"a {type(value).__name__}"


def _makers(kind: str, nodes: Mapping[str, type]) -> str:
    """Our nodes that have such an output; of core's types the type alone, as many packs make them."""
    kinds = kind.split(",")
    ours = [node.DISPLAY_NAME for node in nodes.values() if not set(kinds).isdisjoint(node.RETURN_TYPES)]
    return " or ".join(ours) if kind.startswith("LONGCAT_") else f"an output of type {' or '.join(kinds)}"
