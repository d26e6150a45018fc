"""What the nodes declare: complete, JSON, safe in the browser, and the same as the options in training/config.py."""

import dataclasses
import inspect
import json

import pytest
from comfyui_longcat.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from comfyui_longcat.nodes.types import widget
from comfyui_longcat.training.errors import ConfigError
from comfyui_longcat.training.settings.dataset import DatasetConfig
from comfyui_longcat.training.settings.model import ModelConfig
from comfyui_longcat.training.settings.option import option_of
from comfyui_longcat.training.settings.run import TrainConfig, TrainingOptions
from comfyui_longcat.training.settings.sampling import SampleConfig, TextToImageConfig, VideoSampleConfig
from comfyui_longcat.training.settings.validation import ValidationConfig

CONFIGS = {
    "LoadLongCat": ModelConfig,
    "LongCatDataset": DatasetConfig,
    "LongCatValidation": ValidationConfig,
    "LongCatTrainingOptions": TrainingOptions,
    "TrainLoRA": TrainConfig,
    "EncodeEditPrompt": SampleConfig,
    "LongCatSampleEdit": SampleConfig,
    "LongCatSampleT2I": TextToImageConfig,
    "LongCatSampleT2V": VideoSampleConfig,
    "SampleI2V": VideoSampleConfig,
}

IDS = {
    "LoadLongCat",
    "LongCatLoadLoRA",
    "LongCatConvertLoRA",
    "LongCatDataset",
    "PairDatasets",
    "LongCatJoinDatasets",
    "CacheVAELatents",
    "LongCatCacheText",
    "LongCatValidation",
    "LongCatTrainingOptions",
    "TrainLoRA",
    "EncodeEditPrompt",
    "LongCatEncodePrompt",
    "LongCatSampleEdit",
    "LongCatSampleT2I",
    "LongCatSampleT2V",
    "SampleI2V",
}


def inputs_of(node: type) -> dict[str, tuple]:
    declared = node.INPUT_TYPES()
    return {**declared["required"], **declared.get("optional", {})}


def test_ids_stay_what_saved_workflows_hold() -> None:
    assert set(NODE_CLASS_MAPPINGS) == IDS
    assert set(NODE_DISPLAY_NAME_MAPPINGS) == IDS


@pytest.mark.parametrize("node_id", sorted(IDS))
def test_every_input_and_output_is_explained(node_id: str) -> None:
    node = NODE_CLASS_MAPPINGS[node_id]
    assert node.DESCRIPTION
    assert node.CATEGORY.startswith("LongCat/")
    assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES) == len(node.OUTPUT_TOOLTIPS)
    assert all(node.OUTPUT_TOOLTIPS)
    for name, (_, settings) in inputs_of(node).items():
        assert settings["tooltip"], name


@pytest.mark.parametrize("node_id", sorted(IDS))
def test_a_function_names_no_setting_and_every_other_input(node_id: str) -> None:
    node = NODE_CLASS_MAPPINGS[node_id]
    declared = node.INPUT_TYPES()
    options = {field.name for field in dataclasses.fields(CONFIGS[node_id])} if node_id in CONFIGS else set()
    parameters = dict(inspect.signature(getattr(node, node.FUNCTION)).parameters)
    takes_settings = parameters.pop("settings", None) is not None
    sockets = {name for name, (kind, _) in inputs_of(node).items() if isinstance(kind, str) and kind.isupper()}
    others = (set(inputs_of(node)) - options) | (sockets & {"options", "validation"})
    assert takes_settings == (node_id in CONFIGS)
    assert set(parameters) == {"self"} | others | set(declared.get("hidden", {}))
    for name in others & set(declared.get("optional", {})) | set(declared.get("hidden", {})):
        assert parameters[name].default is not inspect.Parameter.empty, f"{name} may be left out by ComfyUI"


def test_unknown_and_missing_settings_are_refused_by_name() -> None:
    widgets = NODE_CLASS_MAPPINGS["LongCatValidation"].INPUT_TYPES()["required"]
    settings = {name: entry[1]["default"] for name, entry in widgets.items()}
    plan = NODE_CLASS_MAPPINGS["LongCatValidation"]().plan
    assert plan(**settings)[0].config == ValidationConfig()
    with pytest.raises(ConfigError, match="LongCat Validation has no input validation_step; its settings are"):
        plan(**settings, validation_step=3)
    del settings["num_samples"], settings["validation_seed"]
    with pytest.raises(ConfigError, match="LongCat Validation was given no validation_seed, num_samples"):
        plan(**settings)


@pytest.mark.parametrize("node_id", sorted(IDS))
def test_widgets_are_safe_in_the_browser(node_id: str) -> None:
    for name, (kind, settings) in inputs_of(NODE_CLASS_MAPPINGS[node_id]).items():
        json.dumps(settings, allow_nan=False)
        if kind in ("INT", "FLOAT"):
            assert settings["min"] <= settings["default"] <= settings["max"], name
            assert settings["step"] > 0, name
        if kind == "FLOAT" and 0 < abs(settings["default"]) < 1:
            assert settings["step"] <= settings["default"], f"the browser would show {name} as 0"
        if kind == "STRING":
            assert settings["dynamicPrompts"] is False, name
        if isinstance(kind, list):
            assert settings["default"] in kind, name
        if kind == "INT" and name.endswith("seed"):
            assert settings["control_after_generate"] is False, f"{name} would change by itself"


@pytest.mark.parametrize("node_id", sorted(CONFIGS.keys() - {"EncodeEditPrompt"}))
def test_defaults_and_ranges_come_from_the_options(node_id: str) -> None:
    config, inputs = CONFIGS[node_id], inputs_of(NODE_CLASS_MAPPINGS[node_id])
    options = {
        field.name for field in dataclasses.fields(config) if "option" in field.metadata and field.name in inputs
    }
    assert len(options) >= 5
    for name in options:
        kind, settings = inputs[name]
        declared = option_of(config, name)
        assert settings["default"] == getattr(config, name)
        if declared.choices:
            assert kind == list(declared.choices)
        if declared.high is not None:
            assert (settings["min"], settings["max"]) == (declared.low, declared.high)


@pytest.mark.parametrize("node_id", ["LongCatValidation", "LongCatTrainingOptions"])
def test_settings_nodes_offer_every_option(node_id: str) -> None:
    names = {field.name for field in dataclasses.fields(CONFIGS[node_id]) if "option" in field.metadata}
    assert names == set(NODE_CLASS_MAPPINGS[node_id].INPUT_TYPES()["required"])


def test_widget_of_an_unknown_field_is_refused() -> None:
    with pytest.raises(KeyError, match="no field learning_rat"):
        widget(TrainConfig, "learning_rat")


def test_only_nodes_that_write_or_report_to_the_user_may_end_a_graph() -> None:
    ends = {name for name, node in NODE_CLASS_MAPPINGS.items() if getattr(node, "OUTPUT_NODE", False)}
    assert ends == {"TrainLoRA", "LongCatConvertLoRA", "PairDatasets", "LongCatJoinDatasets"}


@pytest.mark.parametrize(
    ("node_id", "change", "words"),
    [
        ("LongCatSampleEdit", {"width": 64}, "64 and height 0"),
        ("EncodeEditPrompt", {"width": 70, "height": 64}, "multiple of 16"),
        ("LongCatSampleT2I", {"width": 1000}, "multiple of 16"),
        ("LongCatSampleT2V", {"num_frames": 92}, "89 or 93"),
        ("SampleI2V", {"width": 830}, "multiple of 16"),
        ("LongCatDataset", {"resolution": "770"}, "multiple of 16"),
        ("LongCatValidation", {"validation_resolution": "768"}, "WIDTHxHEIGHT"),
        ("TrainLoRA", {"run_name": "a/b"}, "file name"),
    ],
)
def test_wrong_settings_are_refused_before_anything_runs(node_id, change, words):
    node = NODE_CLASS_MAPPINGS[node_id]
    inputs = node.INPUT_TYPES()
    widgets = {**inputs["required"], **inputs.get("optional", {})}
    named = inspect.signature(node.VALIDATE_INPUTS).parameters
    defaults = {name: widgets[name][1]["default"] for name in named}
    assert node.VALIDATE_INPUTS(**defaults) is True
    assert words in node.VALIDATE_INPUTS(**defaults | change)
    # Wired, so not known before it runs.
    assert node.VALIDATE_INPUTS(**defaults | dict.fromkeys(change)) is True
