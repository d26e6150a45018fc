"""SimpleTuner's two files: comments, keys, translations, and what is refused."""

import dataclasses
import json

import pytest
from comfyui_longcat.training.errors import ConfigError
from comfyui_longcat.training.files import parse_json, strip_comments
from comfyui_longcat.training.settings.dataset import DatasetConfig
from comfyui_longcat.training.settings.model import ModelConfig
from comfyui_longcat.training.settings.run import TrainConfig, TrainingOptions
from comfyui_longcat.training.settings.validation import ValidationConfig
from comfyui_longcat.training.simpletuner.keys import CONFIG_KEYS, DATA_KEYS
from comfyui_longcat.training.simpletuner.read import check_trainable, read_files, read_run
from comfyui_longcat.training.simpletuner.write import write_run

PAIR = [
    {"id": "a", "instance_data_dir": "/a", "conditioning_data": "b"},
    {"id": "b", "instance_data_dir": "/b"},
]


def test_comments_and_trailing_commas():
    text = """{
 "url": "http://x/*y*/", // a "quoted" comment, with }
 "n": [1, 2,/* , */], /* one */ "m": 1 /* two
lines */, "q": "\\"//",
}"""
    assert parse_json(text, "x", ConfigError, "", comments=True) == {
        "url": "http://x/*y*/",
        "n": [1, 2],
        "m": 1,
        "q": '"//',
    }
    assert len(strip_comments(text)) == len(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1,\n "a": 2}', "'a' occurs twice|a occurs twice"),
        ('{"a": NaN}', "NaN"),
        ('{// only\n "a" 1}', "line 2"),
        ('{"a": 1} /* open', "line 1"),
        ('{"a": "x // y}', "line 1"),
    ],
)
def test_texts_that_are_no_json(text, words):
    with pytest.raises(ConfigError, match=words):
        parse_json(text, "config.json", ConfigError, "", comments=True)


def test_every_field_is_a_key():
    for kind in (ModelConfig, TrainConfig, TrainingOptions, ValidationConfig):
        names = {field.name for field in dataclasses.fields(kind) if "option" in field.metadata}
        assert names <= set(CONFIG_KEYS)
    assert {field.name for field in dataclasses.fields(DatasetConfig)} <= set(DATA_KEYS)
    for keys in (CONFIG_KEYS, DATA_KEYS):
        assert all(key.meaning for key in keys.values())


def test_keys_that_guides_and_peers_use_are_known():
    named = """model_type model_family model_flavour pretrained_model_name_or_path base_model_precision train_batch_size
        gradient_checkpointing lora_rank learning_rate validation_resolution validation_guidance
        validation_num_inference_steps validation_num_video_frames validation_using_datasets eval_dataset_id
        aspect_bucket_alignment data_backend_config output_dir enable_group_offload group_offload_type
        group_offload_blocks_per_group seed max_train_steps lora_alpha lr_scheduler lr_warmup_steps optimizer
        caption_dropout_probability checkpoint_step_interval checkpoints_total_limit validation_steps
        validation_prompt validation_negative_prompt flow_schedule_shift flow_schedule_auto_shift max_grad_norm
        gradient_accumulation_steps use_ema mixed_precision"""
    of_data = """id type dataset_type is_i2v instance_data_dir caption_strategy resolution resolution_type cache_dir_vae
        conditioning_data repeats crop crop_style crop_aspect video"""
    assert set(named.split()) <= set(CONFIG_KEYS)
    assert set(of_data.split()) <= set(DATA_KEYS)


@pytest.mark.parametrize(
    ("config", "owner", "field", "value"),
    [
        ({"base_model_precision": "no_change"}, "model", "base_model_precision", "bf16"),
        ({"mixed_precision": "no"}, "model", "base_model_precision", "fp32"),
        ({"pretrained_model_name_or_path": None}, "model", "pretrained_model_name_or_path", "auto"),
        ({"flow_schedule_auto_shift": True}, "options", "flow_schedule_shift", TrainingOptions.flow_schedule_shift),
        ({"flow_schedule_auto_shift": False}, "options", "flow_schedule_shift", 3.0),
        ({"flow_schedule_auto_shift": False, "flow_schedule_shift": 0}, "options", "flow_schedule_shift", 1.0),
        ({"flow_schedule_auto_shift": True, "flow_schedule_shift": 2}, "options", "flow_schedule_shift", 2.0),
        ({"lora_alpha": None}, "options", "lora_alpha", 0.0),
        ({"lora_alpha": 8}, "options", "lora_alpha", 8.0),
        ({"optimizer": "adamw_bf16"}, "options", "optimizer", "adamw"),
        ({"output_dir": "runs/mine"}, "train", "run_name", "mine"),
        ({"output_dir": "runs/mine", "run_name": "other"}, "train", "run_name", "other"),
        ({"adam_weight_decay": 0.5}, "options", "weight_decay", 0.5),
        ({"--lora_rank": 4}, "train", "lora_rank", 4),
    ],
)
def test_translations(config, owner, field, value, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config), encoding="utf-8-sig")
    run = read_files(path, {}, needs_data=False)
    part = {"model": run.model, "train": run.train, "options": run.train.options}[owner]
    assert getattr(part, field) == value
    assert type(getattr(part, field)) is type(value)
    config, datasets = write_run(run)
    assert read_run(config, datasets).settings == run.settings


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"learning_rat": 1}, "nearest is 'learning_rate'"),
        ({"mixed_precision": "fp16"}, "fp16 is not supported"),
        ({"mixed_precision": "no", "base_model_precision": "int8-quanto"}, "exclude each other"),
        ({"model_type": "full"}, "full fine-tuning"),
        ({"lora_rank": 0}, "lora_rank is 0"),
        ({"lora_rank": "8"}, "must be a number"),
        ({"model_flavour": "finale"}, "must be one of"),
        ({"weight_decay": 0.1, "adam_weight_decay": 0.2}, "same setting"),
        ({"num_train_epochs": 3}, "max_train_steps"),
        ({"eval_dataset_id": "c"}, "no such dataset"),
        ({"use_dora": 0}, "use_dora is 0"),
        ({"output_dir": "runs/.."}, "run_name"),
    ],
)
def test_refused_configurations(config, words):
    with pytest.raises(ConfigError, match=words):
        read_run(config, PAIR)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"captoin_strategy": "textfile"}, "nearest is 'caption_strategy'"),
        ({"conditioning_data": ["c"]}, "no other dataset"),
        ({"conditioning_data": ["a"]}, "no other dataset"),
        ({"conditioning_data": ["b", "b"]}, "one reference"),
        ({"conditioning_data": None}, "no dataset names it"),
        ({"id": "b"}, "Two datasets"),
        ({"id": None}, "a name of its own"),
        ({"instance_data_dir": ""}, "no instance_data_dir"),
        ({"type": "aws"}, "local folders"),
        ({"cache_dir_vae": "/same"}, "one cache_dir_vae"),
        ({"resolution": 0}, "resolution"),
    ],
)
def test_refused_datasets(entry, words):
    second = PAIR[1] | {"dataset_type": "conditioning", "cache_dir_vae": "/same"}
    with pytest.raises(ConfigError, match=words):
        read_run({}, [PAIR[0] | entry, second])


def test_command_line_goes_before_the_data_file_before_the_config(tmp_path):
    (tmp_path / "config.json").write_text('{"resolution": 512, "repeats": 3, "crop": false}', encoding="utf-8")
    data = [PAIR[0] | {"resolution": 768}, PAIR[1], {"id": "t", "dataset_type": "text_embeds", "cache_dir": "txt"}]
    (tmp_path / "multidatabackend.json").write_text(json.dumps(data), encoding="utf-8")
    (each,) = read_files(tmp_path / "config.json", {}).sets
    assert (each.targets.resolution, each.references.resolution) == ("768", "512")
    assert each.targets.repeats == 3
    run = read_files(tmp_path / "config.json", {"resolution": [256, "320x256"]})
    assert run.sets[0].targets.resolution == run.sets[0].references.resolution == "256,320x256"
    assert run.cache_dir_text == "txt"


def test_evaluation_set_is_not_trained_on():
    held_out = [PAIR[0] | {"id": "c", "conditioning_data": ["d"]}, PAIR[1] | {"id": "d"}]
    run = read_run({"eval_dataset_id": "c"}, [*PAIR, *held_out])
    assert [each.targets.id for each in run.sets] == ["a"]
    assert [(each.targets.id, each.references.id) for each in run.eval_sets] == [("c", "d")]
    config, datasets = write_run(dataclasses.replace(run, config={}, datasets=()))
    assert config["eval_dataset_id"] == "c"
    assert read_run(config, datasets).settings == run.settings


def test_notes_name_what_has_no_effect():
    run = read_run({"report_to": "wandb"}, [*PAIR, {"id": "x", "instance_data_dir": "/x", "disabled": True}])
    assert any(note.startswith("report_to:") for note in run.notes)
    assert any("disabled" in note for note in run.notes)


@pytest.mark.parametrize(
    ("config", "datasets", "words"),
    [
        ({"model_flavour": "edit"}, [{"id": "a", "instance_data_dir": "/a"}], "has no conditioning_data"),
        ({"model_flavour": "dev"}, PAIR, "draws from text alone"),
        ({"model_flavour": "edit-turbo"}, PAIR, "cannot be trained on"),
        ({"model_flavour": "edit"}, [], "no dataset"),
        ({"model_flavour": "edit", "max_train_steps": 10, "lr_warmup_steps": 10}, PAIR, "warm-up"),
    ],
)
def test_combinations_that_cannot_be_trained(config, datasets, words):
    with pytest.raises(ConfigError, match=words):
        check_trainable(read_run(config, datasets))
