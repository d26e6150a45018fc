"""The tiny twin of a workflow: same nodes and links, but a model of a few megabytes, small pictures and few steps."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ...training.errors import ConfigError
from ...training.rehearsal.scale import short_prompt, small_values
from .. import NODES
from ..lora import NO_LORA
from .check import convert
from .constants import with_constants
from .core_nodes import node_classes
from .signature import is_link, signature_of

PROMPTS = ("prompt", "negative_prompt")
"""Inputs of nodes; of the fields of config dataclasses `small_values` takes care."""


def make_tiny(workflow: Mapping[str, Any], quantised: bool | None = None) -> dict[str, Any]:
    """A copy of an API graph or of a UI workflow that runs in seconds on any machine.

    Args:
        quantised: whether to keep quantised precisions; None: if they are available here. (False for a server, whose
            packages are not known.)
    """
    tiny = copy.deepcopy(dict(workflow))
    if isinstance(tiny.get("nodes"), list):
        for node in tiny["nodes"]:
            _shrink_ui_node(node, quantised)
        return tiny
    tiny = with_constants(tiny, node_classes())
    for node in tiny.values():
        if node["class_type"] in NODES:
            node["inputs"] |= _tiny_values(_readable(node), quantised)
    return tiny


def _readable(node: Mapping[str, Any]) -> dict[str, Any]:
    """The values that have their widget's type; `find_faults` names the others."""
    readable = {}
    for spec in signature_of(NODES[node["class_type"]]).inputs:
        value = node["inputs"].get(spec.name)
        if not spec.is_widget or spec.name not in node["inputs"] or is_link(value):
            continue
        if spec.type != "COMBO" or isinstance(value, str):
            with suppress(ConfigError):
                readable[spec.name] = convert(spec, value)
    return readable


def _tiny_values(values: Mapping[str, Any], quantised: bool | None) -> dict[str, Any]:
    tiny = small_values(values, quantised)
    tiny |= {name: short_prompt(values[name]) for name in PROMPTS if name in values}
    # A LoRA of the real model fits no module of the twin.
    return tiny | ({"lora_name": NO_LORA} if "lora_name" in values else {})


def _shrink_ui_node(node: dict[str, Any], quantised: bool | None) -> None:
    node_class = NODES.get(node["type"])
    values = node.get("widgets_values")
    if node_class is None or not isinstance(values, list):
        return
    names = [name for name, _ in signature_of(node_class).widget_slots()[: len(values)]]
    given = {name: value for name, value in zip(names, values, strict=False) if name}
    tiny = _tiny_values(given, quantised)
    node["widgets_values"] = [tiny.get(name, value) for name, value in zip(names, values, strict=False)]
    node["widgets_values"] += values[len(names) :]
