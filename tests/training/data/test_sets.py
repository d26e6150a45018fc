"""Captioned folders, several resolutions, crops and repeats as records; several sets in one."""

from dataclasses import replace

import pytest
from comfyui_longcat.training.data.sets import describe, join_sets, pair_datasets, scan_dataset, training_set_of
from comfyui_longcat.training.errors import DataError
from comfyui_longcat.training.settings.dataset import DatasetConfig
from comfyui_longcat.training.tiny.examples import draw_example_pairs
from PIL import Image


@pytest.fixture
def example(tmp_path):
    """Four drawn pairs; as a captioned folder and as a folder of references."""
    draw_example_pairs(tmp_path / "targets", tmp_path / "references", count=4)
    captioned = DatasetConfig(id="mine", instance_data_dir=str(tmp_path / "targets"), resolution="64")
    references = DatasetConfig(
        id="refs",
        instance_data_dir=str(tmp_path / "references"),
        dataset_type="conditioning",
        caption_strategy="none",
    )
    return captioned, references


def wide(folder, name="wide.png"):
    Image.new("RGB", (400, 200), "red").save(folder / name)
    (folder / name).with_suffix(".txt").write_text("a red field", encoding="utf-8")


def test_a_captioned_folder(example, tmp_path):
    dataset = scan_dataset(example[0])
    assert [record.name for record in dataset.records] == sorted(p.stem for p in (tmp_path / "targets").glob("*.png"))
    assert all(record.references == () and record.repeats == 0 for record in dataset.records)
    first = dataset.records[0]
    assert first.caption == first.target.with_suffix(".txt").read_text(encoding="utf-8").strip()
    assert (dataset.sources[0].targets, dataset.sources[0].references) == (example[0], None)
    assert training_set_of(example[0]) == dataset and training_set_of(dataset) is dataset


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dataset_type": "conditioning"}, "must be 'image'"),
        ({"caption_strategy": "none"}, "pictures to learn need captions"),
        ({"instance_data_dir": "/gone"}, "'/gone' does not exist"),
    ],
)
def test_what_is_no_captioned_folder_is_refused(example, changes, words):
    with pytest.raises(DataError, match=words):
        scan_dataset(replace(example[0], **changes))


def test_an_empty_folder_is_refused(example, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="The pictures folder .*empty holds no pictures"):
        scan_dataset(replace(example[0], instance_data_dir=str(tmp_path / "empty")))


def test_every_picture_at_each_resolution(example, tmp_path):
    wide(tmp_path / "targets")
    dataset = scan_dataset(replace(example[0], resolution="128,64", repeats=2))
    names = [record.name for record in dataset.records]
    assert len(names) == 10 and names[:5] == names[5:] and len(set(names[:5])) == 5
    assert {record.bucket for record in dataset.records[5:]} == {(64, 64)}
    assert {record.bucket for record in dataset.records[:5]} == {(128, 128)}
    assert {record.repeats for record in dataset.records} == {2}
    report = describe(dataset).splitlines()
    assert report[0] == "10 pictures of 5 files in 2 buckets, 30 samples an epoch with their repeats:"
    assert report[1:] == ["  64x64: 5", "  128x128: 5"]


def test_resolutions_that_share_a_bucket_are_no_hidden_repeats(example):
    assert scan_dataset(replace(example[0], resolution="64,96")) == replace(
        scan_dataset(example[0]), sources=scan_dataset(replace(example[0], resolution="64,96")).sources
    )


def test_crop_styles(example, tmp_path):
    def crops(**changes):
        return {r.name: r.crop for r in scan_dataset(replace(example[0], **changes)).records}

    assert set(crops().values()) == {(0.5, 0.5)}
    assert set(crops(crop_style="corner").values()) == {(0.0, 0.0)}
    drawn = crops(crop_style="random")
    assert len(set(drawn.values())) == 4 and all(0 <= share < 1 for crop in drawn.values() for share in crop)
    wide(tmp_path / "targets", "00-another.png")
    again = crops(crop_style="random", resolution="64")
    assert {name: again[name] for name in drawn} == drawn, "a further file moves no other crop"
    assert crops(crop_style="random", id="other")["00-another"] != again["00-another"]


def test_pairs_share_crop_and_repeats(example):
    targets, references = example
    pairs = pair_datasets(replace(targets, crop_style="random", repeats=3, resolution="64,128"), references)
    assert len(pairs.records) == 8 and all(len(record.references) == 1 for record in pairs.records)
    assert {record.repeats for record in pairs.records} == {3}
    assert [record.crop for record in pairs.records[:4]] == [record.crop for record in pairs.records[4:]]


def test_joined_sets_keep_their_own_settings(example, tmp_path):
    captioned = scan_dataset(example[0])
    often = scan_dataset(replace(example[0], id="often", resolution="128", repeats=1))
    joined = join_sets([captioned, often])
    assert joined.records == captioned.records + often.records
    assert [source.targets.id for source in joined.sources] == ["mine", "often"]
    assert describe(joined).splitlines()[0].startswith("8 pictures of 4 files in 2 buckets, 12 samples an epoch")
    assert join_sets([joined]) == joined


def test_one_id_twice_is_refused(example):
    captioned = scan_dataset(example[0])
    with pytest.raises(DataError, match="1 dataset ids occur more than once: 'mine'. .* raise repeats"):
        join_sets([captioned, pair_datasets(*example)])


def test_warnings_are_in_the_report(example):
    dataset = join_sets([replace(scan_dataset(example[0]), warnings=("looks odd",))])
    assert describe(dataset).splitlines()[-1] == "Warning: looks odd"
