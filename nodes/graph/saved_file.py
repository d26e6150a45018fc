"""The file of a workflow as ComfyUI's frontend saves it (UI format), read: nodes, links, subgraphs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...training.errors import ConfigError
from .signature import InputSpec, signature_of

SAVE_AGAIN = "Open it in ComfyUI and save it again."


@dataclass(frozen=True)
class SavedInput:
    name: str
    type: str
    link: str | None
    has_widget: bool


@dataclass(frozen=True)
class SavedLink:
    source: str
    slot: int
    target: str


@dataclass(frozen=True)
class SavedNode:
    id: str
    type: str
    title: str
    mode: int
    inputs: tuple[SavedInput, ...]
    """In the order of the frontend: links, then widgets."""
    outputs: tuple[str, ...]
    """Types"""
    widgets: Mapping[str, InputSpec]
    """Of an unknown class none."""
    values: Mapping[str, Any]
    """Of the widgets; of an unknown class only what a saved object names."""
    saved_values: Sequence[Any]
    properties: Mapping[str, Any]

    def input(self, name: str) -> SavedInput | None:
        return next((entry for entry in self.inputs if entry.name == name), None)

    @property
    def label(self) -> str:
        return f'node {self.id} "{self.title}" ({self.type})' if self.title else f"node {self.id} ({self.type})"


@dataclass(frozen=True)
class SavedGraph:
    """A workflow or the definition of a subgraph. The ends are those of a subgraph: (name, ids of links)."""

    nodes: Mapping[str, SavedNode]
    links: Mapping[str, SavedLink]
    inputs: tuple[tuple[str, tuple[str, ...]], ...] = ()
    outputs: tuple[tuple[str, tuple[str, ...]], ...] = ()


class WorkflowReader:
    """Reads the parts of the file, and refuses what is no such part."""

    def __init__(self, where: str, classes: Mapping[str, type]) -> None:
        self.where = where
        self.classes = classes

    def definitions(self, workflow: Mapping[str, Any]) -> dict[str, SavedGraph]:
        """The subgraphs by id; older files keep them inside each other."""
        found: dict[str, SavedGraph] = {}
        waiting = [workflow]
        while waiting:
            held = self.mapping(waiting.pop().get("definitions"), "definitions")
            for raw in self.entries(held.get("subgraphs"), "definitions.subgraphs"):
                if not isinstance(raw.get("id"), str):
                    raise self.damaged("a subgraph has no id")
                found[raw["id"]] = self.graph(raw)
                waiting.append(raw)
        return found

    def graph(self, raw: Mapping[str, Any]) -> SavedGraph:
        nodes = [self.node(entry) for entry in self.entries(raw.get("nodes"), "nodes")]
        links = [] if raw.get("links") is None else raw["links"]
        if not isinstance(links, list):
            raise self.damaged("links is no list")
        return SavedGraph(
            nodes={node.id: node for node in nodes},
            links=dict(map(self.link, links)),
            inputs=self.ends(raw.get("inputs")),
            outputs=self.ends(raw.get("outputs")),
        )

    def ends(self, raw: Any) -> tuple[tuple[str, tuple[str, ...]], ...]:
        return tuple(
            (self.text(entry.get("name"), "name of a subgraph's slot"), self.ids(entry.get("linkIds")))
            for entry in self.entries(raw, "inputs or outputs of a subgraph")
        )

    def ids(self, raw: Any) -> tuple[str, ...]:
        if not isinstance(raw or [], list):
            raise self.damaged(f"linkIds is {raw!r}")
        return tuple(self.id(each) for each in raw or ())

    def node(self, raw: Mapping[str, Any]) -> SavedNode:
        node_id, kind = self.id(raw.get("id")), self.text(raw.get("type"), "type of a node")
        where = f"node {node_id} ({kind})"
        mode = raw.get("mode") or 0
        if type(mode) is not int:
            raise self.damaged(f"mode of {where} is {mode!r}")
        signature = signature_of(self.classes[kind]) if kind in self.classes else None
        saved = {
            entry.name: entry
            for entry in (self.input(each, where) for each in self.entries(raw.get("inputs"), f"inputs of {where}"))
        }
        values = raw.get("widgets_values")
        if values is not None and not isinstance(values, (list, dict)):
            raise self.damaged(f"widgets_values of {where} is {values!r}")
        outputs = self.entries(raw.get("outputs"), f"outputs of {where}")
        known = signature.inputs if signature is not None else ()
        # As the frontend builds a node: links first, then widgets; of a file only inputs of other names are added.
        specs = sorted(known, key=lambda spec: spec.is_widget)
        declared = [
            SavedInput(spec.name, spec.type, saved[spec.name].link if spec.name in saved else None, spec.is_widget)
            for spec in specs
        ]
        names = {spec.name for spec in specs}
        others = [entry for entry in saved.values() if entry.name not in names and not (signature and entry.has_widget)]
        return SavedNode(
            id=node_id,
            type=kind,
            title=self.text(raw.get("title") or "", f"title of {where}"),
            mode=mode,
            inputs=(*declared, *others),
            outputs=tuple(out.type for out in signature.outputs)
            if signature is not None
            else tuple(str(entry.get("type") or "*") for entry in outputs),
            widgets={spec.name: spec for spec in specs if spec.is_widget},
            values=self.values(kind, values, where),
            saved_values=values if isinstance(values, list) else (),
            properties=self.mapping(raw.get("properties"), f"properties of {where}"),
        )

    def input(self, raw: Mapping[str, Any], where: str) -> SavedInput:
        link = raw.get("link")
        return SavedInput(
            name=self.text(raw.get("name"), f"name of an input of {where}"),
            type=str(raw.get("type") or "*"),
            link=None if link is None else self.id(link),
            has_widget=bool(raw.get("widget")),
        )

    def values(self, kind: str, values: Any, where: str) -> dict[str, Any]:
        """The widgets' values by name: by position in a list; defaults where the file has none."""
        if kind not in self.classes:
            return {}
        signature = signature_of(self.classes[kind])
        specs = {spec.name: spec for spec in signature.inputs if spec.is_widget}
        given: Mapping[str, Any]
        if isinstance(values, dict):
            strangers = [name for name in values if name not in specs]
            if strangers:
                raise ConfigError(
                    f"{self.where}: widgets_values of {where} has {', '.join(map(str, strangers))}; its widgets are"
                    f" {', '.join(specs)}. {SAVE_AGAIN}"
                )
            given = values
        else:
            given = {name: value for (name, _), value in zip(signature.widget_slots(), values or (), strict=False)}
        filled = {name: given.get(name, spec.default) for name, spec in specs.items()}
        # An empty choice becomes the first one.
        return {
            name: specs[name].choices[0] if value is None and specs[name].choices else value
            for name, value in filled.items()
        }

    def link(self, raw: Any) -> tuple[str, SavedLink]:
        if isinstance(raw, Mapping):
            parts = [raw.get(name) for name in ("id", "origin_id", "origin_slot", "target_id")]
        else:
            parts = raw[:4] if isinstance(raw, list) else []
        if len(parts) < 4:
            raise self.damaged(f"the link {raw!r} is no list of at least 4 entries and no object")
        try:
            slot = int(parts[2])
        except (TypeError, ValueError, OverflowError) as error:
            raise self.damaged(f"the link {raw!r} starts at slot {parts[2]!r}") from error
        return self.id(parts[0]), SavedLink(source=self.id(parts[1]), slot=slot, target=self.id(parts[3]))

    def entries(self, raw: Any, what: str) -> list[Mapping[str, Any]]:
        raw = [] if raw is None else raw
        if not isinstance(raw, list) or not all(isinstance(entry, Mapping) for entry in raw):
            raise self.damaged(f"{what} is no list of objects")
        return raw

    def mapping(self, raw: Any, what: str) -> Mapping[str, Any]:
        if raw is not None and not isinstance(raw, Mapping):
            # Old files have empty lists for empty objects.
            if raw == []:
                return {}
            raise self.damaged(f"{what} is no object")
        return raw or {}

    def id(self, raw: Any) -> str:
        if isinstance(raw, bool) or not isinstance(raw, (int, str)):
            raise self.damaged(f"{raw!r} is no id of a node or of a link")
        return str(raw)

    def text(self, raw: Any, what: str) -> str:
        if not isinstance(raw, str):
            raise self.damaged(f"{what} is {raw!r}")
        return raw

    def damaged(self, fault: str) -> ConfigError:
        return ConfigError(f"{self.where} is a damaged workflow: {fault}. {SAVE_AGAIN}")
