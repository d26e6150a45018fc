"""Values that a graph takes from nodes which only hold a value, put in the place of the link."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .core_nodes import CONSTANTS
from .signature import is_link, signature_of, types_match


def with_constants(graph: Mapping[str, Any], classes: Mapping[str, type]) -> dict[str, Any]:
    """A copy of `graph` in which every widget that is linked to one of `CONSTANTS` has its value.

    Links of another type stay, for `find_faults` to name.
    """
    copy = {}
    for node_id, node in graph.items():
        known = signature_of(classes[node["class_type"]]) if node["class_type"] in classes else None
        wanted = {spec.name: spec.type for spec in known.inputs if spec.is_widget} if known is not None else {}
        inputs = {name: _constant(graph, value, wanted.get(name)) for name, value in node["inputs"].items()}
        copy[node_id] = {**node, "inputs": inputs}
    return copy


def _constant(graph: Mapping[str, Any], value: Any, wanted: str | None) -> Any:
    source = graph.get(value[0]) if is_link(value) else None
    if source is None or wanted is None or source["class_type"] not in CONSTANTS:
        return value
    signature = signature_of(CONSTANTS[source["class_type"]])
    if value[1] != 0 or not types_match(signature.outputs[0].type, wanted):
        return value
    held = source["inputs"].get("value", signature.inputs[0].default)
    return value if is_link(held) else held
