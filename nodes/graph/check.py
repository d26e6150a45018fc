"""The faults of an API graph, found before anything runs."""

from __future__ import annotations

import graphlib
import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ...training.errors import ConfigError
from ...training.simpletuner.values import nearest
from .signature import InputSpec, Signature, is_link, signature_of, types_match

MADE_BY = {
    "LONGCAT_MODEL": "LoadLongCat or LongCatLoadLoRA",
    "LONGCAT_DATASET": "LongCatDataset",
    "LONGCAT_PAIRS": "PairDatasets",
    "LONGCAT_CACHE": "CacheVAELatents, then LongCatCacheText",
    "LONGCAT_LORA": "TrainLoRA or LongCatConvertLoRA",
    "IMAGE": "LoadImage",
    "CONDITIONING": "LongCatEncodePrompt or EncodeEditPrompt",
    "VIDEO": "CreateVideo",
}
"""Type -> the nodes that make it, for messages about inputs that are not linked."""


def label(node_id: str, node: Mapping[str, Any]) -> str:
    """How messages name a node: `node 3 "Pair them" (PairDatasets)`."""
    title = node.get("_meta", {}).get("title", "")
    kind = node.get("class_type", "?")
    return f'node {node_id} "{title}" ({kind})' if title and title != kind else f"node {node_id} ({kind})"


def check_shape(graph: Any, where: str) -> None:
    """Refuses anything that is no graph in API format.

    Raises:
        ConfigError: it is something else; the message says what.
    """
    if isinstance(graph, Mapping) and isinstance(graph.get("nodes"), list):
        raise ConfigError(
            f"{where} is a workflow in UI format. Use the one in workflows/api, or export it in ComfyUI by"
            " Workflow > Export (API)."
        )
    nodes = graph.values() if isinstance(graph, Mapping) else ()
    shaped = all(
        isinstance(node, Mapping)
        and isinstance(node.get("class_type"), str)
        and isinstance(node.get("inputs"), Mapping)
        and isinstance(node.get("_meta", {}), Mapping)
        for node in nodes
    )
    if not graph or not isinstance(graph, Mapping) or not shaped:
        raise ConfigError(
            f"{where} is no workflow in API format, which is a JSON object of"
            ' {"id": {"class_type": ..., "inputs": {...}}}. Export it in ComfyUI by Workflow > Export (API).'
        )


def find_faults(graph: Mapping[str, Any], classes: Mapping[str, type]) -> list[str]:
    """One sentence per fault, with node, input, what is allowed and what to do; empty if the graph can run."""
    faults = [
        f"{label(node_id, node)}: there is no such node here{nearest(node['class_type'], classes)}. The terminal runs"
        " this pack's nodes, LoadImage, SaveImage, PreviewImage, CreateVideo, SaveVideo and the Primitive nodes;"
        " for others use --server."
        for node_id, node in graph.items()
        if node["class_type"] not in classes
    ]
    known = {node_id: node for node_id, node in graph.items() if node["class_type"] in classes}
    signatures = {kind: signature_of(classes[kind]) for kind in {node["class_type"] for node in known.values()}}
    for node_id, node in known.items():
        where = label(node_id, node)
        signature = signatures[node["class_type"]]
        own_check = _own_check_inputs(classes[node["class_type"]])
        of_inputs = _input_faults(node, signature, graph, signatures, own_check)
        # As in core: a class checks its values only if each has the right type.
        of_class = [] if of_inputs else _own_check_fault(classes[node["class_type"]], node)
        faults += [f"{where}: {fault}" for fault in (*of_inputs, *of_class)]
    if not any(getattr(classes[node["class_type"]], "OUTPUT_NODE", False) for node in known.values()):
        faults.append("no node makes a result: add TrainLoRA, SaveImage or PreviewImage.")
    try:
        running_order(graph)
    except graphlib.CycleError as error:
        faults.append(f"nodes {' -> '.join(error.args[1])} form a circle: remove one of these links.")
    return faults


def repaired(graph: Mapping[str, Any], classes: Mapping[str, type]) -> tuple[dict[str, Any], list[str]]:
    """A copy of `graph` in which each faulty widget has its default, and one sentence per fault.

    Other faults (links, unknown nodes) stay: `find_faults` names them.
    """
    faults: list[str] = []
    copy: dict[str, Any] = {}
    for node_id, node in graph.items():
        copy[node_id] = {**node, "inputs": dict(node["inputs"])}
        if node["class_type"] in classes:
            found = _repair(copy[node_id]["inputs"], node, classes[node["class_type"]])
            faults += [f"{label(node_id, node)}: {fault}" for fault in found]
    return copy, faults


def _repair(inputs: dict[str, Any], node: Mapping[str, Any], node_class: type) -> list[str]:
    """Puts defaults in place of faulty values in `inputs`; returns the faults."""
    own_check = _own_check_inputs(node_class)
    faults = []
    for spec in signature_of(node_class).inputs:
        value = inputs.get(spec.name)
        if spec.is_widget and spec.name in inputs and not is_link(value):
            fault = _value_fault(spec, value, own_check)
            if fault:
                faults.append(f"input {spec.name} {fault}")
                inputs[spec.name] = spec.default
    refused = _own_check_fault(node_class, {**node, "inputs": inputs})
    for spec in signature_of(node_class).inputs if refused else ():
        if spec.name in own_check and spec.name in inputs and not is_link(inputs[spec.name]):
            inputs[spec.name] = spec.default
    return [*faults, *refused]


def running_order(graph: Mapping[str, Any]) -> list[str]:
    """Node ids, sources first.

    Raises:
        graphlib.CycleError: there is none.
    """
    return list(
        graphlib.TopologicalSorter({node_id: sources_of(node, graph) for node_id, node in graph.items()}).static_order()
    )


def sources_of(node: Mapping[str, Any], graph: Mapping[str, Any]) -> list[str]:
    return [value[0] for value in node["inputs"].values() if is_link(value) and value[0] in graph]


def with_sources(node_ids: Sequence[str], graph: Mapping[str, Any]) -> set[str]:
    """The nodes and all that they depend on."""
    waiting, needed = list(node_ids), set()
    while waiting:
        node_id = waiting.pop()
        if node_id not in needed:
            needed.add(node_id)
            waiting += sources_of(graph[node_id], graph)
    return needed


def convert(spec: InputSpec, value: Any) -> Any:
    """A widget's value in its type.

    Raises:
        ConfigError: of another type, out of range, or not among the choices. The message begins after the name.
    """
    if spec.type == "COMBO":
        return value
    if spec.type == "STRING" and isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return str(value)
    if spec.type == "BOOLEAN" and isinstance(value, bool):
        return value
    if spec.type in ("INT", "FLOAT") and not isinstance(value, bool):
        number = _number(value, spec.type)
        if number is not None:
            return number
    wanted = {"INT": "a whole number", "FLOAT": "a number", "STRING": "text", "BOOLEAN": "true or false"}
    raise ConfigError(f"is {value!r}; it must be {wanted.get(spec.type, f'linked ({spec.type})')}.")


def _number(value: Any, kind: str) -> int | float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    if not math.isfinite(number):
        return None
    if kind == "FLOAT":
        return number
    # int(value), not int(number): a seed above 2**53 would change on its way through a float.
    return int(value) if number == int(number) else None


def _input_faults(
    node: Mapping[str, Any],
    signature: Signature,
    graph: Mapping[str, Any],
    signatures: Mapping[str, Signature],
    own_check: set[str],
) -> list[str]:
    names = [spec.name for spec in signature.inputs]
    faults = [
        f"has no input {name}{nearest(name, names)}; its inputs are {', '.join(names)}."
        for name in node["inputs"]
        if name not in names
    ]
    for spec in signature.inputs:
        if spec.name in node["inputs"]:
            value = node["inputs"][spec.name]
            fault = (
                _link_fault(spec, value, graph, signatures) if is_link(value) else _value_fault(spec, value, own_check)
            )
        elif spec.required:
            fault = "is missing" + (f"; {_remedy(spec)}." if not spec.is_widget else f"; give a {spec.type} value.")
        else:
            continue
        if fault:
            faults.append(f"input {spec.name} {fault}")
    return faults


def _link_fault(
    spec: InputSpec, link: list, graph: Mapping[str, Any], signatures: Mapping[str, Signature]
) -> str | None:
    source_id, slot = link
    if source_id not in graph:
        return f"is linked to node {source_id}, which does not exist; {_remedy(spec)}."
    source = signatures.get(graph[source_id]["class_type"])
    if source is None:
        return None
    if not 0 <= slot < len(source.outputs):
        outputs = ", ".join(f"{i} {o.name}" for i, o in enumerate(source.outputs)) or "none"
        return f"is linked to output {slot} of {label(source_id, graph[source_id])}, whose outputs are: {outputs}."
    if not types_match(source.outputs[slot].type, spec.type):
        sent = source.outputs[slot]
        return (
            f"is of type {spec.type}, but {label(source_id, graph[source_id])} sends {sent.type} ({sent.name});"
            f" {_remedy(spec)}."
        )
    return None


def _value_fault(spec: InputSpec, value: Any, own_check: set[str]) -> str | None:
    try:
        converted = convert(spec, value)
    except ConfigError as error:
        return str(error)
    if spec.name in own_check:
        return None
    if spec.choices is not None and converted not in spec.choices:
        choices = ", ".join(str(choice) for choice in spec.choices)
        return f"is {value!r}{nearest(str(value), map(str, spec.choices))}; it must be one of {choices}."
    if spec.type in ("INT", "FLOAT"):
        low, high = spec.options.get("min", -math.inf), spec.options.get("max", math.inf)
        if not low <= converted <= high:
            return f"is {converted}; it must lie between {low} and {high}."
    return None


def _own_check_inputs(node_class: type) -> set[str]:
    """Inputs that the class checks itself: naming one in VALIDATE_INPUTS switches core's own checks of it off."""
    check = getattr(node_class, "VALIDATE_INPUTS", None)
    if check is None:
        return set()
    parameters = inspect.signature(check).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return {spec.name for spec in signature_of(node_class).inputs}
    return {parameter.name for parameter in parameters}


def _own_check_fault(node_class: type, node: Mapping[str, Any]) -> list[str]:
    checked = _own_check_inputs(node_class)
    if not checked:
        return []
    constants = {name: value for name, value in node["inputs"].items() if name in checked and not is_link(value)}
    required = inspect.signature(node_class.VALIDATE_INPUTS).parameters.values()
    if any(p.default is p.empty and p.kind is not p.VAR_KEYWORD and p.name not in constants for p in required):
        return []
    answer = node_class.VALIDATE_INPUTS(**constants)
    return [] if answer is True else [str(answer)]


def _remedy(spec: InputSpec) -> str:
    maker = MADE_BY.get(spec.type)
    return f"link a {spec.type} to it" + (f" (from {maker})" if maker else "")
