"""Settings made small: only what a twin cannot do is changed."""

import dataclasses

from comfyui_longcat.training.rehearsal import scale
from comfyui_longcat.training.settings.dataset import DatasetConfig
from comfyui_longcat.training.settings.model import ModelConfig
from comfyui_longcat.training.settings.run import TrainConfig, TrainingOptions
from comfyui_longcat.training.settings.sampling import SampleConfig, TextToImageConfig, VideoSampleConfig
from comfyui_longcat.training.settings.validation import ValidationConfig

CONFIGS = (
    *(ModelConfig, DatasetConfig, TrainConfig, TrainingOptions, ValidationConfig),
    *(SampleConfig, TextToImageConfig, VideoSampleConfig),
)


def test_tables_name_fields_that_exist():
    known = {field.name for config in CONFIGS for field in dataclasses.fields(config)}
    assert {*scale.AT_MOST, *scale.EXACTLY, *scale.PROMPTS, *scale.PRECISIONS} <= known


def test_a_run_is_small_with_everything_inside_it():
    real = TrainConfig(
        run_name="mine",
        max_train_steps=500,
        lora_rank=8,
        options=TrainingOptions(lora_target="official", lr_warmup_steps=100),
        validation=ValidationConfig(validation_prompt="x" * 500 + "\nshort"),
    )
    small = scale.small(real)
    assert (small.run_name, small.max_train_steps, small.lora_rank) == ("mine-tiny", 8, 8)
    assert (small.options.lora_target, small.options.lr_warmup_steps) == ("official", 2)
    assert small.validation.validation_prompt == "x" * scale.LONGEST_PROMPT + "\nshort"
    assert small.validation.validation_resolution == "64x64"
    assert scale.small(small) == small
    assert scale.small(TrainConfig()).validation is None


def test_the_twin_of_a_flavour_does_the_same_work():
    twins = {"edit": "tiny-edit", "edit-turbo": "tiny-edit", "final": "tiny", "tiny-edit": "tiny-edit"}
    for flavour, twin in twins.items():
        assert scale.small(ModelConfig(model_flavour=flavour)).model_flavour == twin
    assert scale.small(ModelConfig(model_family="longcat_video", model_flavour="final")).model_flavour == "tiny-video"


def test_quantised_precisions_stay_where_they_can_be_had():
    values = {"base_model_precision": "int8-quanto", "text_encoder_1_precision": "no_change"}
    assert scale.small_values(values, quantised=True) == values
    assert scale.small_values(values, quantised=False) == values | {"base_model_precision": "bf16"}
    assert scale.small_values({"base_model_precision": "fp32"}, quantised=False) == {"base_model_precision": "fp32"}
