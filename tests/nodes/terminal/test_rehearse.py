"""`longcat rehearse`: a user's own folder on the twin, and everything that would fail at full size in one list."""

import json
import shutil

import numpy
import pytest
from comfyui_longcat.nodes.terminal.cli import main
from comfyui_longcat.nodes.terminal.host import StopFlag
from comfyui_longcat.nodes.terminal.rehearse import rehearsals
from comfyui_longcat.training.errors import ConfigError
from PIL import Image

FEW = (
    "TrainLoRA.max_train_steps=2",
    "LongCatValidation.num_samples=1",
    "LongCatValidation.validation_num_inference_steps=1",
)


def draw(path, size, mode="RGB", seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    coarse = numpy.random.default_rng(seed).integers(0, 256, (height // 32 + 1, width // 32 + 1, 3), numpy.uint8)
    Image.fromarray(coarse).resize(size).convert(mode).save(path)


def pair(folder, name, size=(768, 768), caption="make it night", suffix="png", reference=None):
    """A target with its caption, and a reference, of noise."""
    draw(folder / "after" / f"{name}.{suffix}", size)
    draw(folder / "before" / f"{name}.png", reference or size)
    if caption is not None:
        (folder / "after" / f"{name}.txt").write_text(caption, encoding="utf-8")


@pytest.fixture
def mine(tmp_path):
    return tmp_path / "mine"


@pytest.fixture
def workflow(repository):
    return lambda name, folder="": repository / "workflows" / folder / f"{name}.json"


def rehearsed(path, home, *settings):
    """The one report of the workflow at `path`."""
    (report,) = rehearsals(path, [*FEW, *settings], home, StopFlag(), lambda event: None)
    return report


def edits(folder):
    """Settings that name a user's own pairs."""
    return f"2.instance_data_dir={folder / 'after'}", f"3.instance_data_dir={folder / 'before'}"


@pytest.mark.slow
def test_good_folder_of_odd_pictures_has_no_faults(mine, tmp_path, workflow, capsys):
    pair(mine, "wide", (1200, 800), suffix="jpg")
    pair(mine, "tall", (800, 1200))
    pair(mine, "\u56fe", (900, 900), caption="\u628a\u5b83\u53d8\u6210\u591c\u665a")
    home = tmp_path / "home"
    lora = home / "models" / "loras" / "longcat-edit-lora.safetensors"
    run = home / "output" / "longcat" / "longcat-edit-lora" / "manifest.json"
    for path in (lora, run):
        path.parent.mkdir(parents=True)
        path.write_text("mine")
    settings = [word for setting in (*FEW, *edits(mine)) for word in ("--set", setting)]
    # As the twin itself, so that the machine's disk and cards do not matter.
    settings += ["--set", "LoadLongCat.model_flavour=tiny-edit"]
    path = str(workflow("longcat_image_edit_train", "api"))
    assert main(["rehearse", path, *settings, "--base-directory", str(home)]) == 0
    shown = capsys.readouterr().out
    assert "Your 3 pairs, captions, caches, training (2 steps), validation" in shown
    assert "What would fail: nothing was found." in shown
    assert "0.7 epochs of 3 samples" in shown
    assert "There is a run or a LoRA called longcat-edit-lora already" in shown
    assert lora.read_text() == run.read_text() == "mine"
    assert [path.name for path in lora.parent.iterdir()] == [lora.name]
    assert [path.name for path in (home / "output" / "longcat-cache").iterdir()] == ["rehearsal"]
    folder = home / "output" / "longcat" / "rehearsal" / "longcat-edit-lora-tiny"
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [event["first_step"] for event in events if "first_step" in event] == [1, 2], "it did not go on"
    assert len({path.name for path in (folder / "samples").glob("*.png")}) >= 2
    assert (folder.parent / "loras" / "longcat-edit-lora-tiny.safetensors").is_file()
    assert "What would fail" in (folder / "rehearsal.txt").read_text(encoding="utf-8")


def test_every_planted_fault_is_listed_and_the_rest_is_tried(mine, tmp_path, workflow):
    pair(mine, "good", (1024, 768))
    pair(mine, "small", (300, 200))
    pair(mine, "turned", (1000, 1000), reference=(1600, 800))
    pair(mine, "long", caption="word " * 700)
    pair(mine, "uncaptioned", caption=None)
    pair(mine, "empty", caption=" \n")
    pair(mine, "cut")
    cut = mine / "after" / "cut.png"
    cut.write_bytes(cut.read_bytes()[:-200])
    pair(mine, "text")
    (mine / "before" / "text.png").write_text("no picture")
    draw(mine / "after" / "lonely.png", (768, 768))
    (mine / "after" / "lonely.txt").write_text("x")
    draw(mine / "before" / "widow.png", (768, 768))
    report = rehearsed(
        workflow("longcat_image_edit_train"),
        tmp_path / "home",
        *edits(mine),
        "LongCatValidation.validation_resolution=770x770",
        "LongCatTrainingOptions.lr_warmup_steps=20",
        "LongCatTrainingOptions.lora_target=attention",
        "LongCatTrainingOptions.checkpoint_step_interval=0",
        "TrainLoRA.train_batch_size=9",
        "CacheVAELatents.reference_cache_dir_vae=vae/targets",
    )
    faults = "\n".join(report.faults)
    for words in (
        "validation_resolution (LongCat Validation) is 770",
        "lr_warmup_steps is 20",
        "lora_target is 'attention'",
        "checkpoint_step_interval is 0",
        "train_batch_size is 9, but an epoch has only 4",
        "cache_dir_vae and reference_cache_dir_vae are the same folder",
        "lonely.png (nearest: widow.png)",
        "widow.png (nearest: lonely.png)",
        "uncaptioned.txt",
        "empty.txt is empty",
        "1 of 10 files cannot be decoded",
        "cut.png",
        "text.png cannot be read as a picture",
    ):
        assert words in faults, words
    surprises = "\n".join(report.surprises)
    for words in ("after/small.png (300x200 to", "turned.png (1600x800, target 1000x1000)", "long (874)"):
        assert words in surprises, words
    assert "good" not in surprises
    assert not report.works, "lora_target attention fits no picture model"


def test_faulty_pictures_do_not_keep_the_others_from_the_twin(mine, tmp_path, workflow):
    pair(mine, "good")
    pair(mine, "cut")
    cut = mine / "after" / "cut.png"
    cut.write_bytes(cut.read_bytes()[:-200])
    report = rehearsed(workflow("longcat_image_edit_train"), tmp_path / "home", *edits(mine))
    assert report.works[0] == "1 pairs" and "validation" in report.works
    (fault,) = [fault for fault in report.faults if "disk" not in fault]
    assert fault.startswith("1 of 4 files cannot be decoded")


def test_a_missing_folder_does_not_hide_what_is_wrong_with_the_model(tmp_path, workflow):
    report = rehearsed(
        workflow("longcat_image_edit_train", "api"),
        tmp_path,
        "2.instance_data_dir=gone",
        "LoadLongCat.pretrained_model_name_or_path=nowhere",
    )
    faults = "\n".join(report.faults)
    assert "\"Edited pictures + instructions\" (LongCatDataset): LongCatDataset.instance_data_dir is 'gone'" in faults
    assert "pretrained_model_name_or_path (Load LongCat) is 'nowhere'" in faults
    assert not report.works


def test_targets_without_references_are_told(mine, tmp_path, workflow):
    pair(mine, "one")
    path = tmp_path / "workflow.json"
    graph = json.loads(workflow("longcat_image_edit_train", "api").read_text(encoding="utf-8"))
    (cache,) = (node for node in graph.values() if node["class_type"] == "CacheVAELatents")
    cache["inputs"]["pairs"] = ["2", 0]
    path.write_text(json.dumps(graph))
    report = rehearsed(path, tmp_path / "home", f"2.instance_data_dir={mine / 'after'}")
    assert any("edits a reference picture, but 1 of 1 samples have none: one" in fault for fault in report.faults)
    assert not report.works


@pytest.fixture
def clips(mine):
    from comfyui_longcat.training.tiny.examples import draw_example_clips

    draw_example_clips(mine / "clips", mine / "starts", size=64, frames=21)
    return mine


def test_clips_that_are_too_short_are_told_and_others_tried(clips, tmp_path, workflow):
    short = sorted((clips / "clips").glob("*.mp4"))[0]
    shutil.copyfile(sorted((clips / "clips").glob("*.mp4"))[1], clips / "clips" / "whole.mp4")
    (clips / "clips" / "whole.txt").write_text("it moves")
    from comfyui_longcat.training.data.video_writer import write_video

    write_video(short, [Image.new("RGB", (64, 64), "red")] * 9, 15)
    report = rehearsed(
        workflow("longcat_video_t2v_train"),
        tmp_path / "home",
        f"LongCatDataset.instance_data_dir={clips / 'clips'}",
        "LongCatDataset.num_frames=21",
    )
    assert any(f"too short, in frames at 15 per second: {short.name} (9 of 21)" in fault for fault in report.faults)
    assert report.works[0].endswith("clips")
    assert any("get enlarged" in surprise for surprise in report.surprises)


def test_configurations_are_rehearsed_too(mine, tmp_path):
    pair(mine, "one")
    pair(mine, "two", caption=None)
    config = {
        "model_family": "longcat_image",
        "model_flavour": "tiny-edit",
        "max_train_steps": 1,
        "data_backend_config": str(tmp_path / "data.json"),
        "run_name": "mine",
    }
    sides = [
        {"id": "edits", "type": "local", "instance_data_dir": str(mine / "after"), "conditioning_data": ["refs"]},
        {"id": "refs", "type": "local", "dataset_type": "conditioning", "instance_data_dir": str(mine / "before")},
    ]
    (tmp_path / "data.json").write_text(json.dumps([{**side, "resolution": 512} for side in sides]))
    (tmp_path / "config.json").write_text(json.dumps(config))
    (report,) = rehearsals(tmp_path / "config.json", [], tmp_path / "home", StopFlag(), lambda event: None)
    assert report.title.startswith("Rehearsal of mine")
    assert any("two.txt" in fault for fault in report.faults)
    assert report.works[0] == "1 pairs"


def test_a_workflow_without_training_is_refused(tmp_path, workflow):
    with pytest.raises(ConfigError, match="longcat run --tiny"):
        rehearsals(workflow("longcat_image_edit_sample"), [], tmp_path, StopFlag(), lambda event: None)


def test_wrong_wiring_is_listed_with_wrong_settings(tmp_path, workflow):
    graph = json.loads(workflow("longcat_image_edit_train", "api").read_text(encoding="utf-8"))
    graph["4"]["inputs"]["references"] = ["1", 0]
    graph["10"]["inputs"]["max_train_steps"] = -3
    path = tmp_path / "workflow.json"
    path.write_text(json.dumps(graph))
    (report,) = rehearsals(path, [], tmp_path, StopFlag(), lambda event: None)
    assert not report.works
    assert any("max_train_steps is -3" in fault for fault in report.faults)
    assert any("references is of type LONGCAT_DATASET" in fault for fault in report.faults)
