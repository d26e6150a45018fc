"""Faults of a graph, all found before anything runs; and `--set`."""

import copy
import json

import pytest
from comfyui_longcat.nodes.graph.catalogue import longcat_image_edit_sample, longcat_image_edit_train
from comfyui_longcat.nodes.graph.check import check_shape, find_faults
from comfyui_longcat.nodes.graph.core_nodes import draw_missing_samples, node_classes
from comfyui_longcat.nodes.graph.description import to_api
from comfyui_longcat.nodes.graph.override import apply_settings
from comfyui_longcat.nodes.graph.runner import read_graph, run_graph
from comfyui_longcat.nodes.graph.ui import to_ui
from comfyui_longcat.nodes.host import use_host
from comfyui_longcat.nodes.terminal.host import TerminalHost
from comfyui_longcat.training.errors import ConfigError


@pytest.fixture
def host(tmp_path):
    terminal = TerminalHost(tmp_path)
    with use_host(terminal):
        yield terminal


@pytest.fixture
def sampling(host):
    graph = to_api(longcat_image_edit_sample(), node_classes())
    draw_missing_samples(graph, host.input_dir())
    return graph


@pytest.fixture
def training(host):
    return to_api(longcat_image_edit_train(), node_classes())


def _faults(graph):
    return find_faults(graph, node_classes())


def _only_fault(graph):
    (fault,) = _faults(graph)
    return fault


def _id_of(graph, class_type):
    return next(node_id for node_id, node in graph.items() if node["class_type"] == class_type)


def test_unknown_class_names_the_nearest(sampling):
    sampling[_id_of(sampling, "LoadImage")]["class_type"] = "LoadImages"
    assert "the nearest is 'LoadImage'" in _only_fault(sampling)


def test_missing_input_says_what_to_wire(sampling):
    node_id = _id_of(sampling, "EncodeEditPrompt")
    del sampling[node_id]["inputs"]["reference"]
    fault = _only_fault(sampling)
    assert f'node {node_id} "Instruction" (EncodeEditPrompt): input reference is missing' in fault
    assert "link a IMAGE to it (from LoadImage)" in fault


def test_unknown_input_names_the_nearest(sampling):
    sampling[_id_of(sampling, "LongCatSampleEdit")]["inputs"]["guidance"] = 4
    assert "the nearest is 'guidance_scale'" in _only_fault(sampling)


@pytest.mark.parametrize(
    ("class_type", "name", "value", "words"),
    [
        ("LongCatSampleEdit", "num_inference_steps", 0, "must lie between 1 and 1000"),
        ("LongCatSampleEdit", "num_inference_steps", 1001, "must lie between 1 and 1000"),
        ("LongCatSampleEdit", "num_inference_steps", 4.5, "must be a whole number"),
        ("LongCatSampleEdit", "guidance_scale", "much", "must be a number"),
        ("LongCatSampleEdit", "guidance_scale", float("nan"), "must be a number"),
        ("LongCatSampleEdit", "guidance_scale", True, "must be a number"),
        ("LoadLongCat", "model_flavour", "edti", "(the nearest is 'edit'); it must be one of final, dev, edit,"),
        ("EncodeEditPrompt", "prompt", ["a", "list"], "must be text"),
        ("EncodeEditPrompt", "model", "LongCat", "must be linked (LONGCAT_MODEL)"),
        ("LoadImage", "image", "gone.png", "there is no such picture"),
    ],
)
def test_wrong_values(sampling, class_type, name, value, words):
    sampling[_id_of(sampling, class_type)]["inputs"][name] = value
    fault = _only_fault(sampling)
    assert words in fault
    assert class_type in fault


@pytest.mark.parametrize(
    ("link", "words"),
    [
        (["99", 0], "node 99, which does not exist"),
        (["1", 7], "whose outputs are: 0 model"),
        (["1", 0], "sends LONGCAT"),
    ],
)
def test_wrong_links(sampling, link, words):
    sampling[_id_of(sampling, "EncodeEditPrompt")]["inputs"]["reference"] = link
    assert words in _only_fault(sampling)


def test_circle(sampling):
    lora = _id_of(sampling, "LongCatLoadLoRA")
    sampling[lora]["inputs"]["model"] = [lora, 0]
    assert "form a circle" in _only_fault(sampling)


def test_graph_without_result(sampling):
    del sampling[_id_of(sampling, "SaveImage")]
    assert "no node makes a result" in _only_fault(sampling)


def test_all_faults_at_once_and_nothing_runs(training, host):
    training[_id_of(training, "LoadLongCat")]["inputs"]["model_flavour"] = "video"
    training[_id_of(training, "TrainLoRA")]["inputs"]["lora_rank"] = 0
    del training[_id_of(training, "PairDatasets")]["inputs"]["targets"]
    with pytest.raises(ConfigError) as caught:
        run_graph(training, host, pytest.fail, lambda: False)
    assert all(words in str(caught.value) for words in ("model_flavour", "lora_rank", "targets"))
    assert not list(host.home.iterdir())


def test_large_seeds_keep_every_digit(sampling):
    seed = 2**53 - 1
    sampling[_id_of(sampling, "LongCatSampleEdit")]["inputs"]["seed"] = seed
    assert _faults(sampling) == []


@pytest.mark.parametrize("content", ["[]", "{}", "3", '{"1": {"inputs": {}}}', '{"1": {"class_type": "A"}}'])
def test_files_that_are_no_workflow(tmp_path, content):
    path = tmp_path / "workflow.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match="no workflow in API format"):
        read_graph(path)


def test_broken_and_absent_files(tmp_path):
    (tmp_path / "broken.json").write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match="no valid JSON"):
        read_graph(tmp_path / "broken.json")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_graph(tmp_path / "absent.json")


def test_ui_format_is_named(host):
    ui = to_ui(longcat_image_edit_sample(), node_classes())
    with pytest.raises(ConfigError, match="UI format"):
        check_shape(ui, "x.json")


def test_files_with_a_byte_order_mark(tmp_path, sampling):
    path = tmp_path / "windows.json"
    path.write_text(json.dumps(sampling), encoding="utf-8-sig")
    assert read_graph(path) == sampling


def test_settings_by_id_title_and_class(training):
    before = copy.deepcopy(training)
    settings = ["TrainLoRA.lora_rank=8", "Validation.validation_prompt=make it blue", "1.base_model_precision=bf16"]
    changed = apply_settings(training, settings, node_classes())
    assert changed[_id_of(training, "TrainLoRA")]["inputs"]["lora_rank"] == 8
    assert changed[_id_of(training, "LongCatValidation")]["inputs"]["validation_prompt"] == "make it blue"
    assert changed["1"]["inputs"]["base_model_precision"] == "bf16"
    assert training == before


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("TrainLora.lora_rank=8", "the nearest is 'TrainLoRA'"),
        ("TrainLoRA.rank=8", "the nearest is 'lora_rank'"),
        ("LongCatDataset.resolution=512", "2 nodes have this name"),
        ("TrainLoRA.cache=x", "is linked to node"),
        ("lora_rank=8", "not of the form NODE.input=value"),
        ("TrainLoRA.lora_rank", "not of the form NODE.input=value"),
    ],
)
def test_settings_that_fit_nothing(training, setting, words):
    with pytest.raises(ConfigError) as caught:
        apply_settings(training, [setting], node_classes())
    assert words in str(caught.value)
