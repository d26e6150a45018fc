"""The shipped workflows: complete, and true to the nodes and to the quickstart."""

import json

import pytest
from comfyui_longcat.nodes import NODES
from comfyui_longcat.nodes.graph.catalogue import WORKFLOWS
from comfyui_longcat.nodes.graph.check import find_faults
from comfyui_longcat.nodes.graph.core_nodes import CORE_NODES, draw_missing_samples, node_classes
from comfyui_longcat.nodes.graph.signature import is_link, signature_of, types_match
from comfyui_longcat.nodes.graph.tiny import PROMPTS, make_tiny
from comfyui_longcat.nodes.graph.ui import Box
from comfyui_longcat.nodes.host import use_host
from comfyui_longcat.nodes.terminal.host import TerminalHost
from comfyui_longcat.training.rehearsal import scale
from PIL import Image

tomllib = pytest.importorskip("tomllib", reason="tomllib came with Python 3.11")

NAMES = sorted(WORKFLOWS)

TWINS = {"video": "tiny-video", "edit": "tiny-edit", "t2i": "tiny"}
"""Twin by a part of a workflow's name."""


@pytest.fixture
def host(tmp_path):
    terminal = TerminalHost(tmp_path)
    with use_host(terminal):
        yield terminal


@pytest.fixture
def ui(repository, request):
    return json.loads((repository / "workflows" / f"{request.param}.json").read_text(encoding="utf-8"))


@pytest.fixture
def api(repository, request):
    return json.loads((repository / "workflows" / "api" / f"{request.param}.json").read_text(encoding="utf-8"))


every_ui = pytest.mark.parametrize("ui", NAMES, indirect=True)
every_api = pytest.mark.parametrize("api", NAMES, indirect=True)


@every_api
def test_api_graph_can_run(api, host):
    draw_missing_samples(api, host.input_dir())
    assert find_faults(api, node_classes()) == []


@every_api
def test_every_widget_has_a_value(api, host):
    for node in api.values():
        signature = signature_of(node_classes()[node["class_type"]])
        expected = [s.name for s in signature.inputs if s.is_widget or is_link(node["inputs"].get(s.name))]
        assert list(node["inputs"]) == expected


@every_ui
def test_links_join_equal_types(ui, host):
    nodes = {node["id"]: node for node in ui["nodes"]}
    assert [link[0] for link in ui["links"]] == list(range(1, ui["last_link_id"] + 1))
    for link_id, from_id, from_slot, to_id, to_slot, kind in ui["links"]:
        output, entry = nodes[from_id]["outputs"][from_slot], nodes[to_id]["inputs"][to_slot]
        assert link_id in output["links"]
        assert entry["link"] == link_id
        assert output["type"] == kind
        assert types_match(kind, entry["type"])
    used = [entry["link"] for node in ui["nodes"] for entry in node["inputs"] if entry["link"] is not None]
    assert sorted(used) == [link[0] for link in ui["links"]]


@every_ui
def test_ui_nodes_declare_what_their_classes_do(ui, host):
    for node in ui["nodes"]:
        signature = signature_of(node_classes()[node["type"]])
        assert [(i["name"], i["type"]) for i in node["inputs"]] == [(s.name, s.type) for s in signature.inputs]
        assert [(o["name"], o["type"]) for o in node["outputs"]] == [(s.name, s.type) for s in signature.outputs]
        assert ["widget" in entry for entry in node["inputs"]] == [spec.is_widget for spec in signature.inputs]
        assert node["properties"]["Node name for S&R"] == node["type"]


@pytest.mark.parametrize("name", NAMES)
def test_both_formats_hold_the_same_values(name, repository, host):
    folder = repository / "workflows"
    ui = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    api = json.loads((folder / "api" / f"{name}.json").read_text(encoding="utf-8"))
    links = {link[0]: [str(link[1]), link[2]] for link in ui["links"]}
    for node in ui["nodes"]:
        # Read as the frontend does: by position, with the widgets it adds itself left out.
        slots = signature_of(node_classes()[node["type"]]).widget_slots()
        assert len(slots) == len(node["widgets_values"])
        seen = {key: value for (key, _), value in zip(slots, node["widgets_values"], strict=True) if key}
        seen |= {entry["name"]: links[entry["link"]] for entry in node["inputs"] if entry["link"] is not None}
        assert seen == api[str(node["id"])]["inputs"]
        assert node["title"] == api[str(node["id"])]["_meta"]["title"]


@every_ui
def test_nothing_overlaps(ui):
    # The title bar is drawn above a node's position.
    title = 30
    boxes = [Box(n["pos"][0], n["pos"][1] - title, n["size"][0], n["size"][1] + title) for n in ui["nodes"]]
    frames = [Box(*group["bounding"]) for group in ui["groups"]]
    for shapes in (boxes, frames):
        for number, shape in enumerate(shapes):
            assert not any(shape.overlaps(other) for other in shapes[:number])
    assert all(sum(frame.overlaps(box) for frame in frames) == 1 for box in boxes)


@every_ui
def test_links_run_from_earlier_to_later_nodes(ui):
    order = {node["id"]: node["order"] for node in ui["nodes"]}
    assert all(order[link[1]] < order[link[3]] for link in ui["links"])


def test_every_own_node_is_shown_in_a_workflow(repository):
    shown = {
        node["type"]
        for name in NAMES
        for node in json.loads((repository / "workflows" / f"{name}.json").read_text(encoding="utf-8"))["nodes"]
    }
    assert shown <= set(node_classes())
    assert set(node_classes()) - set(CORE_NODES) == shown - set(CORE_NODES)


def _only(api, class_type, **values):
    found = [
        n["inputs"] for n in api.values() if n["class_type"] == class_type and values.items() <= n["inputs"].items()
    ]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("api", ["longcat_image_edit_train"], indirect=True)
def test_training_has_the_quickstarts_values(api):
    model = _only(api, "LoadLongCat")
    assert (model["model_family"], model["model_flavour"]) == ("longcat_image", "edit")
    assert model["base_model_precision"] == "int8-quanto"
    training = _only(api, "TrainLoRA")
    assert training["learning_rate"] == 5e-5
    assert training["train_batch_size"] == 1
    assert _only(api, "LongCatTrainingOptions")["gradient_checkpointing"] is True
    validation = _only(api, "LongCatValidation")
    assert validation["validation_guidance"] == 4.5
    assert validation["validation_num_inference_steps"] == 40
    assert validation["validation_resolution"] == "768x768"
    targets = _only(api, "LongCatDataset", id="edit-images")
    assert (targets["caption_strategy"], targets["resolution"]) == ("textfile", "768")
    references = _only(api, "LongCatDataset", id="ref-images")
    assert (references["caption_strategy"], references["resolution"]) == ("none", "768")
    assert targets["aspect_bucket_alignment"] == references["aspect_bucket_alignment"] == 64
    caches = _only(api, "CacheVAELatents")
    assert caches["cache_dir_vae"] != caches["reference_cache_dir_vae"]


@pytest.mark.parametrize("api", ["longcat_image_edit_sample"], indirect=True)
def test_sampling_has_the_quickstarts_values(api):
    sampling = _only(api, "LongCatSampleEdit")
    assert (sampling["num_inference_steps"], sampling["guidance_scale"]) == (40, 4.5)
    assert _only(api, "EncodeEditPrompt")["negative_prompt"] == ""


@pytest.mark.parametrize("api", ["longcat_video_i2v_sample", "longcat_video_t2v_sample"], indirect=True)
def test_video_sampling_has_the_quickstarts_values(api):
    model = _only(api, "LoadLongCat")
    assert (model["model_family"], model["model_flavour"]) == ("longcat_video", "final")
    (sampling,) = (n["inputs"] for n in api.values() if n["class_type"] in ("SampleI2V", "LongCatSampleT2V"))
    assert (sampling["num_inference_steps"], sampling["guidance_scale"], sampling["num_frames"]) == (40, 4.0, 93)
    assert (sampling["width"], sampling["height"], sampling["distilled"]) == (832, 480, False)
    assert is_link(_only(api, "CreateVideo")["fps"])


@pytest.mark.parametrize("api", ["longcat_video_i2v_train"], indirect=True)
def test_video_training_has_the_quickstarts_values(api):
    model = _only(api, "LoadLongCat")
    assert (model["model_family"], model["model_flavour"]) == ("longcat_video", "final")
    training = _only(api, "TrainLoRA")
    assert (training["lora_rank"], training["learning_rate"], training["train_batch_size"]) == (8, 1e-4, 1)
    assert _only(api, "LongCatTrainingOptions")["gradient_checkpointing"] is True
    validation = _only(api, "LongCatValidation")
    assert (validation["validation_resolution"], validation["validation_num_video_frames"]) == ("480x832", 93)
    assert (validation["validation_num_inference_steps"], validation["validation_guidance"]) == (40, 4.0)
    assert is_link(validation["cache"]), "the evaluation dataset"
    for name in ("train", "val"):
        clips = _only(api, "LongCatDataset", id=f"longcat-video-{name}")
        assert (clips["dataset_type"], clips["is_i2v"], clips["caption_strategy"]) == ("video", True, "textfile")
        assert (clips["resolution"], clips["num_frames"], clips["aspect_bucket_alignment"]) == ("480", 93, 64)
    starts = _only(api, "LongCatDataset", id="longcat-video-cond")
    assert (starts["dataset_type"], starts["caption_strategy"]) == ("conditioning", "none")


@pytest.mark.parametrize("api", ["longcat_video_t2v_train"], indirect=True)
def test_text_to_video_training_has_no_start_frames(api):
    clips = _only(api, "LongCatDataset")
    assert (clips["dataset_type"], clips["is_i2v"], clips["num_frames"]) == ("video", False, 93)
    assert not [node for node in api.values() if node["class_type"] == "PairDatasets"]
    assert _only(api, "LongCatValidation")["validation_resolution"] == "832x480"


def test_pack_is_named_as_in_pyproject(repository):
    from comfyui_longcat.nodes.graph.ui import PACK

    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {"cnr_id": project["name"], "ver": project["version"]} == PACK


@pytest.mark.parametrize("name", NAMES)
def test_tiny_is_the_same_in_both_formats(name, repository, host):
    folder = repository / "workflows"
    ui = make_tiny(json.loads((folder / f"{name}.json").read_text(encoding="utf-8")), quantised=False)
    api = make_tiny(json.loads((folder / "api" / f"{name}.json").read_text(encoding="utf-8")), quantised=False)
    for node in ui["nodes"]:
        slots = signature_of(node_classes()[node["type"]]).widget_slots()
        shown = {key: value for (key, _), value in zip(slots, node["widgets_values"], strict=True) if key}
        linked = {key for key, value in api[str(node["id"])]["inputs"].items() if is_link(value)}
        shown = {key: value for key, value in shown.items() if key not in linked}
        assert shown == {k: v for k, v in api[str(node["id"])]["inputs"].items() if k not in linked}
    model = _only(api, "LoadLongCat")
    twin = next(twin for part, twin in TWINS.items() if part in name)
    assert (model["model_flavour"], model["base_model_precision"]) == (twin, "bf16")


@every_api
def test_tiny_graph_can_run(api, host):
    tiny = make_tiny(api)
    draw_missing_samples(tiny, host.input_dir())
    assert find_faults(tiny, node_classes()) == []
    assert tiny != api


def test_tiny_only_brings_numbers_down(host):
    graph = {
        "a": {
            "class_type": "TrainLoRA",
            "inputs": {"max_train_steps": 3, "run_name": "mine", "learning_rate": 0.1, "cache": ["b", 0]},
        }
    }
    tiny = make_tiny(graph)["a"]["inputs"]
    assert tiny == {"max_train_steps": 3, "run_name": "mine-tiny", "learning_rate": 0.1, "cache": ["b", 0]}
    assert make_tiny(make_tiny(graph)) == make_tiny(graph)
    assert graph["a"]["inputs"]["run_name"] == "mine"


def test_what_tiny_changes_are_inputs_of_nodes(host):
    inputs = {spec.name for node in NODES.values() for spec in signature_of(node).inputs}
    assert {
        *scale.AT_MOST,
        *scale.EXACTLY,
        *scale.PRECISIONS,
        *scale.PROMPTS,
        *PROMPTS,
        "run_name",
        "lora_name",
    } <= inputs


def test_tiny_keeps_int8_only_where_it_can_be(host):
    graph = {"a": {"class_type": "LoadLongCat", "inputs": {"base_model_precision": "int8-quanto"}}}
    kept, dropped = (make_tiny(graph, quantised=q)["a"]["inputs"]["base_model_precision"] for q in (True, False))
    assert (kept, dropped) == ("int8-quanto", "bf16")


@pytest.mark.parametrize("name", NAMES)
def test_every_template_has_a_small_picture(name, repository):
    path = repository / "workflows" / f"{name}.jpg"
    with Image.open(path) as picture:
        assert picture.format == "JPEG" and 300 <= picture.width <= 500 and 80 <= picture.height <= 500
    assert path.stat().st_size < 40_000
