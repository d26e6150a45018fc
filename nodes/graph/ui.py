"""The UI format (workflow schema 0.4) of a described graph, with a layout in which nothing overlaps."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .core_nodes import CORE_NODES
from .description import Graph, Group, Link, Node, complete_inputs, signatures_of
from .signature import Signature

PACK = {"cnr_id": "longcat-lora", "ver": "0.1.0"}
"""Lets the frontend offer to install a missing pack; a test compares it with pyproject.toml."""

CORE = {"cnr_id": "comfy-core", "ver": "0.29.0"}

NODE_WIDTH = 340
TITLE_HEIGHT = 30
"""Px; LiteGraph draws the title bar above a node's position."""
ROW_HEIGHT = 26
"""Px of a slot or a widget: 20 plus room for the taller rows of Nodes 2.0."""
TEXT_ROWS = 4
"""Rows of a multiline widget."""
GAP = 60
"""Px between nodes."""
FRAME = 30
"""Px between a group's frame and its nodes."""
GROUP_TITLE = 40
LANE_GAP = 70


@dataclass(frozen=True)
class Box:
    """Px; y grows downwards. A node's box begins below its title bar, as LiteGraph counts."""

    x: float
    y: float
    width: float
    height: float

    def overlaps(self, other: Box) -> bool:
        return (
            self.x < other.x + other.width
            and other.x < self.x + self.width
            and self.y < other.y + other.height
            and other.y < self.y + self.height
        )


def to_ui(graph: Graph, node_classes: Mapping[str, type]) -> dict[str, Any]:
    """The workflow as ComfyUI's frontend saves it."""
    signatures = signatures_of(graph, node_classes)
    boxes, frames = place(graph, signatures)
    links = _links(graph, signatures)
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, graph.name)),
        "revision": 0,
        "last_node_id": len(graph.nodes),
        "last_link_id": len(links),
        "nodes": [
            _ui_node(node, signatures[node.class_type], boxes[node.id], links, order)
            for order, node in enumerate(graph.nodes)
        ],
        "links": links,
        "groups": [
            {
                "id": number,
                "title": group.title,
                "bounding": [box.x, box.y, box.width, box.height],
                "color": group.color,
                "font_size": 24,
                "flags": {},
            }
            for number, (group, box) in enumerate(frames.items(), start=1)
        ],
        "config": {},
        "extra": {"ds": {"scale": 0.6, "offset": [80, 120]}, **graph.kept},
        "version": 0.4,
    }


def place(graph: Graph, signatures: Mapping[str, Signature]) -> tuple[dict[int, Box], dict[Group, Box]]:
    """Box of every node by id, and frame of every group. Inside a group the columns are the depth of its links."""
    boxes: dict[int, Box] = {}
    frames: dict[Group, Box] = {}
    x = 0.0
    for lane in sorted({group.lane for group in graph.groups()}):
        y = width = 0.0
        for group in (g for g in graph.groups() if g.lane == lane):
            nodes = [node for node in graph.nodes if node.group == group]
            frames[group] = _place_group(nodes, signatures, (x, y), boxes)
            y += frames[group].height + LANE_GAP
            width = max(width, frames[group].width)
        x += width + LANE_GAP
    return boxes, frames


def _place_group(
    nodes: list[Node], signatures: Mapping[str, Signature], corner: tuple[float, float], boxes: dict[int, Box]
) -> Box:
    depths: dict[int, int] = {}
    for node in nodes:
        sources = [value.node_id for value in node.inputs.values() if isinstance(value, Link)]
        depths[node.id] = 1 + max((depths[source] for source in sources if source in depths), default=-1)
    columns = max(depths.values()) + 1
    bottoms = [corner[1] + GROUP_TITLE + TITLE_HEIGHT] * columns
    for node in nodes:
        column = depths[node.id]
        x = corner[0] + FRAME + column * (NODE_WIDTH + GAP)
        height = _height(node, signatures[node.class_type])
        boxes[node.id] = Box(x, bottoms[column], NODE_WIDTH, height)
        bottoms[column] += height + TITLE_HEIGHT + GAP
    width = 2 * FRAME + columns * NODE_WIDTH + (columns - 1) * GAP
    return Box(*corner, width, max(bottoms) - TITLE_HEIGHT - GAP + FRAME - corner[1])


def _height(node: Node, signature: Signature) -> float:
    widgets = [spec for spec in signature.inputs if spec.is_widget]
    rows = max(len(signature.inputs) - len(widgets), len(signature.outputs)) + len(signature.widget_slots())
    rows += TEXT_ROWS * sum(bool(spec.options.get("multiline")) for spec in widgets)
    return 20 + ROW_HEIGHT * rows + node.picture_height


def _links(graph: Graph, signatures: Mapping[str, Signature]) -> list[list[Any]]:
    """`[id, from node, from slot, to node, to slot, type]` in the order of the nodes."""
    types = {node.id: node.class_type for node in graph.nodes}
    links: list[list[Any]] = []
    for node in graph.nodes:
        for slot, spec in enumerate(signatures[node.class_type].inputs):
            value = node.inputs.get(spec.name)
            if isinstance(value, Link):
                source = signatures[types[value.node_id]]
                index = source.output_index(value.output)
                kind = source.outputs[index].type
                links.append([len(links) + 1, value.node_id, index, node.id, slot, kind])
    return links


def _ui_node(node: Node, signature: Signature, box: Box, links: list[list[Any]], order: int) -> dict[str, Any]:
    values = complete_inputs(node, signature)
    incoming = {link[4]: link[0] for link in links if link[3] == node.id}
    inputs = []
    for slot, spec in enumerate(signature.inputs):
        entry: dict[str, Any] = {"name": spec.name, "type": spec.type, "link": incoming.get(slot)}
        if spec.is_widget:
            entry["widget"] = {"name": spec.name}
        elif not spec.required:
            # Shape 7 is how the frontend draws an input that may stay unconnected.
            entry["shape"] = 7
        inputs.append(entry)
    outputs = [
        {
            "name": output.name,
            "type": output.type,
            "slot_index": slot,
            "links": [link[0] for link in links if link[1] == node.id and link[2] == slot] or None,
        }
        for slot, output in enumerate(signature.outputs)
    ]
    return {
        "id": node.id,
        "type": node.class_type,
        "title": node.title,
        "pos": [box.x, box.y],
        "size": [box.width, box.height],
        "flags": {},
        "order": order,
        "mode": 0,
        "inputs": inputs,
        "outputs": outputs,
        "properties": {"Node name for S&R": node.class_type, **(CORE if node.class_type in CORE_NODES else PACK)},
        # A linked widget keeps a place in widgets_values too; the link wins over its value.
        "widgets_values": [
            _plain(values[name], signature, name) if name else extra for name, extra in signature.widget_slots()
        ],
    }


def _plain(value: Any, signature: Signature, name: str) -> Any:
    spec = signature.input(name)
    return spec.default if isinstance(value, Link) and spec is not None else value
