"""The number of a PrimitiveNode (a node of ComfyUI's page), as it arrives in the widgets that it is linked to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .signature import InputSpec


def fitted(value: Any, spec: InputSpec | None, specs: Sequence[InputSpec]) -> Any:
    """`value` as the frontend puts it into the widget `spec`: within the range that all of `specs` share, on its step.

    Args:
        spec: None: a widget that is not known.
        specs: of every widget that the node is linked to.
    """
    if spec is None or spec.type not in ("INT", "FLOAT") or isinstance(value, bool):
        return value
    if not isinstance(value, (int, float)):
        return value
    shared = [each for each in specs if each.type == spec.type]
    low = max((each.options["min"] for each in shared if "min" in each.options), default=-math.inf)
    high = min((each.options["max"] for each in shared if "max" in each.options), default=math.inf)
    value = max(low, min(value, high))
    return _whole(value, spec) if spec.type == "INT" else _rounded(value, spec)


def _whole(value: float, spec: InputSpec) -> int:
    step = spec.options.get("step") or 1
    offset = spec.options.get("min", 0) % step
    return math.floor((value - offset) / step + 0.5) * step + offset if step != 1 else math.floor(value + 0.5)


def _rounded(value: float, spec: InputSpec) -> float:
    """To the decimals of the widget's step; a step of 1 or more rounds nothing."""
    digits = max(0, -math.floor(math.log10(spec.options.get("step") or 0.5)))
    if not digits:
        return value
    low, high = spec.options.get("min", -math.inf), spec.options.get("max", math.inf)
    return max(low, min(round(value, digits), high))
