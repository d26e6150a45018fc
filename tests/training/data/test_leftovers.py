"""Every file of a data folder is used, known to be harmless, or named with the reason."""

import sys
import types
from pathlib import Path

import pytest
from comfyui_longcat.training.data import media
from comfyui_longcat.training.data.sets import describe, pair_datasets, scan_dataset
from comfyui_longcat.training.data.video_writer import write_video
from comfyui_longcat.training.errors import DataError
from comfyui_longcat.training.settings.dataset import DatasetConfig
from PIL import Image


def picture(path, colour="red"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 64), colour).save(path, format="JPEG" if path.suffix == ".jfif" else None)


def text(path, content="a plain colour"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


def scan(folder, **settings):
    return scan_dataset(DatasetConfig(instance_data_dir=str(folder), **{"resolution": "64", **settings}))


def reasons(dataset, folder):
    """What is said after the folder's name."""
    return [warning.split(f"{folder}: ", 1)[1] for warning in dataset.warnings if warning.startswith("Not used")]


def test_all_that_pillow_decodes_is_read(tmp_path):
    names = ["a.png", "b.jfif", "c.jp2", "d.avif", "e.tga", "f.apng", "g.ppm", "h.JPE"]
    for name in names:
        picture(tmp_path / name)
        text((tmp_path / name).with_suffix(".txt"))
    dataset = scan(tmp_path)
    assert [record.target.name for record in dataset.records] == names and not dataset.warnings


def test_what_starts_programs_or_is_a_document_is_no_picture(tmp_path):
    for suffix in (".eps", ".ps", ".wmf", ".emf", ".pdf", ".svg", ".h5", ".mpg"):
        assert not media.is_picture(Path(f"a{suffix}"))
    picture(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    with pytest.raises(DataError, match=r"b\.png cannot be read as a picture"):
        media.read_image(tmp_path / "b.png")


def test_leftovers_of_a_folder_of_pictures(tmp_path):
    for name in ("p0.png", "more/e.png", "more/f.png"):
        picture(tmp_path / name)
    for name in ("p0.txt", "gone.txt", "p0.caption", "tags.csv", "p0.json", "more/e.txt", "more/f.txt"):
        text(tmp_path / name)
    for name in ("a.heic", "c.jxl", "film.mp4", "notes.docx", "Thumbs.db", "desktop.ini", ".DS_Store", "._p0.png"):
        (tmp_path / name).write_bytes(bytes(20))
    (tmp_path / "aspect_ratio_bucket_indices_a.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    dataset = scan(tmp_path)
    assert [record.name for record in dataset.records] == ["p0"]
    assert sorted(reasons(dataset, tmp_path)) == [
        "a.heic (1 pictures: install pillow-heif (pip install pillow-heif), or save them as PNG or JPEG).",
        "c.jxl (1 pictures: install pillow-jxl-plugin (pip install pillow-jxl-plugin), or save them as PNG or JPEG).",
        "film.mp4 (1 videos: these need a dataset of dataset_type video).",
        "gone.txt (1 caption files: none of the pictures has their name).",
        "more/ (4 files) (1 sub-folders: not read; turn on recursive, or move the files up).",
        "notes.docx (1 files: nothing here reads their kind).",
        "p0.caption, p0.json, tags.csv (3 caption files: caption_strategy textfile does not read them).",
    ]
    assert describe(dataset).count("Warning: Not used") == 7


def test_many_leftovers_are_counted_and_the_first_are_named(tmp_path):
    picture(tmp_path / "a.png")
    text(tmp_path / "a.txt")
    for number in range(25):
        (tmp_path / f"{number:02}.raw").write_bytes(b"")
    (reason,) = reasons(scan(tmp_path), tmp_path)
    assert reason.startswith("00.raw, 01.raw") and reason.endswith(
        "09.raw and 15 more (25 files: nothing here reads their kind)."
    )


def test_leftovers_of_a_folder_of_videos(tmp_path):
    pictures = [Image.new("RGB", (64, 64), (9 * number, 0, 0)) for number in range(8)]
    for name in ("a.mp4", "w.qt", "x.divx"):
        write_video(tmp_path / name, pictures, 15)
    more = {"save_all": True, "append_images": pictures[1:], "duration": 67}
    pictures[0].save(tmp_path / "y.apng", format="PNG", **more)
    pictures[0].save(tmp_path / "z.png", **more)
    picture(tmp_path / "still.png")
    for number in range(5):
        picture(tmp_path / f"frames/{number}.png")
    text(tmp_path / "frames/notes.txt")
    (tmp_path / "sound.wav").write_bytes(b"")
    for name in ("a", "w", "x", "y", "z", "frames", "still"):
        text(tmp_path / f"{name}.txt")
    dataset = scan(tmp_path, dataset_type="video", num_frames=5)
    assert [record.name for record in dataset.records] == ["a", "frames", "w", "x", "y", "z"]
    assert sorted(reasons(dataset, tmp_path)) == [
        "sound.wav (1 files: nothing here reads their kind).",
        "still.png (1 pictures: they do not move; put the pictures of one video into a sub-folder of their own).",
        "still.txt, frames/notes.txt (2 caption files: none of the videos has their name).",
    ]


def test_leftovers_of_references_and_start_frames(tmp_path):
    for side in ("targets", "references"):
        picture(tmp_path / side / "a.png")
        text(tmp_path / side / "a.txt")
    (tmp_path / "references/b.heic").write_bytes(b"")
    sides = [
        DatasetConfig(id=side, instance_data_dir=str(tmp_path / side), resolution="64", **settings)
        for side, settings in (
            ("targets", {}),
            ("references", {"dataset_type": "conditioning", "caption_strategy": "none"}),
        )
    ]
    found = reasons(pair_datasets(*sides), tmp_path / "references")
    assert [reason.split(" (")[0] for reason in found] == ["a.txt", "b.heic"]


def test_an_empty_folder_says_what_it_holds_instead(tmp_path):
    (tmp_path / "a.heic").write_bytes(b"")
    with pytest.raises(DataError, match=r"holds no pictures[\s\S]*a\.heic \(1 pictures: install pillow-heif"):
        scan(tmp_path)


def test_formats_of_plugins_are_read_where_these_are_installed(tmp_path, monkeypatch):
    """A plugin that registers as pillow-heif does, but reads bitmaps."""
    from PIL import BmpImagePlugin

    class Heif(BmpImagePlugin.BmpImageFile):
        format = "HEIF"

    def register():
        Image.register_open("HEIF", Heif, lambda prefix: prefix[:2] == b"BM")
        Image.register_extension("HEIF", ".heic")

    plugin = types.ModuleType("pillow_heif")
    plugin.register_heif_opener = register
    monkeypatch.setitem(sys.modules, "pillow_heif", plugin)
    for name in ("OPEN", "EXTENSION"):
        monkeypatch.setattr(Image, name, dict(getattr(Image, name)))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    media.formats_by_suffix.cache_clear()
    try:
        Image.new("RGB", (64, 64), "lime").save(tmp_path / "a.heic", format="BMP")
        text(tmp_path / "a.txt")
        dataset = scan(tmp_path)
        assert media.read_image(dataset.records[0].target).getpixel((5, 5)) == (0, 255, 0) and not dataset.warnings
    finally:
        monkeypatch.undo()
        media.formats_by_suffix.cache_clear()


def test_sub_folders_are_read_on_request_and_paired_by_place(tmp_path):
    for side, colour in (("targets", "red"), ("references", "blue")):
        for name in ("a", "one/a", "one/deep/b", "two/a"):
            picture(tmp_path / side / f"{name}.png", colour)
            text(tmp_path / side / f"{name}.txt", f"caption of {name}")
    (tmp_path / "targets/one/loop").symlink_to(tmp_path / "targets")
    common = {"resolution": "64", "recursive": True}
    targets = DatasetConfig(id="t", instance_data_dir=str(tmp_path / "targets"), **common)
    references = DatasetConfig(
        id="r",
        instance_data_dir=str(tmp_path / "references"),
        dataset_type="conditioning",
        caption_strategy="none",
        **common,
    )
    records = pair_datasets(targets, references).records
    assert [record.name for record in records] == ["a", "one/a", "one/deep/b", "two/a"]
    assert [record.caption for record in records] == [f"caption of {record.name}" for record in records]
    assert all(
        record.references[0].relative_to(tmp_path / "references") == record.target.relative_to(tmp_path / "targets")
        for record in records
    )
    assert not scan(tmp_path / "targets", recursive=True).warnings
    by_name = scan(tmp_path / "targets", recursive=True, caption_strategy="filename").records
    assert [record.caption for record in by_name] == ["a", "a", "b", "a"]


def test_tables_name_pictures_of_sub_folders_by_their_place(tmp_path):
    for name in ("a.png", "one/a.png"):
        picture(tmp_path / name)
    text(tmp_path / "captions.csv", "filename,caption\na.png,outside\none\\a.png,inside\n")
    records = scan(tmp_path, recursive=True, caption_strategy="csv").records
    assert [(record.name, record.caption) for record in records] == [("a", "outside"), ("one/a", "inside")]


def test_sub_folders_of_videos_and_of_their_pictures(tmp_path):
    pictures = [Image.new("RGB", (64, 64), (9 * number, 0, 0)) for number in range(8)]
    for name in ("a.mp4", "inner/b.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_video(tmp_path / name, pictures, 15)
    for number in range(5):
        picture(tmp_path / f"inner/frames/{number}.png")
    settings = {"dataset_type": "video", "num_frames": 5, "caption_strategy": "filename"}
    dataset = scan(tmp_path, recursive=True, **settings)
    assert [record.name for record in dataset.records] == ["a", "inner/b", "inner/frames"]
    (reason,) = reasons(scan(tmp_path, **settings), tmp_path)
    assert reason.startswith("inner/ (1 files)")
