"""Runs an API graph through the node classes, without ComfyUI: a runner of our workflows, no second ComfyUI."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...training.errors import ConfigError, LongCatError, StoppedByUserError
from ...training.files import read_json
from ..host import Host, use_host
from .check import check_shape, convert, find_faults, label, running_order, sources_of, with_sources
from .core_nodes import node_classes
from .signature import is_link, signature_of


@dataclass(frozen=True, kw_only=True)
class NodeStarted:
    """Node `number` of `total` begins."""

    node_id: str
    label: str
    number: int
    total: int


@dataclass(frozen=True, kw_only=True)
class NodeReported:
    """A node gave a text output, e.g. what a cache stage reused."""

    label: str
    text: str


NodeEvent = NodeStarted | NodeReported


def read_graph(path: Path) -> dict[str, Any]:
    """An API-format workflow file.

    Raises:
        ConfigError: not there, no JSON, or not in API format.
    """
    graph = read_json(path, ConfigError, "Give the path of a workflow file, as ComfyUI exports it.", kind=object)
    check_shape(graph, str(path))
    return graph


def run_graph(
    graph: Mapping[str, Any],
    host: Host,
    on_node: Callable[[NodeEvent], None],
    should_stop: Callable[[], bool],
    on_refusal: Callable[[str, LongCatError], None] | None = None,
) -> dict[str, tuple]:
    """Checks the whole graph, then runs what its output nodes need. Returns every node's outputs by node id.

    As in ComfyUI the nodes run in torch's inference mode, so that they are the same code path in both.

    Args:
        on_refusal: called with the node that refused and why; what depends on it is left out, the rest runs. None:
            the first refusal ends the run.

    Raises:
        ConfigError: the graph has faults; the message lists them all and nothing has run.
        StoppedByUserError: `should_stop` said so; finished stages are saved.
        LongCatError: a node refused; the message begins with the node.
    """
    check_shape(graph, "the workflow")
    with use_host(host):
        classes = node_classes()
        faults = find_faults(graph, classes)
        if faults:
            raise ConfigError("The workflow cannot run:\n" + "\n".join(f"- {fault}" for fault in faults))
        order = _needed(graph, classes)
        outputs: dict[str, tuple] = {}
        for number, node_id in enumerate(order, start=1):
            if should_stop():
                raise StoppedByUserError("Stopped between two nodes; everything that was finished is saved.")
            name = label(node_id, graph[node_id])
            if on_refusal is not None and not outputs.keys() >= set(sources_of(graph[node_id], graph)):
                continue
            on_node(NodeStarted(node_id=node_id, label=name, number=number, total=len(order)))
            try:
                outputs[node_id] = _run_node(node_id, graph, classes, outputs)
            except StoppedByUserError:
                raise
            except LongCatError as error:
                if on_refusal is None:
                    raise type(error)(f"{name}: {error}") from error
                on_refusal(node_id, error)
                continue
            for text in outputs[node_id]:
                if isinstance(text, str):
                    on_node(NodeReported(label=name, text=text))
    return outputs


def _needed(graph: Mapping[str, Any], classes: Mapping[str, type]) -> list[str]:
    """Output nodes and all that they depend on, sources first; core leaves out the rest too."""
    outputs = [i for i, node in graph.items() if getattr(classes[node["class_type"]], "OUTPUT_NODE", False)]
    needed = with_sources(outputs, graph)
    return [node_id for node_id in running_order(graph) if node_id in needed]


def _run_node(
    node_id: str, graph: Mapping[str, Any], classes: Mapping[str, type], outputs: Mapping[str, tuple]
) -> tuple:
    import torch

    node = graph[node_id]
    node_class = classes[node["class_type"]]
    signature = signature_of(node_class)
    values = _hidden_values(node_class, node_id)
    for spec in signature.inputs:
        if spec.name in node["inputs"]:
            value = node["inputs"][spec.name]
            values[spec.name] = outputs[value[0]][value[1]] if is_link(value) else convert(spec, value)
    with torch.inference_mode():
        result = getattr(node_class(), node_class.FUNCTION)(**values)
    if isinstance(result, dict):
        result = result.get("result", ())
    return tuple(result)


def _hidden_values(node_class: type, node_id: str) -> dict[str, Any]:
    known = {"UNIQUE_ID": node_id}
    return {name: known.get(kind) for name, kind in node_class.INPUT_TYPES().get("hidden", {}).items()}
