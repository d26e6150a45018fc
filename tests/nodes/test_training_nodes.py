"""The nodes from folders to a LoRA, on the tiny twin, and everything that they refuse before a model is loaded."""

import math
import os
from pathlib import Path

import pytest
import torch
from comfyui_longcat.nodes.data import CacheVAELatents, LongCatCacheText, LongCatDataset, PairDatasets
from comfyui_longcat.nodes.load import LoadLongCat
from comfyui_longcat.nodes.lora import LongCatLoadLoRA
from comfyui_longcat.nodes.train import LongCatTrainingOptions, LongCatValidation, TrainLoRA
from comfyui_longcat.training.errors import ConfigError, LoraFileError, ModelError, PathError, StoppedByUserError
from comfyui_longcat.training.events import RunStarted, StepReport

RUN = {
    "max_train_steps": 4,
    "learning_rate": 1e-3,
    "lora_rank": 2,
    "train_batch_size": 1,
    "seed": 3,
}


def dataset(folder: str, kind: str = "image"):
    captions = "textfile" if kind == "image" else "none"
    return LongCatDataset().describe(
        instance_data_dir=folder, id=kind, dataset_type=kind, caption_strategy=captions, resolution="64"
    )[0]


@pytest.fixture(scope="module")
def model(module_host):
    return LoadLongCat().load(
        model_family="longcat_image",
        model_flavour="tiny-edit",
        pretrained_model_name_or_path="auto",
        base_model_precision="fp32",
    )[0]


@pytest.fixture(scope="module")
def pairs(module_host):
    targets = dataset("longcat-example/targets")
    references = dataset("longcat-example/references", "conditioning")
    return PairDatasets().pair(targets, references)["result"]


@pytest.fixture(scope="module")
def cache(model, pairs):
    latents, _ = CacheVAELatents().cache(model, pairs[0], "vae/targets", "vae/references")
    return LongCatCacheText().cache_text(model, latents, "text")


def defaults(node: type) -> dict:
    return {name: settings["default"] for name, (_, settings) in node.INPUT_TYPES()["required"].items()}


def validation(**changes):
    return LongCatValidation().plan(**(defaults(LongCatValidation) | changes))[0]


def train(model, cache, name, **changes):
    return TrainLoRA().train(model, cache[0], run_name=name, **(RUN | changes))


def test_pairs_of_the_example_folder(module_host, pairs):
    training_set, sheet, report = pairs
    folder = Path(training_set.sources[0].targets.instance_data_dir)
    assert folder == module_host.home / "input" / "longcat-example" / "targets"
    assert len(training_set.records) == 12
    assert sheet.ndim == 4 and sheet.shape[0] == 1 and sheet.shape[3] == 3 and sheet.std() > 0.05
    assert report.splitlines()[0].startswith("12 pairs in 1 bucket")


def test_second_caching_encodes_nothing(module_host, model, pairs, cache):
    module_host.events.clear()
    again, report = CacheVAELatents().cache(model, pairs[0], "vae/targets", "vae/references")
    complete, text_report = LongCatCacheText().cache_text(model, again, "text")
    assert report.startswith("latents: 24 reused, 0 encoded")
    assert " 0 encoded" in text_report
    assert complete.fingerprint() == cache[0].fingerprint()
    assert not [event for event in module_host.events if "loading" in getattr(event, "stage", "")]
    assert (module_host.cache_dir() / "vae" / "targets").is_dir()


def test_trained_lora_is_usable_and_a_finished_run_returns_at_once(module_host, model, cache):
    plan = validation(validation_steps=2, validation_num_inference_steps=1, validation_resolution="64x64")
    output = train(model, cache, "usable", validation=plan)
    lora, path, loss_map, curve, samples = output["result"]
    assert path == str(lora.path) and lora.path.parent == module_host.lora_dirs()[0]
    assert lora.folder == module_host.runs_dir() / "usable"
    assert len(loss_map["loss"]) == 4 and len(set(loss_map["loss"])) > 1 and all(map(math.isfinite, loss_map["loss"]))
    assert curve.shape[0] == 1 and curve.shape[3] == 3
    assert samples.ndim == 4 and samples.shape[0] == plan.config.num_samples
    shown = [module_host.home / "output" / i["subfolder"] / i["filename"] for i in output["ui"]["images"]]
    assert shown and all(file.is_file() for file in shown)

    module_host.events.clear()
    again = train(model, cache, "usable", validation=plan)
    assert again["result"][0] == lora and again["result"][2] == loss_map
    assert torch.equal(again["result"][4], samples)
    assert not [event for event in module_host.events if isinstance(event, (StepReport, RunStarted))]

    stacked = LongCatLoadLoRA().load(model, "none", 0.5, lora=lora)[0]
    named = LongCatLoadLoRA().load(stacked, lora.path.name, 1.0)[0]
    assert [(use.path, use.strength) for use in named.spec.loras] == [(lora.path, 0.5), (lora.path.resolve(), 1.0)]
    assert LongCatLoadLoRA().load(model, "none", 1.0)[0] is model


def test_without_validation_a_grey_picture_comes_out(model, cache):
    samples = train(model, cache, "grey", max_train_steps=1)["result"][4]
    assert samples.shape == (1, 64, 64, 3) and samples.unique().tolist() == [0.5]


def test_stopped_run_resumes_to_the_same_lora(module_host, model, cache, monkeypatch):
    straight = train(model, cache, "straight")["result"]
    module_host.events.clear()
    monkeypatch.setattr(module_host, "stop_after", 0)
    monkeypatch.setattr(module_host, "asked", -2)
    with pytest.raises(StoppedByUserError, match=r"Stopped at step [123] of 4"):
        train(model, cache, "stopped")
    monkeypatch.setattr(module_host, "stop_after", None)
    resumed = train(model, cache, "stopped")["result"]
    started = [event for event in module_host.events if isinstance(event, RunStarted)]
    assert [event.resumed for event in started] == [False, True]
    assert resumed[2] == straight[2]
    assert resumed[0].path.read_bytes() == straight[0].path.read_bytes()


def test_restart_trains_anew_under_a_new_name(model, cache):
    first = train(model, cache, "again", max_train_steps=1)["result"][0]
    second = train(model, cache, "again", max_train_steps=1, restart=True)["result"][0]
    assert second.folder != first.folder and first.path.is_file()
    assert math.isnan(TrainLoRA.IS_CHANGED(restart=True)) and TrainLoRA.IS_CHANGED(restart=False) == ""


def test_options_reach_the_run(model, cache):
    options = LongCatTrainingOptions().choose(**(defaults(LongCatTrainingOptions) | {"lora_target": "official"}))[0]
    small = train(model, cache, "small", max_train_steps=1)["result"][0]
    large = train(model, cache, "large", max_train_steps=1, options=options)["result"][0]
    assert large.path.stat().st_size > small.path.stat().st_size


def test_dataset_is_read_anew_when_a_file_changes(host):
    folder = "longcat-example/targets"
    before = LongCatDataset.IS_CHANGED(instance_data_dir=folder, resolution="64")
    assert LongCatDataset.IS_CHANGED(instance_data_dir=folder, resolution="64") == before
    caption = next((host.home / "input" / "longcat-example" / "targets").glob("*.txt"))
    caption.write_text("another instruction", encoding="utf-8")
    assert LongCatDataset.IS_CHANGED(instance_data_dir=folder, resolution="64") != before


def test_existing_example_folder_is_left_alone(host):
    mine = host.home / "input" / "longcat-example"
    mine.mkdir()
    with pytest.raises(PathError, match="there is no such folder"):
        dataset("longcat-example/targets")
    assert list(mine.iterdir()) == []


@pytest.mark.parametrize("how", ["absolute", "dots", "link"])
def test_dataset_outside_the_allowed_roots_is_refused(host, tmp_path_factory, how):
    outside = tmp_path_factory.mktemp("private")
    if how == "link":
        os.symlink(outside, host.home / "input" / "link")
    name = {"absolute": str(outside), "dots": os.path.relpath(outside, host.home / "input"), "link": "link"}[how]
    with pytest.raises(PathError, match="outside the allowed folders.*LONGCAT_DATA_ROOTS"):
        dataset(name)
    with pytest.raises(PathError, match="outside the allowed folders"):
        LoadLongCat().load(
            model_family="longcat_image",
            model_flavour="edit",
            pretrained_model_name_or_path=str(outside),
            base_model_precision="bf16",
        )


@pytest.mark.parametrize("name", ["../elsewhere", "/tmp"])
def test_cache_folder_outside_the_allowed_roots_is_refused(model, pairs, cache, name):
    place = name if name.startswith("/") else f"../../{name}"
    with pytest.raises(PathError, match="CacheVAELatents.cache_dir_vae.*outside the allowed folders"):
        CacheVAELatents().cache(model, pairs[0], place, "vae/references")
    with pytest.raises(PathError, match="LongCatCacheText.cache_dir_text.*outside the allowed folders"):
        LongCatCacheText().cache_text(model, cache[0], place)


def test_one_cache_folder_for_both_sides_is_refused(model, pairs):
    with pytest.raises(ConfigError, match="cache_dir_vae"):
        CacheVAELatents().cache(model, pairs[0], "vae/same", "vae/same")


def test_folder_of_another_family_is_refused(host):
    folder = host.models[0] / "flux"
    folder.mkdir(exist_ok=True)
    (folder / "model_index.json").write_text('{"_class_name": "FluxPipeline"}', encoding="utf-8")
    with pytest.raises(ModelError, match="FluxPipeline"):
        LoadLongCat().load(
            model_family="longcat_image",
            model_flavour="edit",
            pretrained_model_name_or_path="flux",
            base_model_precision="bf16",
        )


@pytest.mark.parametrize(("base", "text"), [("int8-quanto", "no_change"), ("bf16", "int8-quanto")])
def test_int8_without_quanto_is_refused(host, monkeypatch, base, text):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name.startswith("optimum") else found(name))
    with pytest.raises(ConfigError, match="optimum-quanto, which is not installed"):
        LoadLongCat().load(
            model_family="longcat_image",
            model_flavour="tiny-edit",
            pretrained_model_name_or_path="auto",
            base_model_precision=base,
            text_encoder_1_precision=text,
        )


@pytest.mark.parametrize("name", ["missing.safetensors", "../secret.safetensors", "/etc/hostname"])
def test_lora_outside_the_folder_or_missing_is_refused(host, model, name):
    (host.home / "loras").mkdir()
    (host.home / "secret.safetensors").write_bytes(b"")
    with pytest.raises(LoraFileError, match="no such file below"):
        LongCatLoadLoRA().load(model, name, 1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"aspect_bucket_alignment": 32}, "between 64 and 512"),
        ({"aspect_bucket_alignment": 96}, "multiple of 64"),
        ({"resolution": "100"}, "multiple of 16"),
    ],
)
def test_bad_dataset_settings_are_refused(host, changes, message):
    settings = {"resolution": "64", "aspect_bucket_alignment": 64} | changes
    with pytest.raises(ConfigError, match=message):
        LongCatDataset().describe(
            instance_data_dir="longcat-example/targets",
            id="a",
            dataset_type="image",
            caption_strategy="textfile",
            **settings,
        )
