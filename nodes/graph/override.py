"""`--set NODE.input=value`: changing inputs of an API graph by node id, title or class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...training.errors import ConfigError
from ...training.files import parse_json
from ...training.simpletuner.values import nearest
from .signature import is_link, signature_of


def apply_settings(graph: Mapping[str, Any], settings: Sequence[str], classes: Mapping[str, type]) -> dict[str, Any]:
    """A copy of `graph` with each `NODE.input=value` applied; the value is JSON where it can be, else text.

    Args:
        classes: node classes by id; inputs of classes that are not among them must be in the graph already.

    Raises:
        ConfigError: not of that form, no such node or input (the nearest name is given), or several nodes fit.
    """
    changed = {node_id: {**node, "inputs": dict(node["inputs"])} for node_id, node in graph.items()}
    for setting in settings:
        place, equals, text = setting.partition("=")
        node_name, dot, input_name = place.rpartition(".")
        if not (equals and dot and node_name and input_name):
            raise ConfigError(f"--set {setting!r} is not of the form NODE.input=value, e.g. TrainLoRA.lora_rank=8.")
        node = changed[_find_node(changed, node_name.strip())]
        name = _find_input(node, input_name.strip(), classes)
        if is_link(node["inputs"].get(name)):
            raise ConfigError(
                f"--set {setting!r}: input {name} of {node['class_type']} is linked to node"
                f" {node['inputs'][name][0]}; set an input of that node instead."
            )
        node["inputs"][name] = _parsed(text)
    return changed


def _find_node(graph: Mapping[str, Any], name: str) -> str:
    if name in graph:
        return name
    for names in ({i: node.get("_meta", {}).get("title") for i, node in graph.items()}, _kinds(graph)):
        found = [node_id for node_id, known in names.items() if known == name]
        if len(found) == 1:
            return found[0]
        if found:
            ids = ", ".join(f"{i} ({graph[i].get('_meta', {}).get('title', graph[i]['class_type'])})" for i in found)
            raise ConfigError(
                f"--set names the node {name!r}, but {len(found)} nodes have this name: {ids}. Use an id."
            )
    known = [*graph, *_kinds(graph).values(), *(node.get("_meta", {}).get("title", "") for node in graph.values())]
    raise ConfigError(f"--set names the node {name!r}, which this workflow does not have{nearest(name, known)}.")


def _kinds(graph: Mapping[str, Any]) -> dict[str, str]:
    return {node_id: node["class_type"] for node_id, node in graph.items()}


def _find_input(node: Mapping[str, Any], name: str, classes: Mapping[str, type]) -> str:
    known = list(node["inputs"])
    if node["class_type"] in classes:
        known = [spec.name for spec in signature_of(classes[node["class_type"]]).inputs]
    if name not in known:
        raise ConfigError(
            f"--set names the input {name!r}, which {node['class_type']} does not have{nearest(name, known)}; its"
            f" inputs are {', '.join(known)}."
        )
    return name


def _parsed(text: str) -> Any:
    try:
        return parse_json(text, "--set", ConfigError, "", kind=object)
    except ConfigError:
        return text
