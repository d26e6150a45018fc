"""A folder of videos becomes records; everything that is wrong is told at once."""

from pathlib import Path

import pytest
from comfyui_longcat.training.data.contact_sheet import CELL, MARGIN, contact_sheet
from comfyui_longcat.training.data.sets import describe, join_sets, pair_datasets, scan_dataset
from comfyui_longcat.training.data.video_writer import write_video
from comfyui_longcat.training.errors import DataError
from comfyui_longcat.training.settings.dataset import DatasetConfig
from comfyui_longcat.training.tiny.examples import draw_example_clips, draw_moves
from PIL import Image


def dataset(folder: Path, **settings) -> DatasetConfig:
    values = {"dataset_type": "video", "resolution": "64", "num_frames": 9, **settings}
    return DatasetConfig(id=folder.name, instance_data_dir=str(folder), **values)


@pytest.fixture
def drawn(tmp_path) -> tuple[Path, Path]:
    clips, starts = tmp_path / "clips", tmp_path / "starts"
    draw_example_clips(clips, starts, count=4)
    return clips, starts


def both(drawn, **settings):
    clips, starts = drawn
    frames = dataset(starts, dataset_type="conditioning", caption_strategy="none")
    return pair_datasets(dataset(clips, **settings), frames)


def faults_of(drawn, **settings) -> str:
    with pytest.raises(DataError) as caught:
        both(drawn, **settings)
    return str(caught.value)


def test_clips_are_paired_with_their_start_frames(drawn):
    found = both(drawn)
    assert [record.target.stem for record in found.records] == sorted(path.stem for path in drawn[1].iterdir())
    for record in found.records:
        assert [path.name for path in record.references] == [f"{record.name}.png"]
        assert (record.bucket, record.clip.start, record.clip.frames) == ((64, 64), 0, 9)
        assert record.caption == (drawn[0] / f"{record.name}.txt").read_text(encoding="utf-8").strip()
    assert found.warnings == ()


def test_without_start_frames_there_are_no_references(drawn):
    records = scan_dataset(dataset(drawn[0])).records
    assert len(records) == 4 and all(record.references == () for record in records)


def test_several_clips_of_a_video_and_repeats(drawn):
    config = dataset(drawn[0], repeats=2, num_frames=1, clip_extraction="multiple")
    records = scan_dataset(config).records
    assert [record.clip.start for record in records[:9]] == list(range(9))
    assert len(records) == 4 * 9 and {record.repeats for record in records} == {2}


def test_sizes_by_hand_and_random_crops_reach_the_records(tmp_path):
    folder = tmp_path / "wide"
    folder.mkdir()
    write_video(folder / "a.mp4", [Image.new("RGB", (192, 108))] * 5, 15)
    (folder / "a.txt").write_text("a black screen", encoding="utf-8")
    config = dataset(folder, resolution="832x480", crop_style="random", num_frames=5)
    (record,) = scan_dataset(config).records
    assert record.bucket == (832, 480)
    assert record.crop != (0.5, 0.5)


def test_folders_of_pictures_are_videos(tmp_path):
    folder = tmp_path / "set"
    (folder / "take.1").mkdir(parents=True)
    (folder / "empty").mkdir()
    for number, picture in enumerate(next(draw_moves(1))[1]):
        picture.save(folder / "take.1" / f"{number}.png")
    (folder / "take.1.txt").write_text("a shape", encoding="utf-8")
    (record,) = scan_dataset(dataset(folder)).records
    assert (record.name, record.caption, record.clip.frames) == ("take.1", "a shape", 9)


def test_all_faults_are_told_at_once(drawn):
    clips, starts = drawn
    names = sorted(path.stem for path in starts.iterdir())
    (clips / f"{names[0]}.mp4").write_bytes(b"no video")
    write_video(clips / f"{names[1]}.mp4", [Image.new("RGB", (64, 64))] * 7, 15)
    (clips / f"{names[2]}.txt").unlink()
    (starts / f"{names[3]}.png").rename(starts / "other.png")
    message = faults_of(drawn)
    assert "for 5 reasons" in message
    assert f"1 of 4 videos cannot be read:\n    {clips / names[0]}.mp4 cannot be read as a video" in message
    assert f"1 of 4 videos are too short, in frames at 15 per second: {names[1]}.mp4 (7 of 9)." in message
    assert f"1 of 4 videos have no caption file: {names[2]}.txt" in message
    assert f"1 of 4 videos have no picture of the same name among the start frames: {names[3]}.mp4" in message
    assert f"other.png (nearest: {names[3]}.mp4)" in message


def test_only_the_first_ten_are_named(tmp_path):
    folder = tmp_path / "many"
    draw_example_clips(folder, tmp_path / "starts", count=12, size=16, frames=5)
    with pytest.raises(DataError, match=r"12 of 12 videos are too short.* \(5 of 9\) and 2 more\. Remove them"):
        scan_dataset(dataset(folder))


@pytest.mark.parametrize("extraction", ["middle", "random", "multiple"])
def test_start_frames_need_the_first_clip(drawn, extraction):
    message = faults_of(drawn, num_frames=5, clip_extraction=extraction)
    assert f"clip_extraction '{extraction}'" in message and "Choose first" in message


def test_one_folder_for_both_is_refused(drawn):
    assert "are the same folder" in faults_of((drawn[0], drawn[0]))


def test_missing_and_empty_folders_are_named(tmp_path):
    with pytest.raises(DataError, match=r"videos folder .*nowhere' does not exist"):
        scan_dataset(dataset(tmp_path / "nowhere"))
    (tmp_path / "sub").mkdir()
    with pytest.raises(DataError, match="holds no videos, and no sub-folders of pictures"):
        scan_dataset(dataset(tmp_path))
    draw_example_clips(tmp_path / "clips", tmp_path / "starts", count=1)
    (tmp_path / "none").mkdir()
    assert "holds no pictures" in faults_of((tmp_path / "clips", tmp_path / "none"))


def test_videos_without_captions_are_refused(drawn):
    with pytest.raises(DataError, match="caption_strategy 'none'"):
        scan_dataset(dataset(drawn[0], caption_strategy="none"))


def test_warns_of_slow_videos_and_of_other_aspects(drawn):
    clips, starts = drawn
    name = next(starts.iterdir()).stem
    write_video(clips / f"{name}.mp4", [Image.new("RGB", (64, 64))] * 9, 10)
    Image.new("RGB", (80, 64)).save(starts / f"{name}.png")
    slow, aspect = both(drawn).warnings
    assert "1 of 4 videos have fewer frames per second than the 15" in slow and f"{name}.mp4 (10.00)" in slow
    assert "1 of 4 start frames have another aspect than their videos" in aspect and "80x64, video 64x64" in aspect


def test_two_videos_of_one_name_are_refused(drawn):
    name = next(drawn[1].iterdir()).stem
    write_video(drawn[0] / f"{name}.mkv", [Image.new("RGB", (64, 64))] * 9, 15)
    assert f"{name}.mkv = {name}.mp4" in faults_of(drawn)


def test_the_stages_before_the_caches_take_videos_like_pictures(drawn):
    clips, starts = drawn
    frames = dataset(starts, dataset_type="conditioning", caption_strategy="none")
    assert pair_datasets(dataset(clips), frames) == both(drawn)
    assert scan_dataset(dataset(clips, is_i2v=True)).records == scan_dataset(dataset(clips, is_i2v=True)).records
    for start, own in zip(both(drawn).records, scan_dataset(dataset(clips, is_i2v=True)).records, strict=True):
        assert (start.is_i2v, own.is_i2v) == (True, True) and own.references == ()
    assert not any(record.is_i2v for record in scan_dataset(dataset(clips)).records)


@pytest.mark.parametrize(
    ("changes", "words"), [({"dataset_type": "image"}, "must be 'conditioning'"), ({}, "must be 'conditioning'")]
)
def test_start_frames_of_another_type_are_refused(drawn, changes, words):
    with pytest.raises(DataError, match=words):
        pair_datasets(dataset(drawn[0]), dataset(drawn[1], **changes))


def test_the_report_shows_the_videos_own_rates(drawn, tmp_path):
    fast = tmp_path / "fast"
    fast.mkdir()
    write_video(fast / "a.mp4", [Image.new("RGB", (64, 64))] * 40, 30)
    (fast / "a.txt").write_text("nothing", encoding="utf-8")
    joined = join_sets([both(drawn), scan_dataset(dataset(fast, num_frames=13))])
    assert describe(joined).splitlines() == [
        "5 clips in 2 buckets:",
        "  64x64@9: 4",
        "  64x64@13: 1",
        "Videos: 4 at 15 frames per second, 1 at 30 frames per second; 9 to 40 frames."
        " Clips are taken at 15 per second.",
        "Image-to-video: 4 clips continue a start frame of the other folder.",
    ]


def test_the_sheet_shows_start_middle_and_last_frame(tmp_path):
    clips, starts = tmp_path / "clips", tmp_path / "starts"
    clips.mkdir()
    starts.mkdir()
    colours = ["red"] * 4 + ["lime"] + ["blue"] * 4
    write_video(clips / "a.mp4", [Image.new("RGB", (64, 64), colour) for colour in [*colours, "white"]], 15)
    (clips / "a.txt").write_text("three colours", encoding="utf-8")
    Image.new("RGB", (64, 64), "yellow").save(starts / "a.png")

    def shown(found):
        sheet, _ = contact_sheet(found)
        y = sheet.height - MARGIN - CELL // 2
        cells = [sheet.getpixel((MARGIN + column * (CELL + MARGIN) + CELL // 2, y)) for column in range(3)]
        return ["".join("x" if value > 127 else "." for value in cell) for cell in cells]

    assert shown(scan_dataset(dataset(clips))) == ["x..", ".x.", "..x"]
    frames = dataset(starts, dataset_type="conditioning", caption_strategy="none")
    assert shown(pair_datasets(dataset(clips), frames)) == ["xx.", ".x.", "..x"]
