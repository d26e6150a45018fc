"""Saved workflows, in every form and with every helper node, become what ComfyUI would queue."""

import copy
import json
import random

import pytest
from comfyui_longcat.nodes.graph.catalogue import WORKFLOWS
from comfyui_longcat.nodes.graph.check import find_faults, repaired
from comfyui_longcat.nodes.graph.constants import with_constants
from comfyui_longcat.nodes.graph.core_nodes import node_classes
from comfyui_longcat.nodes.graph.from_ui import api_of_ui, read_workflow
from comfyui_longcat.nodes.graph.override import apply_settings
from comfyui_longcat.nodes.graph.primitive import fitted
from comfyui_longcat.nodes.graph.signature import signature_of
from comfyui_longcat.nodes.graph.tiny import make_tiny
from comfyui_longcat.nodes.graph.to_config import run_of_workflow
from comfyui_longcat.nodes.host import use_host
from comfyui_longcat.nodes.terminal.host import TerminalHost
from comfyui_longcat.tests.nodes.graph.saved_workflows import (
    LATENTS,
    MODEL,
    OPTIONS,
    SET_A,
    TRAINER,
    compared,
    into_subgraph,
    plain,
    promote,
    saved_workflows,
    stored_answers,
)
from comfyui_longcat.training.errors import ConfigError

SAVED = saved_workflows()
ANSWERS = stored_answers()


@pytest.fixture(autouse=True)
def host(tmp_path):
    terminal = TerminalHost(tmp_path)
    with use_host(terminal):
        yield terminal


def converted(content):
    return api_of_ui(content, "saved.json", node_classes())


def refusal(content):
    with pytest.raises(ConfigError) as caught:
        converted(content)
    return str(caught.value)


@pytest.mark.parametrize("name", SAVED)
def test_graph_is_what_the_page_queues(name):
    workflow = SAVED[name]
    assert compared(converted(workflow), workflow) == compared(ANSWERS[name], workflow)


@pytest.mark.parametrize("name", sorted(WORKFLOWS))
def test_shipped_workflows_are_the_same_in_both_formats(name, repository):
    folder = repository / "workflows"
    ui = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    assert converted(ui) == json.loads((folder / "api" / f"{name}.json").read_text(encoding="utf-8"))


def test_workflow_is_left_as_it_was():
    for workflow in saved_workflows().values():
        before = copy.deepcopy(workflow)
        converted(workflow)
        assert workflow == before


SAME_RUN = (
    "reroute",
    "reroute_twice",
    "reroute_bypassed",
    "points_on_links",
    "primitive",
    "unused_strangers",
    "objects_as_links",
    "subgraph_of_caches",
    "subgraph_with_trainer",
    "subgraph_nested",
    "two_in_a_row",
    "reroutes_around_subgraph",
)


@pytest.mark.parametrize("name", SAME_RUN)
def test_helpers_change_nothing_of_the_run(name):
    assert run_of_workflow(SAVED[name], name) == run_of_workflow(SAVED["plain"], "plain")


def test_what_is_switched_off_is_not_in_the_run():
    whole = run_of_workflow(SAVED["plain"], "plain")
    for word in ("muted", "bypassed"):
        options = run_of_workflow(SAVED[f"options_{word}"], "options")
        assert options.train.options == type(whole.train.options)()
        assert run_of_workflow(SAVED[f"validation_{word}"], "validation").train.validation is None
        assert len(run_of_workflow(SAVED[f"second_set_{word}"], "sets").sets) == 1
    (only,) = run_of_workflow(SAVED["join_bypassed"], "join").sets
    assert only == whole.sets[0]


def test_promoted_values_and_constants_reach_the_run():
    for name, rank, run_name in (
        ("promoted", 5, "promoted"),
        ("promoted_twice", 6, "inner"),
        ("older_promotion_with_values", 5, "promoted"),
    ):
        train = run_of_workflow(SAVED[name], name).train
        assert (train.lora_rank, train.run_name) == (rank, run_name)
    train = run_of_workflow(SAVED["core_primitives"], "core").train
    assert (train.max_train_steps, train.learning_rate, train.run_name) == (5, 0.25, "named")
    assert train.validation.validation_prompt == "one\ntwo" and not train.options.gradient_checkpointing
    first, second = run_of_workflow(SAVED["two_instances"], "two").sets
    assert [(each.targets.id, each.targets.instance_data_dir) for each in (first, second)] == [
        ("one", "first"),
        ("two", "second"),
    ]


@pytest.mark.parametrize(("getter", "setter"), [("GetNode", "SetNode"), ("easy getNode", "easy setNode")])
def test_nodes_that_set_and_get_by_name(getter, setter):
    sheet = plain()
    taker = sheet.add(setter, ["the model"], inputs=(("*", "*"),), outputs=(("*", "*"),))
    sheet.link(MODEL, 0, taker, "*")
    for target in (TRAINER, LATENTS):
        giver = sheet.add(getter, ["the model"], outputs=(("*", "*"),))
        sheet.link(giver, 0, target, "model")
    assert converted(sheet.content) == converted(SAVED["plain"])
    into_subgraph(sheet, (OPTIONS, TRAINER, giver - 1))
    inside = next(node for node in converted(sheet.content).values() if node["class_type"] == "TrainLoRA")
    assert inside["inputs"]["model"] == [str(MODEL), 0]
    sheet.node(taker)["widgets_values"] = ["another name"]
    assert "model" not in converted(sheet.content)[str(LATENTS)]["inputs"]


def test_values_by_name():
    sheet = plain()
    names = [name for name, _ in signature_of(node_classes()["TrainLoRA"]).widget_slots()]
    values = dict(zip(names, sheet.node(TRAINER)["widgets_values"], strict=True))
    values.pop("", None)
    sheet.node(TRAINER)["widgets_values"] = values
    assert converted(sheet.content) == converted(SAVED["plain"])
    values["lora_rnk"] = 4
    assert "node 9 (TrainLoRA) has lora_rnk; its widgets are " in refusal(sheet.content)


def test_needed_node_that_is_not_known_is_named():
    sheet = plain()
    stranger = sheet.add(
        "ModelTuner", [1], inputs=(("model", "*"),), outputs=(("model", "LONGCAT_MODEL"),), title="Tune"
    )
    sheet.link(MODEL, 0, stranger, "model")
    sheet.link(stranger, 0, TRAINER, "model")
    graph = read_workflow(sheet.content, "saved.json", node_classes())
    assert graph[str(stranger)]["inputs"] == {"model": [str(MODEL), 0]}
    assert f'node {stranger} "Tune" (ModelTuner): there is no such node here' in find_faults(graph, node_classes())[0]
    with pytest.raises(ConfigError, match=f'comes from node {stranger} "Tune" \\(ModelTuner\\)'):
        run_of_workflow(sheet.content, "saved.json")


def test_primitive_that_replaces_text_is_refused():
    sheet = plain()
    new = sheet.feed(TRAINER, "run_name", "PrimitiveNode", ["%Load LongCat.model_flavour%"], title="Name")
    sheet.node(new)["properties"] = {"Run widget replace on values": True}
    assert f'node {new} "Name" (PrimitiveNode) has the property' in refusal(sheet.content)


def test_promoted_widget_of_an_unknown_node_is_refused_if_it_counts():
    sheet = plain()
    sub, instance = into_subgraph(sheet, (OPTIONS, TRAINER))
    stranger = sub.add("SomeSampler", [7], inputs=(("seed", "INT"),), outputs=())
    sub.entry(stranger, "seed")["widget"] = {"name": "seed"}
    promote(sheet, sub, (instance,), stranger, "seed")
    assert f"{instance}:{stranger}" in converted(sheet.content)
    sub.link(-10, len(sub.content["inputs"]) - 1, TRAINER, "seed")
    assert "the value of seed of node 9" in refusal(sheet.content)


def _set(sheet, *path):
    *path, key, value = path
    place = sheet.content
    for step in path:
        place = place[step]
    place[key] = value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("nodes", 0, "id", None), "None is no id of a node"),
        (("nodes", 0, "type", 5), "type of a node is 5"),
        (("nodes", 0, "mode", "off"), "mode of node 1 (LoadLongCat) is 'off'"),
        (("nodes", 0, "inputs", 3), "inputs of node 1 (LoadLongCat) is no list of objects"),
        (("nodes", 0, "widgets_values", "x"), "widgets_values of node 1 (LoadLongCat) is 'x'"),
        (("nodes", 0, "properties", "x"), "properties of node 1 (LoadLongCat) is no object"),
        (("nodes", 0, 7), "nodes is no list of objects"),
        (("links", 0, [1, 2]), "the link [1, 2] is no list of at least 4 entries"),
        (("links", 0, 2, "a"), "starts at slot 'a'"),
        (("links", {}), "links is no list"),
        (("definitions", []), None),
        (("definitions", {"subgraphs": [{}]}), "a subgraph has no id"),
        (("definitions", {"subgraphs": 5}), "definitions.subgraphs is no list of objects"),
        (("links", 0, 1, 77), "is linked to node 77, which does not exist"),
        (("links", 0, 0, 77), "has the link 1, which is not among the links"),
    ],
)
def test_damaged_file_is_named(change, message):
    sheet = plain()
    _set(sheet, *change)
    if message is None:
        assert converted(sheet.content) == converted(SAVED["plain"])
    else:
        assert message in refusal(sheet.content) and "saved.json" in refusal(sheet.content)


def test_circles_are_refused():
    sheet = plain()
    first = sheet.between(TRAINER, "model", "Reroute")
    second = sheet.between(TRAINER, "model", "Reroute")
    sheet.link(second, 0, first, "")
    assert "form a circle" in refusal(sheet.content)
    sheet = plain()
    sub, instance = into_subgraph(sheet, (OPTIONS, TRAINER))
    sub.add(sheet.node(instance)["type"], [])
    assert "contains itself" in refusal(sheet.content)


def test_bottomless_workflows_are_refused():
    sheet = plain()
    for _ in range(2000):
        new = sheet.add("Reroute", inputs=(("", "*"),), outputs=(("", "*"),))
        sheet.content["links"].append([10_000 + new, new - 1 if new > 12 else MODEL, 0, new, 0, "*"])
        sheet.node(new)["inputs"][0]["link"] = 10_000 + new
    sheet.link(new, 0, TRAINER, "model")
    assert "too deep" in refusal(sheet.content)
    levels = [{"id": f"level-{n}", "nodes": [{"id": k, "type": f"level-{n + 1}"} for k in (1, 2)]} for n in range(40)]
    content = {"nodes": [{"id": 1, "type": "level-0"}], "definitions": {"subgraphs": levels}}
    assert "more than 100,000 nodes" in refusal(content)


def test_workflow_without_running_nodes_is_refused():
    with pytest.raises(ConfigError, match="has no node that would run"):
        read_workflow({"nodes": [{"id": 1, "type": "Note"}], "links": []}, "saved.json", node_classes())


JUNK = (None, True, -1, 3, 10**30, 0.5, "", "x", "9", [], [1], [[1, 2, 3, 4, 5, "X"]], {}, {"id": 1}, {"a": [None]})


def _damage(content, source):
    """Changes one place of a JSON value, chosen by `source`."""
    places = []

    def walk(value):
        if isinstance(value, (dict, list)):
            for key in list(value) if isinstance(value, dict) else range(len(value)):
                places.append((value, key))
                walk(value[key])

    walk(content)
    holder, key = source.choice(places)
    if source.random() < 0.25:
        del holder[key]
    else:
        holder[key] = copy.deepcopy(source.choice(JUNK))


def test_only_our_errors_come_out_of_damaged_workflows():
    source = random.Random(7)
    names = sorted(SAVED)
    refused = 0
    for _ in range(250):
        content = copy.deepcopy(SAVED[source.choice(names)])
        if source.random() < 0.3:
            content = converted(content)
        for _ in range(source.randint(1, 3)):
            _damage(content, source)
        for use in (_export, _rehearse, _tiny):
            try:
                use(content)
            except ConfigError:
                refused += 1
    assert 60 < refused < 700


def _export(content):
    run_of_workflow(content, "damaged.json")


def _rehearse(content):
    graph = read_workflow(content, "damaged.json", node_classes())
    graph, _ = repaired(with_constants(graph, node_classes()), node_classes())
    find_faults(graph, node_classes())


def _tiny(content):
    graph = make_tiny(read_workflow(content, "damaged.json", node_classes()), quantised=False)
    find_faults(graph, node_classes())


def test_constants_take_the_place_of_links():
    graph = converted(SAVED["core_primitives"])
    (steps,) = (key for key, node in graph.items() if node["class_type"] == "PrimitiveInt")
    graph = apply_settings(graph, [f"{steps}.value=7"], node_classes())
    folded = with_constants(graph, node_classes())[str(TRAINER)]["inputs"]
    assert (folded["max_train_steps"], folded["run_name"]) == (7, "named")
    assert graph[str(TRAINER)]["inputs"]["max_train_steps"] == [steps, 0]
    graph[str(TRAINER)]["inputs"]["run_name"] = [steps, 0]
    kept = with_constants(graph, node_classes())
    assert kept[str(TRAINER)]["inputs"]["run_name"] == [steps, 0]
    assert any("input run_name is of type STRING" in fault for fault in find_faults(kept, node_classes()))
    assert make_tiny(converted(SAVED["core_primitives"]))[str(TRAINER)]["inputs"]["run_name"] == "named-tiny"


def test_value_of_a_primitive_lands_on_the_step_of_its_widget():
    specs = {
        name: signature_of(node_classes()[kind]).input(name)
        for kind, name in (("LongCatDataset", "num_frames"), ("TrainLoRA", "learning_rate"), ("TrainLoRA", "seed"))
    }
    frames, rate, seed = specs.values()
    assert [fitted(value, frames, [frames]) for value in (0, 1, 3, 90, 2000)] == [1, 1, 5, 89, 1001]
    assert fitted(1.26e-6, rate, [rate]) == 1.3e-6
    assert fitted(0, seed, [seed, frames]) == 1
    assert fitted("text", rate, [rate]) == "text"
    assert fitted(3, None, []) == 3


def test_set_keeps_the_value_of_a_bypassed_set():
    assert converted(SAVED["second_set_muted"])["4"]["inputs"] == {"first": [str(SET_A), 0]}
