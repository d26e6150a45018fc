"""Settings are refused outside their range, with field, value, bounds and remedy."""

import dataclasses
import importlib
import math
import pkgutil

import pytest
from comfyui_longcat.nodes import NODE_DISPLAY_NAME_MAPPINGS
from comfyui_longcat.training import settings
from comfyui_longcat.training.errors import ConfigError
from comfyui_longcat.training.paths import check_name
from comfyui_longcat.training.settings.dataset import ClipConfig, DatasetConfig
from comfyui_longcat.training.settings.geometry import parse_size
from comfyui_longcat.training.settings.model import ModelConfig
from comfyui_longcat.training.settings.option import Checked, option_of
from comfyui_longcat.training.settings.run import TrainConfig, TrainingOptions
from comfyui_longcat.training.settings.sampling import SampleConfig, TextToImageConfig, VideoSampleConfig
from comfyui_longcat.training.settings.validation import ValidationConfig

# What a choice needs beside it.
COMPANIONS = {"instanceprompt": {"instance_prompt": "a bird"}, "area": {"resolution": "0.5"}}

CONFIGS = [
    *(ModelConfig, ClipConfig, DatasetConfig, ValidationConfig, TrainingOptions, TrainConfig),
    *(SampleConfig, TextToImageConfig, VideoSampleConfig),
]


@pytest.mark.parametrize("config_class", CONFIGS)
def test_defaults_are_valid_and_every_bound_is_usable(config_class):
    assert issubclass(config_class, Checked)
    default = config_class()
    for field in dataclasses.fields(config_class):
        if "option" not in field.metadata:
            continue
        declared = option_of(config_class, field.name)
        assert declared.help
        if declared.choices:
            for choice in declared.choices:
                dataclasses.replace(default, **{field.name: choice}, **COMPANIONS.get(choice, {}))
        if declared.low is not None and config_class is not SampleConfig:
            for bound in (declared.low, declared.high):
                dataclasses.replace(default, **{field.name: type(field.default)(bound)})


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (
            lambda: ModelConfig(model_flavour="turbo"),
            r"is 'turbo'; it must be one of final, dev, edit, edit-turbo, tiny",
        ),
        (lambda: ModelConfig(base_model_precision="int4"), r"base_model_precision \(.*\) is 'int4'.*int8-quanto"),
        (lambda: ModelConfig(pretrained_model_name_or_path=3), r"is 3; it must be a text"),
        (lambda: DatasetConfig(resolution="32"), r"resolution \(.*\) is 32; it must lie between 64 and 4096"),
        (lambda: DatasetConfig(resolution="500"), r"500; it must be a multiple of 16. Use 496 or 512"),
        (lambda: DatasetConfig(resolution=768), r"768; it must be a text"),
        (
            lambda: DatasetConfig(aspect_bucket_alignment=32),
            r"aspect_bucket_alignment .* is 32; .* between 64 and 512",
        ),
        (lambda: DatasetConfig(aspect_bucket_alignment=16), r"aspect_bucket_alignment \(.*\) is 16"),
        (lambda: DatasetConfig(aspect_bucket_alignment=96), r"96; it must be a multiple of 64. Use 64 or 128"),
        (lambda: DatasetConfig(repeats=-1), r"repeats \(.*\) is -1"),
        (lambda: ValidationConfig(validation_resolution="770x768"), r"770; it must be a multiple of 16"),
        (
            lambda: ValidationConfig(validation_guidance=math.nan),
            r"validation_guidance .* is nan; it must be a number",
        ),
        (lambda: TrainingOptions(weight_decay=math.nan), r"weight_decay \(.*\) is nan; it must be a number"),
        (lambda: TrainingOptions(max_grad_norm=math.inf), r"max_grad_norm \(.*\) is inf; it must be a number"),
        (lambda: TrainingOptions(caption_dropout_probability=1.1), r"1.1; it must lie between 0.0 and 1.0"),
        (lambda: TrainingOptions(gradient_checkpointing="yes"), r"'yes'; it must be true or false"),
        (lambda: TrainConfig(learning_rate=math.nan), r"learning_rate \(.*\) is nan"),
        (lambda: TrainConfig(learning_rate=0.0), r"learning_rate \(.*\) is 0.0"),
        (lambda: TrainConfig(learning_rate="5e-5"), r"learning_rate \(.*\) is '5e-5'; it must be a number"),
        (lambda: TrainConfig(max_train_steps=0), r"max_train_steps \(.*\) is 0"),
        (lambda: TrainConfig(lora_rank=True), r"lora_rank \(.*\) is True; it must be a number"),
        (lambda: TrainConfig(lora_rank=None), r"lora_rank \(.*\) is None; it must be a number"),
        (lambda: TrainConfig(seed=2**53), r"seed \(.*\) is 9007199254740992; it must lie between 0"),
        (lambda: TrainConfig(run_name="a/b"), r"run_name \(.*\) is 'a/b'"),
        (
            lambda: SampleConfig(width=770, height=768),
            r"width .* is 770; it must be a multiple of 16. Use 768 or 784",
        ),
        (lambda: SampleConfig(width=768, height=0), r"768 and height 0; give both sides, or 0 for both"),
        (lambda: SampleConfig(guidance_scale=0.5), r"guidance_scale \(.*\) is 0.5"),
    ],
)
def test_refused_with_field_value_and_bounds(make, complaint):
    with pytest.raises(ConfigError, match=complaint):
        make()


def test_unknown_fields_are_refused():
    with pytest.raises(TypeError, match="lora_rnk"):
        TrainConfig(lora_rnk=4)
    with pytest.raises(KeyError, match="TrainConfig has no field lora_rnk"):
        option_of(TrainConfig, "lora_rnk")


@pytest.mark.parametrize(
    ("text", "size"), [("768x768", (768, 768)), (" 480 X 832 ", (480, 832)), ("16x4096", (16, 4096))]
)
def test_sizes_are_read(text, size):
    assert parse_size(text, "size") == size


@pytest.mark.parametrize(
    "text", ["", "768", "768x", "x768", "768x768x1", "-64x64", "0x0", "8x16", "4112x16", "1e3x64", "\u00b2x64"]
)
def test_other_texts_are_no_size(text):
    with pytest.raises(ConfigError, match="size is"):
        parse_size(text, "size")


@pytest.mark.parametrize("name", ["longcat-lora", "my run 2", "\u84dd\u8272", "v1.5", "con-trol", "COM", "x" * 100])
def test_names_of_files_on_every_system(name):
    check_name("run_name", name)


@pytest.mark.parametrize(
    "name",
    ["", " ", ".", "..", ".hidden", "a.", "a ", " a", "a/b", "a\\b", "C:", "a?", "a*", 'a"', "a|b", "<a>", "a\n", "a\0"]
    + ["CON", "con", "Nul.txt", "aux", "PRN", "com1", "LPT9.log", "x" * 101],
)
def test_names_that_some_system_refuses(name):
    with pytest.raises(ConfigError, match="Choose another name"):
        check_name("run_name", name)


def test_every_config_class_is_covered():
    for module in pkgutil.iter_modules(settings.__path__, f"{settings.__name__}."):
        importlib.import_module(module.name)
    waiting, declared = [Checked], set()
    while waiting:
        found = {each for each in waiting.pop().__subclasses__() if each.__module__.startswith(settings.__name__)}
        declared |= found
        waiting += found
    assert declared == {*CONFIGS, ClipConfig}


def test_messages_name_the_field_and_the_node_as_the_user_sees_them():
    assert {config.node for config in CONFIGS} - set(NODE_DISPLAY_NAME_MAPPINGS.values()) == {
        "Sample T2V or Sample I2V"
    }
    with pytest.raises(ConfigError, match=r"^lora_rank \(Train LoRA\) is 0; it must lie between 1 and 512\.$"):
        TrainConfig(lora_rank=0)
    with pytest.raises(ConfigError, match=r"^model_family \(Load LongCat\) is 'longcat'; .* longcat_video\.$"):
        ModelConfig(model_family="longcat")
