"""A workflow described once; from it come the API format (`to_api`) and the UI format (`ui.to_ui`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .signature import Signature, signature_of


@dataclass(frozen=True)
class Link:
    """An output of a node, by name."""

    node_id: int
    output: str


@dataclass(frozen=True, kw_only=True)
class Group:
    """A titled frame around nodes. Frames of one lane are below each other, lanes go from left to right."""

    title: str
    lane: int
    color: str


@dataclass(frozen=True, kw_only=True)
class Node:
    id: int
    class_type: str
    title: str
    group: Group
    inputs: Mapping[str, Any]
    """Values and `Link`s by input name; widgets that are left out get their default."""
    picture_height: int
    """Px kept free below the widgets for a picture or a chart."""

    def out(self, output: str) -> Link:
        return Link(self.id, output)


@dataclass(kw_only=True)
class Graph:
    """Nodes in the order they were added; a link can only point to an earlier node, so that is a running order."""

    name: str
    nodes: list[Node] = field(default_factory=list)
    kept: Mapping[str, Any] = field(default_factory=dict)
    """Extra data that both formats keep: the files of an imported configuration."""

    def add(
        self, group: Group, class_type: str, inputs: Mapping[str, Any], title: str = "", picture_height: int = 0
    ) -> Node:
        node = Node(
            id=len(self.nodes) + 1,
            class_type=class_type,
            title=title or class_type,
            group=group,
            inputs=dict(inputs),
            picture_height=picture_height,
        )
        self.nodes.append(node)
        return node

    def groups(self) -> list[Group]:
        return list(dict.fromkeys(node.group for node in self.nodes))


def signatures_of(graph: Graph, node_classes: Mapping[str, type]) -> dict[str, Signature]:
    return {kind: signature_of(node_classes[kind]) for kind in dict.fromkeys(n.class_type for n in graph.nodes)}


def complete_inputs(node: Node, signature: Signature) -> dict[str, Any]:
    """The node's inputs in declared order, with the default of every widget that it does not name.

    Raises:
        KeyError: the node names an input that its class does not have.
    """
    unknown = [name for name in node.inputs if signature.input(name) is None]
    if unknown:
        raise KeyError(f"{node.class_type} has no input {', '.join(unknown)}")
    return {
        spec.name: node.inputs.get(spec.name, spec.default)
        for spec in signature.inputs
        if spec.name in node.inputs or spec.is_widget
    }


def to_api(graph: Graph, node_classes: Mapping[str, type]) -> dict[str, Any]:
    """ComfyUI's API format: `{id: {class_type, inputs, _meta}}`, links as `[id, output slot]`."""
    signatures = signatures_of(graph, node_classes)
    types = {node.id: node.class_type for node in graph.nodes}

    def api_value(value: Any) -> Any:
        if isinstance(value, Link):
            return [str(value.node_id), signatures[types[value.node_id]].output_index(value.output)]
        return value

    return {
        str(node.id): {
            "class_type": node.class_type,
            "inputs": {
                name: api_value(value) for name, value in complete_inputs(node, signatures[node.class_type]).items()
            },
            # The API format has no place for extra data: the node that trains carries it.
            "_meta": {"title": node.title, **(graph.kept if node.class_type == "TrainLoRA" else {})},
        }
        for node in graph.nodes
    }
