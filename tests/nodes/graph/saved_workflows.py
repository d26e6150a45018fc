"""Workflows as ComfyUI's frontend saves them: one plain file, and what users do to it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from comfyui_longcat.nodes.graph.core_nodes import node_classes
from comfyui_longcat.nodes.graph.signature import signature_of

FOLDER = Path(__file__).resolve().parents[2] / "assets" / "saved_workflows"

MUTED, BYPASSED = 2, 4

INPUTS, OUTPUTS = -10, -20
"""Ids of a subgraph's own two ends."""

MODEL, SET_A, SET_B, JOIN, LATENTS, TEXT, VALIDATION, OPTIONS, TRAINER, CURVE = range(1, 11)
"""Ids of the plain file's nodes."""


class Sheet:
    """A workflow, or a subgraph's definition, being changed. `links` are arrays in the one and objects in the other."""

    def __init__(self, content: dict[str, Any], root: Sheet | None = None) -> None:
        self.content = content
        self.root = root or self

    def node(self, node_id: int) -> dict[str, Any]:
        return next(node for node in self.content["nodes"] if node["id"] == node_id)

    def entry(self, node_id: int, name: str) -> dict[str, Any]:
        return next(entry for entry in self.node(node_id)["inputs"] if entry["name"] == name)

    def add(self, kind: str, values: Any = None, inputs: tuple = (), outputs: tuple = (), **others: Any) -> int:
        """`inputs`, `outputs`: (name, type)"""
        self.root.content["last_node_id"] += 1
        new = {
            "id": self.root.content["last_node_id"],
            "type": kind,
            "pos": [0, 0],
            "size": [200, 100],
            "flags": {},
            "order": 0,
            "mode": 0,
            "inputs": [{"name": name, "type": kind, "link": None} for name, kind in inputs],
            "outputs": [{"name": name, "type": kind, "links": []} for name, kind in outputs],
            "properties": {},
            **({} if values is None else {"widgets_values": values}),
            **others,
        }
        self.content["nodes"].append(new)
        return new["id"]

    def link(self, source: int, slot: int, target: int, name: str) -> None:
        """Output `slot` of `source` to input `name` of `target`, in place of what is linked there."""
        self.unlink(target, name)
        self.root.content["last_link_id"] += 1
        number = self.root.content["last_link_id"]
        inputs = self.content["outputs"] if target == OUTPUTS else self.node(target)["inputs"]
        index, entry = next((index, entry) for index, entry in enumerate(inputs) if entry["name"] == name)
        outputs = self.content["inputs"] if source == INPUTS else self.node(source)["outputs"]
        kind = outputs[slot]["type"]
        if target == OUTPUTS:
            entry["linkIds"] = [number]
        else:
            entry["link"] = number
        key = "linkIds" if source == INPUTS else "links"
        outputs[slot][key] = [*(outputs[slot].get(key) or []), number]
        if self.root is self and isinstance(self.content["version"], float):
            self.content["links"].append([number, source, slot, target, index, kind])
        else:
            self.content["links"].append(
                {
                    "id": number,
                    "origin_id": source,
                    "origin_slot": slot,
                    "target_id": target,
                    "target_slot": index,
                    "type": kind,
                }
            )

    def source(self, target: int, name: str) -> tuple[int, int]:
        number = self.entry(target, name)["link"]
        link = next(link for link in self.content["links"] if _id_of(link) == number)
        return (link["origin_id"], link["origin_slot"]) if isinstance(link, dict) else (link[1], link[2])

    def unlink(self, target: int, name: str) -> None:
        if target == OUTPUTS:
            return
        number = self.entry(target, name)["link"]
        self.entry(target, name)["link"] = None
        self.content["links"] = [link for link in self.content["links"] if _id_of(link) != number]
        for node in self.content["nodes"]:
            for output in node["outputs"]:
                output["links"] = [each for each in output["links"] or [] if each != number]

    def between(self, target: int, name: str, kind: str, **others: Any) -> int:
        """Puts a node with one input and one output into a link."""
        source, slot = self.source(target, name)
        new = self.add(kind, inputs=(("", "*"),), outputs=(("", "*"),), **others)
        self.unlink(target, name)
        self.link(source, slot, new, "")
        self.link(new, 0, target, name)
        return new

    def feed(self, target: int, name: str, kind: str, values: Any, **others: Any) -> int:
        """Links a new node that holds a value to a widget."""
        type_ = self.entry(target, name)["type"]
        new = self.add(kind, values, outputs=((type_, type_),), **others)
        if kind == "PrimitiveNode":
            self.node(new)["outputs"][0]["widget"] = {"name": name}
        self.link(new, 0, target, name)
        return new

    def set(self, node_id: int, name: str, value: Any) -> None:
        """Changes a widget; `seed`'s own extra value stands after it."""
        names = [entry["name"] for entry in self.node(node_id)["inputs"] if "widget" in entry]
        place = names.index(name) + ("seed" in names and names.index("seed") < names.index(name))
        self.node(node_id)["widgets_values"][place] = value


def plain() -> Sheet:
    return Sheet(json.loads((FOLDER / "plain.json").read_text(encoding="utf-8")))


def into_subgraph(sheet: Sheet, inner: tuple[int, ...], name: str = "made") -> tuple[Sheet, int]:
    """Moves nodes into a subgraph, as the frontend does; returns the definition and its instance's id."""
    content = sheet.content
    definition = {
        "id": f"00000000-0000-4000-8000-{sheet.root.content['last_node_id']:012d}",
        "version": 1,
        "state": {"lastGroupId": 0, "lastNodeId": 0, "lastLinkId": 0, "lastRerouteId": 0},
        "revision": 0,
        "config": {},
        "name": name,
        "inputNode": {"id": INPUTS, "bounding": [0, 0, 120, 60]},
        "outputNode": {"id": OUTPUTS, "bounding": [0, 0, 120, 60]},
        "inputs": [],
        "outputs": [],
        "widgets": [],
        "nodes": [sheet.node(node_id) for node_id in inner],
        "links": [],
        "groups": [],
        "extra": {},
    }
    sheet.root.content.setdefault("definitions", {"subgraphs": []})["subgraphs"].append(definition)
    sub = Sheet(definition, sheet.root)
    old = [link if isinstance(link, dict) else _as_object(link) for link in content["links"]]
    content["nodes"] = [node for node in content["nodes"] if node["id"] not in inner]
    instance = sheet.add(definition["id"], [], title=name)
    for link in old:
        starts, ends = link["origin_id"] in inner, link["target_id"] in inner
        if not (starts or ends):
            continue
        content["links"] = [each for each in content["links"] if _id_of(each) != link["id"]]
        if starts and ends:
            definition["links"].append(link)
        elif ends:
            _promote_link(sheet, sub, instance, link)
        else:
            _lead_out(sheet, sub, instance, link)
    return sub, instance


def _id_of(link: Any) -> int:
    return link["id"] if isinstance(link, dict) else link[0]


def _as_object(link: list[Any]) -> dict[str, Any]:
    return dict(zip(("id", "origin_id", "origin_slot", "target_id", "target_slot", "type"), link, strict=True))


def _promote_link(sheet: Sheet, sub: Sheet, instance: int, link: dict[str, Any]) -> None:
    entry = sub.node(link["target_id"])["inputs"][link["target_slot"]]
    name = promote(sheet, sub, (instance,), link["target_id"], entry["name"])
    for output in sheet.node(link["origin_id"])["outputs"]:
        output["links"] = [each for each in output["links"] or [] if each != link["id"]]
    sheet.link(link["origin_id"], link["origin_slot"], instance, name)


def promote(sheet: Sheet, sub: Sheet, instances: tuple[int, ...], inner: int, name: str) -> str:
    """Makes an input of the subgraph, linked to an input of the node `inner`; returns its name."""
    definition = sub.content
    entry = sub.entry(inner, name)
    taken = {each["name"] for each in definition["inputs"]}
    new = name if name not in taken else f"{name}_{len(taken)}"
    definition["inputs"].append(
        {"id": f"00000000-0000-4000-9000-{len(definition['inputs']):012d}", "name": new, "type": entry["type"]}
    )
    for instance in instances:
        outer = {"name": new, "type": entry["type"], "link": None}
        sheet.node(instance)["inputs"].append(outer | ({"widget": {"name": new}} if "widget" in entry else {}))
    entry["link"] = None
    sub.link(INPUTS, len(definition["inputs"]) - 1, inner, name)
    return new


def _lead_out(sheet: Sheet, sub: Sheet, instance: int, link: dict[str, Any]) -> None:
    source, slot = link["origin_id"], link["origin_slot"]
    output = sub.node(source)["outputs"][slot]
    output["links"] = [each for each in output["links"] if each != link["id"]]
    name = f"{output['name']}_{len(sub.content['outputs'])}"
    sub.content["outputs"].append({"id": f"out-{name}", "name": name, "type": output["type"], "linkIds": []})
    sheet.node(instance)["outputs"].append({"name": name, "type": output["type"], "links": []})
    sub.link(source, slot, OUTPUTS, name)
    target = sheet.node(link["target_id"])["inputs"][link["target_slot"]]
    target["link"] = None
    sheet.link(instance, len(sub.content["outputs"]) - 1, link["target_id"], target["name"])


def _with_mode(node_id: int, mode: int) -> Callable[[Sheet], None]:
    def change(sheet: Sheet) -> None:
        sheet.node(node_id)["mode"] = mode

    return change


def reroute(sheet: Sheet) -> None:
    sheet.between(TRAINER, "model", "Reroute")


def reroute_twice(sheet: Sheet) -> None:
    sheet.between(JOIN, "first", "Reroute")
    sheet.between(JOIN, "first", "Reroute")


def reroute_bypassed(sheet: Sheet) -> None:
    sheet.between(TRAINER, "cache", "Reroute", mode=BYPASSED)


def reroute_muted(sheet: Sheet) -> None:
    sheet.between(TRAINER, "options", "Reroute", mode=MUTED)


def reroute_from_nowhere(sheet: Sheet) -> None:
    new = sheet.between(TRAINER, "options", "Reroute")
    sheet.unlink(new, "")


def points_on_links(sheet: Sheet) -> None:
    """The reroutes of newer frontends: points of a link, not nodes."""
    number = sheet.entry(TRAINER, "model")["link"]
    sheet.content["extra"]["reroutes"] = [{"id": 1, "pos": [10, 10], "linkIds": [number]}]
    sheet.content["extra"]["linkExtensions"] = [{"id": number, "parentId": 1}]


def primitive(sheet: Sheet) -> None:
    sheet.set(TRAINER, "max_train_steps", 999)
    sheet.feed(TRAINER, "max_train_steps", "PrimitiveNode", [3, "fixed"])


def primitive_of_two(sheet: Sheet) -> None:
    new = sheet.feed(SET_A, "caption_strategy", "PrimitiveNode", ["filename", "fixed", ""])
    sheet.link(new, 0, SET_B, "caption_strategy")


def primitive_muted(sheet: Sheet) -> None:
    sheet.feed(TRAINER, "max_train_steps", "PrimitiveNode", [5, "fixed"], mode=MUTED)


def primitive_bypassed(sheet: Sheet) -> None:
    sheet.feed(TRAINER, "max_train_steps", "PrimitiveNode", [5, "fixed"], mode=BYPASSED)


def primitive_too_large(sheet: Sheet) -> None:
    sheet.feed(TRAINER, "lora_rank", "PrimitiveNode", [10**9, "fixed"])


def primitive_without_value(sheet: Sheet) -> None:
    sheet.feed(TRAINER, "lora_rank", "PrimitiveNode", None)


def primitive_through_reroute(sheet: Sheet) -> None:
    sheet.feed(TRAINER, "lora_rank", "PrimitiveNode", [5, "fixed"])
    sheet.between(TRAINER, "lora_rank", "Reroute")


def core_primitives(sheet: Sheet) -> None:
    sheet.feed(TRAINER, "max_train_steps", "PrimitiveInt", [5, "fixed"])
    sheet.feed(TRAINER, "learning_rate", "PrimitiveFloat", [0.25])
    sheet.feed(TRAINER, "run_name", "PrimitiveString", ["named"])
    sheet.feed(VALIDATION, "validation_prompt", "PrimitiveStringMultiline", ["one\ntwo"])
    sheet.feed(OPTIONS, "gradient_checkpointing", "PrimitiveBoolean", [False])


def set_behind_muted(sheet: Sheet) -> None:
    sheet.between(TRAINER, "validation", "Reroute")
    sheet.node(VALIDATION)["mode"] = MUTED


def bypassed_chain(sheet: Sheet) -> None:
    """A node whose output has the type of two of its inputs, and one that has none of its output's type."""
    sheet.node(JOIN)["mode"] = BYPASSED
    sheet.node(LATENTS)["mode"] = BYPASSED


def bypassed_behind_reroute(sheet: Sheet) -> None:
    sheet.node(JOIN)["mode"] = BYPASSED
    sheet.between(LATENTS, "pairs", "Reroute")


def lora_bypassed(sheet: Sheet) -> None:
    lora = sheet.add(
        "LongCatLoadLoRA",
        ["None", 1.0],
        inputs=(("model", "LONGCAT_MODEL"), ("lora_name", "COMBO"), ("strength", "FLOAT")),
        outputs=(("model", "LONGCAT_MODEL"),),
        mode=BYPASSED,
    )
    sheet.link(MODEL, 0, lora, "model")
    sheet.link(lora, 0, TRAINER, "model")


def primitive_of_two_ranges(sheet: Sheet) -> None:
    new = sheet.feed(TRAINER, "max_train_steps", "PrimitiveNode", [0, "fixed"])
    sheet.link(new, 0, TRAINER, "seed")
    sheet.link(new, 0, OPTIONS, "lr_warmup_steps")


def primitive_with_a_fraction(sheet: Sheet) -> None:
    sheet.feed(TRAINER, "lora_rank", "PrimitiveNode", [5.6, "fixed"])


def primitive_without_widget_inputs(sheet: Sheet) -> None:
    primitive(sheet)
    for node in sheet.content["nodes"]:
        node["inputs"] = [entry for entry in node["inputs"] if "widget" not in entry or entry["link"] is not None]


def empty_choices(sheet: Sheet) -> None:
    sheet.set(MODEL, "model_family", None)
    sheet.set(SET_A, "caption_strategy", None)


def unused_strangers(sheet: Sheet) -> None:
    for kind in ("Note", "MarkdownNote", "NodeOfAnotherPack"):
        sheet.add(kind, ["only a remark"])


def objects_as_links(sheet: Sheet) -> None:
    sheet.content["version"] = 1
    sheet.content["links"] = [_as_object(link) for link in sheet.content["links"]]
    sheet.content["state"] = {"lastNodeId": 10, "lastLinkId": 11, "lastGroupId": 9, "lastRerouteId": 0}


def fewer_values(sheet: Sheet) -> None:
    values = sheet.node(TRAINER)["widgets_values"]
    sheet.node(TRAINER)["widgets_values"] = values[:3]
    del sheet.node(OPTIONS)["widgets_values"]


def more_values(sheet: Sheet) -> None:
    sheet.node(TRAINER)["widgets_values"] += [True, "newer"]


def without_unlinked_widget_inputs(sheet: Sheet) -> None:
    """As in the copy of a workflow that ComfyUI puts into pictures."""
    for node in sheet.content["nodes"]:
        node["inputs"] = [entry for entry in node["inputs"] if "widget" not in entry]


def inputs_in_another_order(sheet: Sheet) -> None:
    for node in sheet.content["nodes"]:
        node["inputs"].reverse()


def text_for_ids(sheet: Sheet) -> None:
    sheet.node(TRAINER)["id"] = "9"


def strange_modes(sheet: Sheet) -> None:
    sheet.node(OPTIONS)["mode"] = 1
    sheet.node(VALIDATION)["mode"] = 3


def subgraph_of_caches(sheet: Sheet) -> None:
    into_subgraph(sheet, (LATENTS, TEXT))


def subgraph_with_trainer(sheet: Sheet) -> None:
    into_subgraph(sheet, (OPTIONS, TRAINER))


def subgraph_muted(sheet: Sheet) -> None:
    _, instance = into_subgraph(sheet, (OPTIONS,))
    sheet.node(instance)["mode"] = MUTED


def subgraph_bypassed(sheet: Sheet) -> None:
    _, instance = into_subgraph(sheet, (JOIN,))
    sheet.node(instance)["mode"] = BYPASSED


def muted_in_subgraph(sheet: Sheet) -> None:
    sub, _ = into_subgraph(sheet, (OPTIONS, TRAINER))
    sub.node(OPTIONS)["mode"] = MUTED


def bypassed_in_subgraph(sheet: Sheet) -> None:
    sub, _ = into_subgraph(sheet, (SET_B, JOIN))
    sub.node(JOIN)["mode"] = BYPASSED


def reroutes_around_subgraph(sheet: Sheet) -> None:
    sub, instance = into_subgraph(sheet, (LATENTS, TEXT))
    sheet.between(TRAINER, "cache", "Reroute")
    new = sub.add("Reroute", inputs=(("", "*"),), outputs=(("", "*"),))
    link = next(link for link in sub.content["links"] if link["target_id"] == LATENTS and link["origin_id"] == INPUTS)
    link["target_id"], link["target_slot"] = new, 0
    name = sub.node(LATENTS)["inputs"][0]["name"]
    sub.node(new)["inputs"][0]["link"] = link["id"]
    sub.entry(LATENTS, name)["link"] = None
    sub.link(new, 0, LATENTS, name)


def subgraph_nested(sheet: Sheet) -> None:
    sub, _ = into_subgraph(sheet, (LATENTS, TEXT, OPTIONS, TRAINER), "outer")
    _nest(sheet, sub, (LATENTS, TEXT))


def _nest(sheet: Sheet, outer: Sheet, inner: tuple[int, ...]) -> tuple[Sheet, int]:
    content = outer.content
    ends = (INPUTS, OUTPUTS)
    crossing = [
        link
        for link in content["links"]
        if (link["origin_id"] in inner and link["target_id"] in ends)
        or (link["target_id"] in inner and link["origin_id"] in ends)
    ]
    content["links"] = [link for link in content["links"] if link not in crossing]
    sub, instance = into_subgraph(outer, inner, "inner")
    for link in crossing:
        if link["origin_id"] == INPUTS:
            entry = sub.node(link["target_id"])["inputs"][link["target_slot"]]
            name = promote(outer, sub, (instance,), link["target_id"], entry["name"])
            content["inputs"][link["origin_slot"]]["linkIds"].remove(link["id"])
            outer.link(INPUTS, link["origin_slot"], instance, name)
        else:
            output = sub.node(link["origin_id"])["outputs"][link["origin_slot"]]
            output["links"] = [each for each in output["links"] if each != link["id"]]
            name = f"{output['name']}_{len(sub.content['outputs'])}"
            sub.content["outputs"].append({"id": f"out-{name}", "name": name, "type": output["type"], "linkIds": []})
            outer.node(instance)["outputs"].append({"name": name, "type": output["type"], "links": []})
            sub.link(link["origin_id"], link["origin_slot"], OUTPUTS, name)
            outer.link(
                instance, len(sub.content["outputs"]) - 1, OUTPUTS, content["outputs"][link["target_slot"]]["name"]
            )
    return sub, instance


def nested_muted(sheet: Sheet) -> None:
    sub, _ = into_subgraph(sheet, (VALIDATION, OPTIONS, TRAINER), "outer")
    _, instance = _nest(sheet, sub, (OPTIONS,))
    sub.node(instance)["mode"] = MUTED


def promoted(sheet: Sheet) -> None:
    sub, instance = into_subgraph(sheet, (OPTIONS, TRAINER))
    promote(sheet, sub, (instance,), TRAINER, "lora_rank")
    promote(sheet, sub, (instance,), TRAINER, "run_name")
    sheet.node(instance)["widgets_values"] = [5, "promoted"]


def promoted_without_values(sheet: Sheet) -> None:
    sub, instance = into_subgraph(sheet, (OPTIONS, TRAINER))
    promote(sheet, sub, (instance,), TRAINER, "lora_rank")


def promoted_and_linked(sheet: Sheet) -> None:
    promoted(sheet)
    instance = sheet.content["last_node_id"]
    sheet.feed(instance, "lora_rank", "PrimitiveInt", [6, "fixed"])


def promoted_and_fed(sheet: Sheet) -> None:
    promoted(sheet)
    instance = sheet.content["last_node_id"]
    sheet.feed(instance, "lora_rank", "PrimitiveNode", [6, "fixed"])


def promoted_to_two(sheet: Sheet) -> None:
    sub, instance = into_subgraph(sheet, (SET_A, SET_B, JOIN))
    promote(sheet, sub, (instance,), SET_A, "caption_strategy")
    sub.link(INPUTS, 0, SET_B, "caption_strategy")
    promote(sheet, sub, (instance,), SET_B, "instance_data_dir")
    sheet.node(instance)["widgets_values"] = ["filename", "promoted"]


def promoted_twice(sheet: Sheet) -> None:
    """Through two subgraphs; the outer one's value counts."""
    sub, outer = into_subgraph(sheet, (VALIDATION, OPTIONS, TRAINER), "outer")
    deep, inner = _nest(sheet, sub, (OPTIONS, TRAINER))
    promote(sub, deep, (inner,), TRAINER, "lora_rank")
    promote(sub, deep, (inner,), TRAINER, "run_name")
    sub.node(inner)["widgets_values"] = [5, "inner"]
    promote(sheet, sub, (outer,), inner, "lora_rank")
    sheet.node(outer)["widgets_values"] = [6]


def promoted_twice_without_values(sheet: Sheet) -> None:
    promoted_twice(sheet)
    sheet.node(sheet.content["last_node_id"] - 1)["widgets_values"] = []


def two_instances(sheet: Sheet) -> None:
    sub, first = into_subgraph(sheet, (SET_A,))
    promote(sheet, sub, (first,), SET_A, "id")
    promote(sheet, sub, (first,), SET_A, "instance_data_dir")
    second = copy.deepcopy(sheet.node(first))
    sheet.content["last_node_id"] += 1
    second["id"] = sheet.content["last_node_id"]
    second["outputs"][0]["links"] = []
    sheet.content["nodes"].append(second)
    sheet.node(first)["widgets_values"] = ["one", "first"]
    second["widgets_values"] = ["two", "second"]
    sheet.content["nodes"] = [node for node in sheet.content["nodes"] if node["id"] != SET_B]
    sheet.link(second["id"], 0, JOIN, "second")


def older_promotion(sheet: Sheet, values: list[Any] | None = None, entries: list[list[str]] | None = None) -> None:
    sub, instance = into_subgraph(sheet, (OPTIONS, TRAINER))
    sheet.node(instance)["properties"]["proxyWidgets"] = entries or [
        [str(TRAINER), "lora_rank"],
        [str(TRAINER), "run_name"],
    ]
    sheet.node(instance)["widgets_values"] = values or []


def older_promotion_with_values(sheet: Sheet) -> None:
    older_promotion(sheet, [5, "promoted"])


def older_promotion_of_an_input(sheet: Sheet) -> None:
    promoted(sheet)
    instance = sheet.content["last_node_id"]
    entries = [[str(TRAINER), "run_name"], [str(OPTIONS), "lr_warmup_steps"], [str(TRAINER), "lora_rank"]]
    sheet.node(instance)["properties"]["proxyWidgets"] = entries
    sheet.node(instance)["widgets_values"] = ["older", 2, 7]


def older_promotion_of_the_host(sheet: Sheet) -> None:
    promoted(sheet)
    instance = sheet.content["last_node_id"]
    sheet.node(instance)["properties"]["proxyWidgets"] = [["-1", "lora_rank"], ["-1", "run_name"]]


def older_promotion_set_aside(sheet: Sheet) -> None:
    promoted(sheet)
    sheet.node(sheet.content["last_node_id"])["properties"]["proxyWidgetErrorQuarantine"] = [
        {
            "originalEntry": ["-1", "run_name"],
            "reason": "missingSourceNode",
            "attemptedAtVersion": 1,
            "hostValue": "set aside",
        }
    ]


def promoted_of_an_unknown_node(sheet: Sheet) -> None:
    """Its place among the values counts, though nobody here reads it."""
    sub, instance = into_subgraph(sheet, (OPTIONS, TRAINER))
    sampler = sub.add("KSampler", [1, "fixed", 20, 8.0, "euler", "simple", 1.0], inputs=(("steps", "INT"),))
    sub.entry(sampler, "steps")["widget"] = {"name": "steps"}
    promote(sheet, sub, (instance,), sampler, "steps")
    promote(sheet, sub, (instance,), TRAINER, "lora_rank")
    sheet.node(instance)["widgets_values"] = [30, 5]


def older_promotion_nested(sheet: Sheet) -> None:
    sub, outer = into_subgraph(sheet, (VALIDATION, OPTIONS, TRAINER), "outer")
    _, inner = _nest(sheet, sub, (OPTIONS, TRAINER))
    sub.node(inner)["properties"]["proxyWidgets"] = [[str(TRAINER), "lora_rank"], [str(TRAINER), "run_name"]]
    sheet.node(outer)["properties"]["proxyWidgets"] = [[str(inner), "lora_rank"]]
    sheet.node(outer)["widgets_values"] = [6]


def primitive_in_subgraph(sheet: Sheet) -> None:
    sub, _ = into_subgraph(sheet, (OPTIONS, TRAINER))
    sub.feed(TRAINER, "lora_rank", "PrimitiveNode", [5, "fixed"])


def primitive_promoted(sheet: Sheet) -> None:
    sub, instance = into_subgraph(sheet, (OPTIONS, TRAINER))
    new = sub.feed(TRAINER, "lora_rank", "PrimitiveNode", [5, "fixed"])
    sheet.node(instance)["properties"]["proxyWidgets"] = [[str(new), "value"]]
    sheet.node(instance)["widgets_values"] = [7]


def subgraph_without_widget_inputs(sheet: Sheet) -> None:
    """The copy in pictures leaves out the promoted inputs of the instance, but not their values."""
    promoted(sheet)
    for node in sheet.content["nodes"]:
        node["inputs"] = [entry for entry in node["inputs"] if "widget" not in entry]


def two_in_a_row(sheet: Sheet) -> None:
    """One subgraph feeds another."""
    into_subgraph(sheet, (SET_A, SET_B, JOIN), "data")
    into_subgraph(sheet, (LATENTS, TEXT), "caches")


def extra_inputs(sheet: Sheet) -> None:
    """Inputs that the node of today does not have."""
    for name, extra in (("older", {}), ("older_widget", {"widget": {"name": "older_widget"}})):
        sheet.node(TRAINER)["inputs"].append({"name": name, "type": "LONGCAT_MODEL", "link": None, **extra})
        sheet.link(MODEL, 0, TRAINER, name)


CHANGES: dict[str, Callable[[Sheet], None]] = {
    change.__name__: change
    for change in (
        reroute,
        reroute_twice,
        reroute_bypassed,
        reroute_muted,
        reroute_from_nowhere,
        points_on_links,
        primitive,
        primitive_of_two,
        primitive_muted,
        primitive_bypassed,
        primitive_too_large,
        primitive_without_value,
        primitive_through_reroute,
        core_primitives,
        set_behind_muted,
        bypassed_chain,
        bypassed_behind_reroute,
        lora_bypassed,
        primitive_of_two_ranges,
        primitive_with_a_fraction,
        primitive_without_widget_inputs,
        empty_choices,
        unused_strangers,
        objects_as_links,
        fewer_values,
        more_values,
        without_unlinked_widget_inputs,
        inputs_in_another_order,
        text_for_ids,
        strange_modes,
        subgraph_of_caches,
        subgraph_with_trainer,
        subgraph_muted,
        subgraph_bypassed,
        muted_in_subgraph,
        bypassed_in_subgraph,
        reroutes_around_subgraph,
        subgraph_nested,
        nested_muted,
        promoted,
        promoted_without_values,
        promoted_and_linked,
        promoted_and_fed,
        promoted_to_two,
        promoted_twice,
        promoted_twice_without_values,
        two_instances,
        older_promotion,
        older_promotion_with_values,
        older_promotion_of_an_input,
        older_promotion_of_the_host,
        older_promotion_set_aside,
        promoted_of_an_unknown_node,
        older_promotion_nested,
        primitive_in_subgraph,
        primitive_promoted,
        subgraph_without_widget_inputs,
        two_in_a_row,
        extra_inputs,
    )
}
CHANGES |= {
    f"{name}_{word}": _with_mode(node_id, mode)
    for name, node_id in (
        ("options", OPTIONS),
        ("validation", VALIDATION),
        ("join", JOIN),
        ("second_set", SET_B),
        ("latents", LATENTS),
        ("trainer", TRAINER),
    )
    for word, mode in (("muted", MUTED), ("bypassed", BYPASSED))
}


def saved_workflows() -> dict[str, dict[str, Any]]:
    """Every workflow by name."""
    made = {"plain": plain()}
    for name, change in CHANGES.items():
        made[name] = plain()
        change(made[name])
    return {name: sheet.content for name, sheet in made.items()}


ANSWERS = FOLDER / "frontend_answers.json"


def stored_answers() -> dict[str, dict[str, Any]]:
    """The API graph that ComfyUI's page made of each of `saved_workflows`."""
    stored = json.loads(ANSWERS.read_text(encoding="utf-8"))
    return {
        name: {node_id: stored["plain"][node_id] if node is None else node for node_id, node in graph.items()}
        for name, graph in stored.items()
    }


def store_answers(answers: dict[str, dict[str, Any]]) -> None:
    """A node that is as in the plain workflow is stored as null."""
    plain = answers["plain"]
    stored = {
        name: {key: None if graph is not plain and node == plain.get(key) else node for key, node in graph.items()}
        for name, graph in answers.items()
    }
    ANSWERS.write_text(json.dumps(stored, separators=(",", ":")) + "\n", encoding="utf-8")


def compared(graph: dict[str, Any], workflow: dict[str, Any]) -> dict[str, Any]:
    """What of an API graph must be equal.

    Left out: nodes that are not known here, and titles that the file does not hold. Widgets that are newer than the
    file, or than a stored answer, have their defaults.
    """
    classes = node_classes()
    sheets = [workflow, *workflow.get("definitions", {}).get("subgraphs", ())]
    titled = {str(node["id"]) for sheet in sheets for node in sheet["nodes"] if node.get("title")}
    known = {}
    for node_id, node in graph.items():
        if node.get("class_type") in classes:
            specs = signature_of(classes[node["class_type"]]).inputs
            defaults = {spec.name: spec.default for spec in specs if spec.is_widget}
            title = node["_meta"] if node_id.split(":")[-1] in titled else None
            known[node_id] = (node["class_type"], {**defaults, **node["inputs"]}, title)
    return known
