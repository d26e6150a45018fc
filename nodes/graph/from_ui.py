"""A workflow as ComfyUI's frontend saves it (UI format) -> the API graph that the frontend would queue.

The rules are those of the frontend 1.47: `graphToPrompt`, and what loading a file does before. Stored answers of the
frontend itself are what the tests compare with.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...training.errors import ConfigError
from .check import check_shape
from .primitive import fitted
from .saved_file import SAVE_AGAIN, SavedGraph, SavedInput, SavedNode, WorkflowReader
from .signature import InputSpec, types_match

MUTED, BYPASSED = 2, 4
"""LiteGraph's `mode` of nodes that do not run."""

SUBGRAPH_INPUTS, SUBGRAPH_OUTPUTS = "-10", "-20"
"""Node ids in the links of a subgraph: its own two ends."""

PRIMITIVE = "PrimitiveNode"
GETTER = {"GetNode": "SetNode", "easy getNode": "easy setNode"}
"""Pairs of nodes (KJNodes, Easy-Use) that carry a link by name: the one that gives, the one that takes."""
PASSED_ON = ("Reroute", "Reroute (rgthree)", *GETTER.values())
"""Nodes of the page alone: what comes in goes out."""
VIRTUAL = (PRIMITIVE, "Note", "MarkdownNote", *PASSED_ON, *GETTER)
"""Nodes that are never queued."""

REPLACE = "Run widget replace on values"
"""Property of a PrimitiveNode: text like %Node.widget% is replaced in its value."""

MOST_NODES = 100_000
"""Subgraphs inside each other multiply."""

MISSING = object()
"""A value that is not known."""


@dataclass(frozen=True)
class _Value:
    """A promoted widget's value, in the place of a link."""

    value: Any


@dataclass(frozen=True)
class _Scope:
    """A graph at one place: the workflow itself, or a subgraph as the instance `host` of `parent` uses it."""

    graph: SavedGraph
    path: tuple[str, ...] = ()
    parent: _Scope | None = None
    host: SavedNode | None = None
    given: Mapping[tuple[str, str], Any] = field(default_factory=dict)
    """(node id, widget) -> value that the instance gives to a widget inside by the older kind of promotion."""

    def id_of(self, node: SavedNode) -> str:
        return ":".join((*self.path, node.id))


def is_ui(content: Any) -> bool:
    """Whether a file's content is a workflow in UI format."""
    return isinstance(content, Mapping) and isinstance(content.get("nodes"), list)


def read_workflow(content: Any, where: str, classes: Mapping[str, type]) -> dict[str, Any]:
    """The API graph of a workflow in either format.

    Raises:
        ConfigError: no workflow, or as `api_of_ui` raises it.
    """
    graph = api_of_ui(content, where, classes) if is_ui(content) else content
    if is_ui(content) and not graph:
        raise ConfigError(f"{where} has no node that would run. Choose another workflow.")
    check_shape(graph, where)
    return dict(graph)


def api_of_ui(workflow: Mapping[str, Any], where: str, classes: Mapping[str, type]) -> dict[str, Any]:
    """The API graph of a saved workflow.

    Nodes of classes that are not among `classes` are kept with their links alone: only the frontend knows the names of
    their widgets.

    Raises:
        ConfigError: the file is damaged, or says something that is not understood; names the node.
    """
    try:
        return _Converter(workflow, where, classes).graph()
    except RecursionError as error:
        raise ConfigError(f"{where}: its links or subgraphs lead too deep, or in a circle. {SAVE_AGAIN}") from error


class _Converter:
    def __init__(self, workflow: Mapping[str, Any], where: str, classes: Mapping[str, type]) -> None:
        reader = WorkflowReader(where, classes)
        self.where = where
        self.classes = classes
        self.definitions = reader.definitions(workflow)
        self.root = _Scope(reader.graph(workflow))

    def graph(self) -> dict[str, Any]:
        graph: dict[str, Any] = {}
        for scope, node in self._nodes(self.root):
            if node.mode in (MUTED, BYPASSED) or node.type in VIRTUAL:
                continue
            if len(graph) == MOST_NODES:
                raise ConfigError(f"{self.where} has more than {MOST_NODES:,} nodes in its subgraphs. {SAVE_AGAIN}")
            meta = {"title": node.title or node.type}
            graph[scope.id_of(node)] = {"class_type": node.type, "inputs": self._inputs(scope, node), "_meta": meta}
        return graph

    def _nodes(self, scope: _Scope) -> Iterator[tuple[_Scope, SavedNode]]:
        """The nodes of a graph and of the subgraphs in it; instances themselves are left out."""
        for node in scope.graph.nodes.values():
            if node.type not in self.definitions:
                yield scope, node
            # Inside a subgraph the frontend asks the nodes of another one for their own modes, not for its mode.
            elif scope.parent is not None or node.mode not in (MUTED, BYPASSED):
                yield from self._nodes(self._inside(scope, node))

    def _inside(self, scope: _Scope, host: SavedNode) -> _Scope:
        graph = self.definitions[host.type]
        outer: _Scope | None = scope
        while outer is not None:
            if outer.graph is graph:
                raise ConfigError(f"{self.where}: the subgraph of {host.label} contains itself. {SAVE_AGAIN}")
            outer = outer.parent
        return _Scope(graph, (*scope.path, host.id), scope, host, self._given(scope, host))

    # Values

    def _inputs(self, scope: _Scope, node: SavedNode) -> dict[str, Any]:
        inputs = {name: self._widget(scope, node, name) for name in node.values}
        for entry in node.inputs:
            source = self._source(scope, node, entry, entry.type, set())
            if isinstance(source, _Value):
                inputs[entry.name] = source.value
            elif source is not None:
                inputs[entry.name] = source
        for name, value in inputs.items():
            if value is MISSING and node.type in self.classes:
                raise ConfigError(
                    f"{self.where}: the value of {name} of {node.label} is not known: it comes from a node that is not"
                    " known here. Set it in the node itself."
                )
        return {name: value for name, value in inputs.items() if value is not MISSING}

    def _widget(self, scope: _Scope, node: SavedNode, name: str) -> Any:
        """What the widget itself shows, before links are followed."""
        entry = node.input(name)
        primitive = self._primitive(scope, entry)
        if primitive is not None:
            found = self._primitive_value(scope, primitive)
            if found is not MISSING:
                return fitted(found, node.widgets.get(name), self._specs_behind(scope, primitive))
        if (entry is None or entry.link is None) and (node.id, name) in scope.given:
            return scope.given[node.id, name]
        return node.values.get(name, MISSING)

    def _primitive(self, scope: _Scope, entry: SavedInput | None) -> SavedNode | None:
        """The PrimitiveNode that an input is linked to directly."""
        link = scope.graph.links.get(entry.link or "") if entry is not None else None
        node = scope.graph.nodes.get(link.source) if link is not None else None
        return node if node is not None and node.type == PRIMITIVE else None

    def _primitive_value(self, scope: _Scope, node: SavedNode) -> Any:
        given = [value for (node_id, _), value in scope.given.items() if node_id == node.id]
        value = (*given, *node.saved_values, MISSING)[0]
        if value and isinstance(value, str) and node.properties.get(REPLACE):
            raise ConfigError(
                f"{self.where}: {node.label} has the property '{REPLACE}', which only ComfyUI's page can do. Switch it"
                " off, or set the value in the node itself."
            )
        return value

    def _specs_behind(self, scope: _Scope, primitive: SavedNode) -> list[InputSpec]:
        """The widgets that a PrimitiveNode sets."""
        return [
            node.widgets[entry.name]
            for node in scope.graph.nodes.values()
            for entry in node.inputs
            if entry.name in node.widgets and self._primitive(scope, entry) is primitive
        ]

    # Links

    def _source(
        self, scope: _Scope, node: SavedNode, entry: SavedInput, wanted: str, seen: set[tuple[Any, ...]]
    ) -> list[Any] | _Value | None:
        """[node id, slot] that an input is linked to in the end, a promoted widget's value, or None.

        Args:
            wanted: type of the input that the value is for.
            seen: the outputs on the way.
        """
        if entry.link is None:
            return None
        link = scope.graph.links.get(entry.link)
        if link is None:
            raise ConfigError(
                f"{self.where}: input {entry.name} of {node.label} has the link {entry.link}, which is not among the"
                f" links. {SAVE_AGAIN}"
            )
        if link.source == SUBGRAPH_INPUTS and scope.parent is not None:
            return self._from_outside(scope, link.slot, seen)
        source = scope.graph.nodes.get(link.source)
        if source is None:
            raise ConfigError(
                f"{self.where}: input {entry.name} of {node.label} is linked to node {link.source}, which does not"
                f" exist. {SAVE_AGAIN}"
            )
        return self._output(scope, source, link.slot, wanted, seen)

    def _from_outside(self, scope: _Scope, slot: int, seen: set[tuple[Any, ...]]) -> list[Any] | _Value | None:
        """What comes in by input `slot` of a subgraph."""
        assert scope.parent is not None and scope.host is not None
        if not 0 <= slot < len(scope.graph.inputs):
            raise ConfigError(f"{self.where}: the subgraph of {scope.host.label} has no input {slot}. {SAVE_AGAIN}")
        name = scope.graph.inputs[slot][0]
        entry = scope.host.input(name)
        if entry is not None and entry.link is not None:
            return self._source(scope.parent, scope.host, entry, entry.type, seen)
        return self._promoted(scope, name)

    def _output(
        self, scope: _Scope, node: SavedNode, slot: int, wanted: str, seen: set[tuple[Any, ...]]
    ) -> list[Any] | _Value | None:
        """What output `slot` of a node is, as seen by an input of type `wanted`."""
        place = (*scope.path, node.id, slot)
        if place in seen:
            raise ConfigError(f"{self.where}: the links of {node.label} form a circle. Remove one of them.")
        seen.add(place)
        if node.mode == MUTED:
            return None
        if node.mode == BYPASSED:
            entry = _bypass(node, slot, wanted)
            return self._source(scope, node, entry, entry.type, seen) if entry is not None else None
        if node.type in self.definitions:
            return self._from_inside(self._inside(scope, node), slot, wanted, seen)
        if node.type in PASSED_ON:
            return self._source(scope, node, node.inputs[0], wanted, seen) if node.inputs else None
        if node.type in GETTER:
            return self._by_name(scope, node, wanted, seen)
        return None if node.type in VIRTUAL else [scope.id_of(node), slot]

    def _from_inside(
        self, scope: _Scope, slot: int, wanted: str, seen: set[tuple[Any, ...]]
    ) -> list[Any] | _Value | None:
        """What goes out by output `slot` of a subgraph."""
        assert scope.host is not None
        if not 0 <= slot < len(scope.graph.outputs):
            raise ConfigError(f"{self.where}: the subgraph of {scope.host.label} has no output {slot}. {SAVE_AGAIN}")
        name, links = scope.graph.outputs[slot]
        link = next((scope.graph.links[each] for each in links if each in scope.graph.links), None)
        if link is None:
            return None
        source = scope.graph.nodes.get(link.source)
        if source is None:
            raise ConfigError(
                f"{self.where}: output {name} of the subgraph of {scope.host.label} is linked to no node inside."
                " ComfyUI cannot run this either; link it to a node."
            )
        return self._output(scope, source, link.slot, wanted, seen)

    def _by_name(
        self, scope: _Scope, getter: SavedNode, wanted: str, seen: set[tuple[Any, ...]]
    ) -> list[Any] | _Value | None:
        """What the node of the same name takes in, in this graph or in those around it."""
        name = getter.saved_values[0] if getter.saved_values else None
        outer: _Scope | None = scope
        while outer is not None:
            for node in outer.graph.nodes.values():
                if node.type == GETTER[getter.type] and node.saved_values and node.saved_values[0] == name:
                    return self._source(outer, node, node.inputs[0], wanted, seen) if node.inputs else None
            outer = outer.parent
        return None

    # Promoted widgets

    def _promoted(self, scope: _Scope, name: str) -> _Value | None:
        """The widget that input `name` of a subgraph shows on its instance; None: it shows none."""
        assert scope.parent is not None and scope.host is not None
        shown = [each for each, _ in scope.graph.inputs if self._shown(scope.graph, each) is not None]
        if name not in shown:
            return None
        if (scope.host.id, name) in scope.parent.given:
            return _Value(scope.parent.given[scope.host.id, name])
        by_entry = self._by_entry(scope.host)
        target = self._shown(scope.graph, name)
        assert target is not None
        inner, entry = target
        if (inner.id, entry.name) in by_entry:
            return _Value(by_entry[inner.id, entry.name])
        kept = self._set_aside(scope.host)
        if name in kept:
            return _Value(kept[name])
        place = shown.index(name)
        values = scope.host.saved_values
        if place < len(values) and values[place] is not None:
            return _Value(values[place])
        if inner.type in self.definitions:
            return self._promoted(self._inside(scope, inner), entry.name)
        return _Value(self._widget(scope, inner, entry.name))

    def _shown(self, graph: SavedGraph, name: str) -> tuple[SavedNode, SavedInput] | None:
        """The first widget inside that an input of a subgraph is linked to."""
        for link_id in next(links for each, links in graph.inputs if each == name):
            link = graph.links.get(link_id)
            node = graph.nodes.get(link.target) if link is not None else None
            entry = next((entry for entry in node.inputs if entry.link == link_id), None) if node is not None else None
            if node is None or entry is None:
                continue
            definition = self.definitions.get(node.type)
            if definition is not None:
                names = [each for each, _ in definition.inputs]
                if definition is not graph and entry.name in names and self._shown(definition, entry.name):
                    return node, entry
            elif entry.has_widget:
                return node, entry
        return None

    def _by_entry(self, host: SavedNode) -> dict[tuple[str, str], Any]:
        """(node id inside, widget) -> the instance's value for it, by the older `proxyWidgets`."""
        entries = host.properties.get("proxyWidgets")
        graph = self.definitions[host.type]
        found = {}
        for place, entry in enumerate(entries if isinstance(entries, list) else ()):
            if not (isinstance(entry, list) and len(entry) >= 2 and all(isinstance(part, str) for part in entry)):
                raise ConfigError(f"{self.where}: proxyWidgets of {host.label} has {entry!r}. {SAVE_AGAIN}")
            node, name = graph.nodes.get(entry[0]), entry[1]
            if node is not None and place < len(host.saved_values) and host.saved_values[place] is not None:
                # "7: seed" once meant the widget of a node inside.
                plain = name if node.input(name) is not None else re.sub(r"^(\s*\d+\s*:)+\s*", "", name)
                found[node.id, plain] = host.saved_values[place]
        return found

    def _set_aside(self, host: SavedNode) -> dict[str, Any]:
        """Input -> value of the entries that the frontend could not bring over from `proxyWidgets`, but keeps."""
        entries = host.properties.get("proxyWidgetErrorQuarantine")
        kept: dict[str, Any] = {}
        for each in entries if isinstance(entries, list) else ():
            entry = each.get("originalEntry") if isinstance(each, Mapping) else None
            if isinstance(entry, list) and len(entry) > 1 and entry[0] == "-1" and each.get("hostValue") is not None:
                kept.setdefault(str(entry[1]), each["hostValue"])
        return kept

    def _given(self, scope: _Scope, host: SavedNode) -> dict[tuple[str, str], Any]:
        """`_by_entry`, with what the subgraph around gives to the same widgets."""
        given = self._by_entry(host)
        entries = host.properties.get("proxyWidgets")
        for entry in entries if isinstance(entries, list) else ():
            outer = scope.given.get((host.id, entry[1]), MISSING)
            if outer is not MISSING:
                given[entry[0], entry[1]] = outer
        return given


def _bypass(node: SavedNode, slot: int, wanted: str) -> SavedInput | None:
    """The input whose value output `slot` of a bypassed node hands on."""
    inputs = node.inputs
    if wanted in ("*", ""):
        return (*inputs[slot : slot + 1], *inputs[:1], None)[0]
    sent = node.outputs[slot] if 0 <= slot < len(node.outputs) else "*"

    def fits(entry: SavedInput) -> bool:
        return types_match(entry.type or "*", sent or "*") and types_match(entry.type or "*", wanted)

    if slot < len(inputs) and fits(inputs[slot]):
        return inputs[slot]
    same = (entry for entry in inputs if entry.type == wanted)
    return next(same, None) or next(filter(fits, inputs), None)
