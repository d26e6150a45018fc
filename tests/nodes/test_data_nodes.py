"""Datasets, joined datasets and what the caches take, as nodes."""

import re
import shutil

import pytest
from comfyui_longcat.nodes import examples
from comfyui_longcat.nodes.data import (
    CacheVAELatents,
    LongCatCacheText,
    LongCatDataset,
    LongCatJoinDatasets,
    PairDatasets,
    cache_folder,
)
from comfyui_longcat.nodes.load import LoadLongCat
from comfyui_longcat.training.caches.latents import load_latents
from comfyui_longcat.training.errors import CacheError, ConfigError, DataError, PathError
from comfyui_longcat.training.settings.dataset import DatasetConfig
from PIL import Image

CAPTIONED = {"dataset_type": "image", "caption_strategy": "textfile", "resolution": "64"}
TARGETS, REFERENCES = examples.EDIT_TARGETS, examples.EDIT_REFERENCES


def dataset(folder=TARGETS, id="mine", kind="image", captions="textfile", resolution="64", **settings):
    return LongCatDataset().describe(
        instance_data_dir=folder, id=id, dataset_type=kind, caption_strategy=captions, resolution=resolution, **settings
    )[0]


def pairs(id="mine"):
    return paired(dataset(id=id), dataset(REFERENCES, "refs", "conditioning", "none"))


def paired(targets, references):
    return PairDatasets().pair(targets, references)["result"]


def join(*sets):
    return LongCatJoinDatasets().join(*sets)["result"]


def model(flavour):
    return LoadLongCat().load(
        model_family="longcat_image",
        model_flavour=flavour,
        pretrained_model_name_or_path="auto",
        base_model_precision="fp32",
    )[0]


def test_every_setting_of_a_dataset_is_a_widget_and_arrives(module_host):
    declared = LongCatDataset.INPUT_TYPES()
    names = [*declared["required"], *declared["optional"]]
    # Saved workflows hold the values by place.
    assert names[:7] == [
        *("instance_data_dir", "id", "dataset_type", "caption_strategy", "resolution"),
        *("aspect_bucket_alignment", "repeats"),
    ]
    assert set(names) == set(DatasetConfig.__dataclass_fields__)
    settings = {
        "aspect_bucket_alignment": 128,
        "repeats": 4,
        "instance_prompt": "a sks bird",
        "resolution_type": "pixel",
        "crop_style": "random",
        "crop_aspect": "square",
        "num_frames": 49,
        "fps": 24.0,
        "clip_extraction": "multiple",
        "is_i2v": True,
        "min_frames": 9,
        "bucket_strategy": "resolution_frames",
        "frame_interval": 8,
    }
    config = dataset(captions="instanceprompt", resolution="512,1024", **settings)
    assert {name: getattr(config, name) for name in settings} == settings
    assert (config.caption_strategy, config.resolution) == ("instanceprompt", "512,1024")


def test_joins_folders_and_pairs(module_host):
    first, second = dataset(), dataset(REFERENCES, "plain", captions="filename", repeats=1, resolution="64,128")
    joined, sheets, report = join(first, second)
    assert [source.targets.id for source in joined.sources] == ["mine", "plain"]
    assert len(joined.records) == 12 + 24
    assert sheets.shape[0] == 2 and sheets.shape[3] == 3
    assert report.startswith("36 pictures of 24 files in 2 buckets, 60 samples an epoch")
    nested, _, _ = join(joined, dataset(id="third"))
    assert len(nested.records) == 48
    both, _, report = join(pairs("one")[0], pairs("two")[0])
    assert len(both.records) == 24 and report.startswith("24 pairs of 12 files")


def test_one_captioned_folder_has_its_contact_sheet(module_host):
    alone, sheet, report = join(dataset())
    assert len(alone.records) == 12 and sheet.shape[0] == 1
    assert report.splitlines()[0] == "12 pictures in 1 bucket:"


def test_the_captioned_example_is_drawn_on_first_use(module_host):
    dataset, _, report = join(LongCatDataset().describe(instance_data_dir=examples.CAPTIONED, id="a", **CAPTIONED)[0])
    assert report.startswith("12 pictures") and all(" background" in r.caption for r in dataset.records[:2])
    (module_host.home / "input" / "longcat-example-captioned" / "mine.txt").write_text("mine", encoding="utf-8")
    LongCatDataset().describe(instance_data_dir=examples.CAPTIONED, id="a", **CAPTIONED)
    assert (module_host.home / "input" / "longcat-example-captioned" / "mine.txt").is_file()


def test_the_same_dataset_twice_is_refused(module_host):
    with pytest.raises(DataError, match="'mine'.*raise repeats"):
        join(dataset(), pairs()[0])


def test_warnings_reach_the_report_of_the_pairs(module_host):
    _, _, report = paired(dataset(), dataset(REFERENCES, "refs", "conditioning", "filename"))
    assert "Warning: 12 of 12 references (dataset 'refs') have captions" in report


def test_a_captioned_folder_is_cached_as_it_is(module_host):
    cache, report = CacheVAELatents().cache(model("tiny"), dataset(), "vae/targets", "vae/references")
    assert len(cache.records) == 12 and not any(cached.cond_latents for cached in cache.records)
    assert report.startswith("latents: 0 reused, 12 encoded")
    again, _ = CacheVAELatents().cache(model("tiny"), join(dataset())[0], "vae/targets", "vae/references")
    assert again == cache


@pytest.mark.parametrize(
    ("flavour", "words"), [("tiny-edit", "12 of 12 samples have none"), ("tiny", "12 of 12 samples have one")]
)
def test_data_of_the_other_kind_is_refused_at_once(module_host, flavour, words):
    data = dataset() if flavour == "tiny-edit" else pairs()[0]
    loaded = model(flavour)
    with pytest.raises(ConfigError, match=words):
        CacheVAELatents().cache(loaded, data, f"{flavour}/targets", f"{flavour}/references")
    assert not (module_host.cache_dir() / flavour).exists()


def test_videos_and_start_frames_are_drawn_paired_and_shown(module_host):
    clips, starts = examples.CLIPS, examples.START_FRAMES
    videos = dataset(clips, kind="video", num_frames=9)
    clips_of, sheet, report = paired(videos, dataset(starts, "starts", "conditioning", "none"))
    assert [record.shape for record in clips_of.records] == [(64, 64, 9)] * 12
    assert all(record.is_i2v and record.references for record in clips_of.records)
    assert sheet.shape[0] == 1 and sheet.shape[3] == 3
    assert report.splitlines() == [
        "12 clips in 1 bucket:",
        "  64x64@9: 12",
        "Videos: 12 at 15 frames per second; 93 frames. Clips are taken at 15 per second.",
        "Image-to-video: 12 clips continue a start frame of the other folder.",
    ]
    alone, sheet, report = join(dataset(clips, kind="video", num_frames=9, is_i2v=True))
    assert "12 clips continue their own first frame" in report
    assert not any(record.references for record in alone.records) and sheet.shape[0] == 1


def test_missing_start_frames_stop_before_a_model_is_loaded(module_host):
    clips, starts = examples.CLIPS, examples.START_FRAMES
    partly = module_host.home / "input" / "partly"
    shutil.copytree(dataset(starts).instance_data_dir, partly)
    gone = sorted(partly.iterdir())[2]
    gone.unlink()
    videos = dataset(clips, kind="video", num_frames=9)
    found, _, report = paired(videos, dataset("partly", "starts", "conditioning", "none"))
    fault = f"1 of 12 videos have no picture .* start frames: {gone.stem}.mp4"
    assert re.search(f"Fault: {fault}", report)
    with pytest.raises(DataError, match=f"Found by Pair Datasets: {fault}"):
        CacheVAELatents().cache(model("tiny"), found, "none/targets", "none/references")
    with pytest.raises(ConfigError, match="num_frames .* is 10;.* Use 9 or 13"):
        dataset(clips, kind="video", num_frames=10)
    found, _, report = join(dataset(clips, kind="video", num_frames=97))
    assert re.search(r"Fault: 12 of 12 videos are too short.*\(93 of 97\)", report)
    with pytest.raises(DataError, match=r"Found by Join Datasets: 12 of 12 videos are too short"):
        CacheVAELatents().cache(model("tiny"), found, "none/targets", "none/references")
    assert not (module_host.cache_dir() / "none").exists()


def test_a_changed_folder_of_pictures_is_a_changed_video(module_host):
    take = module_host.home / "input" / "takes" / "one"
    take.mkdir(parents=True)
    before = LongCatDataset.IS_CHANGED("takes", dataset_type="video")
    (take / "0.png").write_bytes(b"a picture")
    assert LongCatDataset.IS_CHANGED("takes", dataset_type="video") != before
    assert LongCatDataset.IS_CHANGED("takes") == LongCatDataset.IS_CHANGED("takes", dataset_type="image")


@pytest.mark.parametrize("name", ["a.txt", "a.png"])
def test_a_link_out_of_the_allowed_folders_is_never_read(host, tmp_path_factory, name):
    outside, folder = tmp_path_factory.mktemp("outside"), host.home / "input" / "mine"
    folder.mkdir(parents=True)
    Image.new("RGB", (64, 64), "red").save(outside / "a.png")
    (outside / "a.txt").write_text("canary", encoding="utf-8")
    for each in ("a.png", "a.txt"):
        place = folder / each
        place.symlink_to(outside / each) if each == name else shutil.copy(outside / each, place)
    with pytest.raises(PathError, match=f"{name} are links that lead out of the allowed folders") as caught:
        dataset("mine")
    assert "canary" not in str(caught.value)
    with pytest.raises(PathError):
        LongCatDataset.IS_CHANGED(instance_data_dir="mine")


def test_a_cache_folder_that_is_too_long_is_refused_as_a_path(host):
    drawn = paired(dataset(), dataset(REFERENCES, "refs", "conditioning", "none"))[0]
    for name in ("a/" * 3000 + "a", "x" * 300):
        with pytest.raises(PathError, match="cache_dir_vae is .*no usable path"):
            CacheVAELatents().cache(model("tiny-edit"), drawn, name, "references")


def test_a_refused_cache_file_lets_comfyui_run_the_cache_nodes_again(host):
    def changed():
        return CacheVAELatents.IS_CHANGED("vae/targets", "vae/references"), LongCatCacheText.IS_CHANGED("text")

    before = changed()
    assert changed() == before
    with pytest.raises(CacheError):
        load_latents(host.home / "gone.safetensors")
    assert all(now != then for now, then in zip(changed(), before, strict=True))


@pytest.mark.parametrize("place", ["input", "output", "output/longcat", "models", "output/longcat-cache/../other"])
def test_cache_folders_lie_below_the_hosts_own(host, place):
    with pytest.raises(PathError, match="cache_dir_text is .*outside the allowed folders"):
        cache_folder(str(host.home / place), "LongCatCacheText.cache_dir_text")
    assert cache_folder(str(host.cache_dir() / "mine"), "x") == cache_folder("mine", "x")
