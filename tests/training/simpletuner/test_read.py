"""SimpleTuner's two files: comments, keys, translations, and what is refused."""

import dataclasses
import json
import subprocess
import sys

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
        ({"lora_rank": "4"}, "train", "lora_rank", 4),
        ({"learning_rate": "1e-4"}, "train", "learning_rate", 1e-4),
        ({"lora_alpha": "8"}, "options", "lora_alpha", 8.0),
        ({"seed": ""}, "train", "seed", TrainConfig.seed),
        ({"gradient_checkpointing": "false"}, "options", "gradient_checkpointing", False),
        ({"use_ema": "yes"}, "options", "use_ema", True),
        ({"use_ema": 1}, "options", "use_ema", True),
        ({"flow_schedule_auto_shift": "false"}, "options", "flow_schedule_shift", 3.0),
        ({"optimizer": "adamw-bf16"}, "options", "optimizer", "adamw"),
        ({"optimizer": "bnb-adamw8bit"}, "options", "optimizer", "adamw"),
        ({"lr_scheduler": "cosine_with_warmup"}, "options", "lr_scheduler", "cosine"),
        ({"musubi_blocks_to_swap": 4}, "model", "blocks_to_swap", 4),
        ({"ramtorch": "true"}, "model", "enable_group_offload", True),
        ({"model_flavour": None}, "model", "model_flavour", "final"),
        ({"output_dir": "runs/{env:LONGCAT_TEST_NAME}"}, "train", "run_name", "from-outside"),
        ({"grad_clip_method": "value", "_comment": ["mine"], "minimum_image_size": 64}, "train", "lora_rank", 16),
    ],
)
def test_translations(config, owner, field, value, tmp_path, monkeypatch):
    monkeypatch.setenv("LONGCAT_TEST_NAME", "from-outside")
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
        ({"lora_rank": 0}, "lora_rank .* is 0"),
        ({"lora_rank": "many"}, "lora_rank .* is 'many'; it must be a number"),
        ({"lora_rank": "8.5"}, "lora_rank .* is '8.5'; it must be a number"),
        ({"learning_rate": "nan"}, "learning_rate .* is nan; it must be a number"),
        ({"use_ema": "perhaps"}, "use_ema .* is 'perhaps'"),
        ({"seed": 1, "--seed": 2}, "nobody reads: '--seed'"),
        ({"model_flavour": "finale"}, "must be one of"),
        ({"weight_decay": 0.1, "adam_weight_decay": 0.2}, "same setting"),
        ({"num_train_epochs": 3}, "max_train_steps"),
        ({"eval_dataset_id": "c"}, "no such dataset"),
        ({"use_dora": 1}, "use_dora is 1"),
        ({"lora_type": "lycoris", "lycoris_config": "x.json"}, "Set lora_type to standard"),
        ({"data_backend_config": "{env:LONGCAT_NO_SUCH}"}, "LONGCAT_NO_SUCH is not set"),
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
        ({"conditioning_data": [{}]}, "one reference"),
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


def test_sub_folders_are_read_as_by_simpletuner():
    entry = {"id": "a", "instance_data_dir": "p"}
    for said, expected in (({}, True), ({"recursive": False}, False)):
        run = read_run({"model_flavour": "final"}, [entry | said])
        assert run.sets[0].targets.recursive is expected
        assert run.sets[0].targets.disable_multiline_split is False
    kept = read_run({"model_flavour": "final"}, [entry | {"disable_multiline_split": True}])
    assert kept.sets[0].targets.disable_multiline_split is True


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


def test_all_faults_of_both_files_and_the_flags_come_at_once(tmp_path):
    config = {"model_flavour": "final", "learning_rte": 1e-4, "optimizer": "sideways", "lora_rank": 0, "seed": -3}
    data = [
        {"id": "a", "instance_data_dir": "/a", "caption_strategy": "guesswork", "crop_styl": "center"},
        {"id": "b", "instance_data_dir": "/b", "conditioning_data": "c", "resolution_type": "miles"},
        {"instance_data_dir": "/d"},
    ]
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "multidatabackend.json").write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(ConfigError) as raised:
        read_files(tmp_path / "config.json", {"use_dora": True, "lora_rnk": "8"})
    words = (
        *("learning_rte", "sideways", "lora_rank (Train LoRA) is 0", "seed (Train LoRA) is -3", "use_dora"),
        "--lora_rnk (the nearest is 'lora_r",
        *("guesswork", "crop_styl", "has conditioning_data 'c'", "miles", "dataset 3 of the data file has id None"),
    )
    assert len(raised.value.faults) == len(words)
    assert all(any(word in fault for fault in raised.value.faults) for word in words)
    assert str(raised.value).startswith(f"{len(words)} faults:\n- ") and "TrainConfig" not in str(raised.value)


def test_what_does_not_fit_the_model_comes_at_once():
    config = {"max_train_steps": 5, "lr_warmup_steps": 5}
    with pytest.raises(ConfigError) as raised:
        check_trainable(read_run(config, [*PAIR, {"id": "c", "dataset_type": "video", "instance_data_dir": "/c"}]))
    steps, pair, video = raised.value.faults
    assert "lr_warmup_steps" in steps and "dataset 'c' has 'video'" in video
    assert "no model_flavour means" in pair and '"model_flavour": "edit"' in pair


def test_a_key_with_and_without_dashes_contradicts_itself(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"seed": 1, "--seed": 2}', encoding="utf-8")
    with pytest.raises(ConfigError, match="has both seed and --seed"):
        read_files(path, {}, needs_data=False)


def test_another_family_is_the_only_fault(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"flux_lora_target": "all", "model_family": "flux", "lora_rank": 0}), encoding="utf-8")
    with pytest.raises(ConfigError, match="^model_family is 'flux'; trained here are longcat_image and longcat_video"):
        read_files(path, {})


def test_placeholders_of_the_data_file(monkeypatch):
    monkeypatch.setenv("LONGCAT_TEST_DATA", "/data")
    entry = {"id": "a", "instance_data_dir": "{env:LONGCAT_TEST_DATA}/{id}", "cache_dir_vae": "{output_dir}/{x}/{id}"}
    text = {"id": "t", "dataset_type": "text_embeds", "cache_dir": "text/{model_family}"}
    run = read_run({"output_dir": "out", "model_family": "longcat_image"}, [entry, text])
    assert run.sets[0].targets.instance_data_dir == "/data/a"
    assert run.sets[0].cache_dir_vae == "out/{x}/a"
    assert run.cache_dir_text == "text/longcat_image"
    assert write_run(run) == (run.config, [entry, text]), "what was written stays written"
    with pytest.raises(ConfigError, match="dataset 'a' holds {output_dir}, but the key output_dir is not set"):
        read_run({}, [entry])


def test_values_of_the_data_file_may_be_texts():
    entry = {"id": "a", "instance_data_dir": "/a", "repeats": "2", "crop": "false", "resolution": "512"}
    (found,) = read_run({}, [entry, {"id": "b", "disabled": "true", "type": "huggingface"}]).sets
    assert (found.targets.repeats, found.targets.crop_aspect, found.targets.resolution) == (2, "preserve", "512")


EXAMPLES = {
    "an edit LoKr": (
        {
            "model_family": "longcat_image",
            "model_flavour": "edit",
            "model_type": "lora",
            "base_model_precision": "int8-torchao",
            "grad_clip_method": "value",
            "lora_type": "lycoris",
            "lycoris_config": "config/lycoris_config.json",
            "lora_alpha": 128,
            "lora_rank": 128,
            "optimizer": "adamw_bf16",
            "quantize_via": "cpu",
            "validation_guidance_rescale": 0.0,
            "num_eval_images": 25,
        },
        {"minimum_image_size": 128, "maximum_image_size": 128, "metadata_backend": "huggingface", "crop": False},
    ),
    "a text-to-image LoRA": (
        {
            "model_family": "longcat_image",
            "model_type": "lora",
            "attention_mechanism": "native-flash",
            "flow_schedule_shift": 0,
            "flow_schedule_auto_shift": True,
            "lora_type": "standard",
            "lr_scheduler": "constant_with_warmup",
            "mixed_precision": "bf16",
            "optimizer": "adamw_bf16",
            "validation_prompt_library": False,
        },
        {"resolution": 512, "resolution_type": "pixel", "target_downsample_size": 512, "crop": True},
    ),
    "a video LoRA": (
        {
            "model_family": "longcat_video",
            "model_flavour": "final",
            "model_type": "lora",
            "gradient_checkpointing": True,
            "offload_during_startup": True,
            "ramtorch": True,
            "ramtorch_target_modules": "blocks.*",
            "ramtorch_transformer_percent": 100,
            "resolution": 480,
            "validation_num_video_frames": 81,
            "vae_enable_tiling": True,
        },
        {"dataset_type": "video", "resolution": 480, "video": {"num_frames": 81, "max_frames": 200}},
    ),
}
"""Keys and values of the kinds that SimpleTuner's shipped examples for LongCat have."""


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_of_simpletuner_lack_only_what_is_not_there(name):
    config, entry = EXAMPLES[name]
    on_the_hub = {**entry, "id": "a", "type": "huggingface", "dataset_name": "x/y", "huggingface": {"caption": "c"}}
    with pytest.raises(ConfigError) as raised:
        read_run(config, [on_the_hub])
    assert len(raised.value.faults) == (2 if "lycoris" in config.values() else 1)
    assert "hub (x/y); data are read from local folders only. Download it" in raised.value.faults[-1]
    local = {**entry, "id": "a", "type": "local", "instance_data_dir": "/a"}
    references = {"id": "b", "instance_data_dir": "/b", "dataset_type": "conditioning"}
    edits = config.get("model_flavour") == "edit"
    data = [{**local, "conditioning_data": "b"}, references] if edits else [local]
    run = read_run({**config, "lora_type": "standard"}, data)
    check_trainable(run)
    assert write_run(run) == (run.config, list(run.datasets))


def test_a_misspelt_key_is_refused_without_torch(tmp_path):
    (tmp_path / "config.json").write_text('{"learning_rte": 1}', encoding="utf-8")
    script = (
        "import sys; from comfyui_longcat.nodes.terminal.cli import main;"
        "code = main(['train', '--config', 'config.json']); print(code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split() == ["1", "False"], done.stderr
    assert "learning_rte" in done.stderr
