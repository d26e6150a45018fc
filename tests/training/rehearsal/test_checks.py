"""What a rehearsal says of the real run: the card, the tokenizer, the captions, the steps. Nothing is trained here."""

import json
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from comfyui_longcat.training.caches.cache import CacheFolders
from comfyui_longcat.training.data.records import Record, Source, TrainingSet
from comfyui_longcat.training.loop.train import RunPlaces
from comfyui_longcat.training.rehearsal.cache import RealData
from comfyui_longcat.training.rehearsal.checks import RealRun, look_at
from comfyui_longcat.training.rehearsal.report import RehearsalReport
from comfyui_longcat.training.rehearsal.small import small_set
from comfyui_longcat.training.settings.dataset import DatasetConfig
from comfyui_longcat.training.settings.model import ModelConfig
from comfyui_longcat.training.settings.run import TrainConfig, TrainingOptions
from comfyui_longcat.training.settings.validation import ValidationConfig
from comfyui_longcat.training.weights.spec import ModelSpec
from PIL import Image

CARD_GB = {"small": 12, "tight": 18, "large": 80}


def data_of(folder, captions, bucket=(768, 768)):
    """Pairs of one grey picture, with these captions."""
    picture = folder / "picture.png"
    Image.new("RGB", bucket, "grey").save(picture)
    records = tuple(
        Record(name=f"{number}", target=picture, references=(picture,), caption=caption, bucket=bucket)
        for number, caption in enumerate(captions)
    )
    source = Source(targets=DatasetConfig(instance_data_dir=str(folder)))
    folders = CacheFolders(targets=folder / "cache" / "targets", references=folder / "cache" / "references")
    return RealData(dataset=TrainingSet(sources=(source,), records=records), folders=folders)


def real_run(folder, model=None, captions=("make it night",) * 4, device="cpu", models=None, **settings):
    spec = ModelSpec(config=model or ModelConfig(model_flavour="edit"), models_dirs=(models or folder / "models",))
    return RealRun(
        config=TrainConfig(**settings),
        model=spec,
        model_faults=(),
        data=data_of(folder, captions),
        validation_data=None,
        places=RunPlaces(runs_dir=folder / "runs", lora_dir=folder / "loras", device=torch.device(device)),
    )


@pytest.fixture
def card(monkeypatch):
    """A card of so many GB; only what is asked of the driver is answered here."""

    def plug_in(size):
        total = int(size * 1e9)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (total, total))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A card")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))

    return plug_in


@pytest.mark.parametrize("size", CARD_GB)
def test_the_card_is_compared_with_the_need(tmp_path, card, size):
    card(CARD_GB[size])
    model = ModelConfig(model_flavour="edit", text_encoder_1_precision="int8-quanto")
    found = look_at(real_run(tmp_path, model, device="cuda"))
    too_small = [fault for fault in found.faults if "The card is too small: A card has 12.0 GB" in fault]
    maybe = [surprise for surprise in found.surprises if "The card may be too small: A card has 18.0 GB" in surprise]
    assert (len(too_small), len(maybe)) == {"small": (1, 0), "tight": (0, 1), "large": (0, 0)}[size]


def test_a_precision_that_the_card_cannot_do_is_a_fault(tmp_path, card, monkeypatch):
    from torch.utils import cpp_extension

    card(80)
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", None)
    found = look_at(
        real_run(tmp_path, ModelConfig(model_flavour="edit", base_model_precision="int4-quanto"), device="cuda")
    )
    assert any("int4-quanto does not work on cuda" in fault for fault in found.faults)


def test_captions_are_counted_by_the_models_own_tokenizer(tmp_path, tiny_checkpoint):
    from transformers import AutoTokenizer

    # Each of these characters is a token of its own between quotation marks.
    long = '"' + "x" * 520 + '"'
    model = ModelConfig(model_flavour="tiny-edit")
    run = real_run(tmp_path, model, ("short", long), models=tiny_checkpoint.parent)
    (surprise,) = [each for each in look_at(run).surprises if "tokens" in each]
    assert surprise.startswith("1 of 2 captions have more than 512 tokens: 1 (522).")
    assert len(AutoTokenizer.from_pretrained(tiny_checkpoint / "tokenizer").tokenize("short")) <= 512


def test_without_a_tokenizer_lengths_are_guessed(tmp_path):
    run = real_run(tmp_path, captions=("word " * 100, "\u591c" * 600, "word " * 700))
    (surprise,) = [each for each in look_at(run).surprises if "tokens" in each]
    assert surprise.startswith("2 of 3 captions may have") and "1 (600), 2 (875)" in surprise


def test_settings_that_surprise(tmp_path):
    run = real_run(
        tmp_path,
        max_train_steps=2,
        train_batch_size=1,
        validation=ValidationConfig(validation_steps=100),
        options=TrainingOptions(checkpoint_step_interval=250),
    )
    found = look_at(run)
    text = "\n".join(found.surprises)
    for words in ("Only 2 of 4 samples are seen", "no checkpoint before the end", "validation_steps is 100"):
        assert words in text
    assert "steps: 2 of batch 1, that is 0.5 epochs of 4 samples" in found.needs


def test_full_disk_is_told_before_the_night(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    for free, full in ((5_000_000_000, True), (500_000_000_000, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: usage(10**12, 10**12 - free, free))
        found = look_at(real_run(tmp_path))
        assert any("The disk is too full: the run needs" in fault for fault in found.faults) == full
    assert not found.faults
    assert any("a download of about 29.3 GB" in need for need in found.needs)
    assert any(need.startswith("graphics memory: about ") for need in found.needs)


def test_a_folder_that_is_no_model_is_told(tmp_path, tiny_checkpoint):
    folder = tmp_path / "models" / "LongCat-Image-Edit"
    folder.mkdir(parents=True)
    (folder / "half.safetensors.part").write_text("copying")
    assert any("no complete model folder" in fault for fault in look_at(real_run(tmp_path)).faults)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "LongCatImagePipeline"}))
    assert any("holds a LongCatImagePipeline" in fault for fault in look_at(real_run(tmp_path)).faults)
    shutil.rmtree(folder)
    shutil.copytree(tiny_checkpoint, folder)
    found = look_at(real_run(tmp_path))
    assert f"model: {folder}, which is complete" in found.needs
    assert not any("hub" in line for line in (*found.faults, *found.surprises, *found.needs))


def test_offline_and_no_model_is_a_fault(tmp_path, monkeypatch):
    from huggingface_hub import constants

    assert not any("HF_HUB_OFFLINE" in fault for fault in look_at(real_run(tmp_path)).faults)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert any("HF_HUB_OFFLINE forbids it" in fault for fault in look_at(real_run(tmp_path)).faults)


def test_a_distilled_model_is_a_fault(tmp_path):
    found = look_at(real_run(tmp_path, ModelConfig(model_flavour="edit-turbo")))
    assert any("edit-turbo cannot be trained on" in fault for fault in found.faults)


def test_small_set_takes_some_of_every_bucket():
    buckets = [(768, 768)] * 50 + [(1024, 576), (576, 1024)]
    records = tuple(
        Record(name=f"{n}", target=Path(f"{n}.png"), references=(Path("r.png"),), caption="a b " * 40, bucket=bucket)
        for n, bucket in enumerate(buckets)
    )
    small = small_set(TrainingSet(sources=(), records=records), ModelConfig(model_flavour="tiny-edit"))
    assert len(small.records) == 32
    assert {record.bucket for record in small.records} == {(64, 64), (80, 48), (48, 80)}
    assert {"50", "51"} <= {record.name for record in small.records}
    assert max(len(record.caption) for record in small.records) <= 120


def test_report_says_when_nothing_would_fail():
    good = RehearsalReport(title="t", works=("pairs", "captions"), needs=("disk: 1 GB",))
    assert good.text().splitlines() == [
        "t",
        "Your pairs and captions work.",
        "At full size this run needs:",
        "- disk: 1 GB",
        "What would fail: nothing was found.",
    ]
    bad = RehearsalReport(title="t", faults=("a", "b"), surprises=("c",))
    assert bad.text().splitlines()[1:] == [
        "The twin was not trained.",
        "What would fail:",
        "- a",
        "- b",
        "What may surprise:",
        "- c",
    ]


def test_small_pictures_are_counted_and_the_smallest_named_first(tmp_path):
    run = real_run(tmp_path)
    records = []
    for side in (*range(700, 712), 48, 63):
        picture = tmp_path / f"{side}.png"
        Image.new("RGB", (side, side)).save(picture)
        bucket = (64, 64) if side == 63 else (768, 768)
        records.append(Record(name=f"{side}", target=picture, references=(), caption="a dog", bucket=bucket))
    dataset = replace(run.data.dataset, records=tuple(records))
    found = look_at(replace(run, data=replace(run.data, dataset=dataset)))
    (told,) = [line for line in found.surprises if "get enlarged" in line]
    assert told.startswith("14 of 14 files are smaller") and ": " + tmp_path.name + "/48.png (48x48 to 768x768)" in told
