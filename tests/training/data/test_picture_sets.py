"""Pairing two folders: exact stems, natural order, and every fault told at once."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from comfyui_longcat.training.data.folder import folder_fingerprint
from comfyui_longcat.training.data.sets import pair_datasets
from comfyui_longcat.training.errors import DataError
from comfyui_longcat.training.files import state_of
from comfyui_longcat.training.settings.dataset import DatasetConfig
from PIL import Image

CHINESE = "\u84dd\u8272\u8fb9\u6846"


class Folders:
    """A targets and a references folder, filled by hand."""

    def __init__(self, root: Path) -> None:
        self.targets, self.references = root / "targets", root / "references"
        self.targets.mkdir()
        self.references.mkdir()

    def add_target(self, name: str, size: tuple[int, int] = (64, 64), caption: str | None = "edit it") -> Path:
        path = self.targets / name
        Image.new("RGB", size, "red").save(path)
        if caption is not None:
            path.with_suffix(".txt").write_text(caption, encoding="utf-8")
        return path

    def add_reference(self, name: str, size: tuple[int, int] = (64, 64)) -> Path:
        path = self.references / name
        Image.new("RGB", size, "blue").save(path)
        return path

    def add_pairs(self, *stems: str) -> None:
        for stem in stems:
            self.add_target(f"{stem}.png")
            self.add_reference(f"{stem}.png")

    def pair(self, **settings):
        targets = DatasetConfig(instance_data_dir=str(self.targets), **{"resolution": "64", **settings})
        return pair_datasets(targets, self.references_config())

    def references_config(self) -> DatasetConfig:
        return DatasetConfig(
            id="refs", instance_data_dir=str(self.references), dataset_type="conditioning", caption_strategy="none"
        )

    def refused(self, **settings) -> str:
        with pytest.raises(DataError) as caught:
            self.pair(**settings)
        return str(caught.value)


@pytest.fixture
def folders(tmp_path):
    return Folders(tmp_path)


def test_pairs_by_stem_whatever_the_suffix(folders):
    folders.add_target(f"{CHINESE}.PNG", caption=f"\ufeff {CHINESE}\n")
    folders.add_reference(f"{CHINESE}.jpeg")
    folders.add_target("photo.v2.webp", caption="edit it")
    folders.add_reference("photo.v2.TIF")
    records = folders.pair().records
    assert [record.name for record in records] == ["photo.v2", CHINESE]
    assert records[1].target.name == f"{CHINESE}.PNG"
    assert [path.name for path in records[1].references] == [f"{CHINESE}.jpeg"]
    assert [record.caption for record in records] == ["edit it", CHINESE]


def test_order_is_natural(folders):
    folders.add_pairs("p10", "p9", "p1", "P2", "p01")
    assert [record.name for record in folders.pair().records] == ["p01", "p1", "P2", "p9", "p10"]


def test_bucket_is_the_target_s(folders):
    folders.add_target("wide.png", size=(320, 180))
    folders.add_reference("wide.png", size=(180, 320))
    assert folders.pair(resolution="1024").records[0].bucket == (1344, 768)
    assert folders.pair(resolution="512", aspect_bucket_alignment=128).records[0].bucket == (640, 384)


def test_bucket_of_a_turned_photo(folders):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (320, 180)).save(folders.add_target("turned.jpg"), exif=exif)
    folders.add_reference("turned.jpg")
    assert folders.pair(resolution="1024").records[0].bucket == (768, 1344)


def test_ignores_hidden_files_sub_folders_and_other_files(folders):
    folders.add_pairs("a")
    folders.add_target(".hidden.png", caption=None)
    (folders.targets / "notes.md").write_text("no picture", encoding="utf-8")
    (folders.references / "a.txt").write_bytes(b"\xff ignored: references need no caption")
    (folders.targets / "deeper.png").mkdir()
    Image.new("RGB", (64, 64)).save(folders.targets / "deeper.png" / "b.png")
    assert [record.name for record in folders.pair().records] == ["a"]


def test_unmatched_names_on_both_sides(folders):
    folders.add_pairs("001", "002")
    folders.add_target("sunset.png")
    folders.add_reference("sunsett.jpg")
    folders.add_reference("other.jpg")
    message = folders.refused()
    assert "1 of 3 targets have no picture of the same name among the references" in message
    assert "sunset.png (nearest: sunsett.jpg)" in message
    assert "2 of 4 references have no picture of the same name among the targets" in message
    assert "other.jpg (nearest: sunset.png)" in message
    assert f"{folders.targets} holds 3 targets: 001.png, 002.png, sunset.png" in message
    assert f"{folders.references} holds 4 references: 001.png, 002.png, other.jpg, sunsett.jpg" in message
    assert "Rename" in message


def test_case_of_a_name_counts(folders):
    folders.add_target("Photo.png")
    folders.add_reference("photo.png")
    assert "Photo.png (nearest: photo.png)" in folders.refused()


def test_long_lists_show_ten_names_and_the_count(folders):
    folders.add_pairs("shared")
    for number in range(1, 15):
        folders.add_target(f"t{number}.png")
    message = folders.refused()
    assert "14 of 15 targets" in message and "and 4 more" in message
    assert "t10.png (nearest" in message and "t11.png (nearest" not in message


def test_missing_empty_and_undecodable_captions(folders):
    folders.add_pairs("a", "b", "c", "d")
    (folders.targets / "a.txt").unlink()
    (folders.targets / "b.txt").write_text(" \n", encoding="utf-8")
    (folders.targets / "c.txt").write_bytes("caf\u00e9".encode("latin-1"))
    message = folders.refused()
    assert "1 of 4 targets have no caption file: a.txt" in message
    assert "2 of 3 caption files cannot be used" in message
    assert f"{folders.targets / 'b.txt'} is empty" in message
    assert f"{folders.targets / 'c.txt'} is not UTF-8 text" in message


def test_unreadable_pictures_are_named_on_both_sides(folders):
    folders.add_pairs("a", "b", "c")
    (folders.targets / "a.png").write_bytes(b"no picture")
    (folders.references / "b.png").write_bytes(b"")
    message = folders.refused()
    assert "1 of 3 targets cannot be read" in message and str(folders.targets / "a.png") in message
    assert "1 of 3 references cannot be read" in message and str(folders.references / "b.png") in message


def test_two_files_of_one_stem(folders):
    folders.add_pairs("a", "b")
    folders.add_target("a.jpg")
    folders.add_reference("b.webp")
    message = folders.refused()
    assert "a.jpg = a.png" in message and "b.png = b.webp" in message
    assert "Keep one file of each name" in message


def test_all_kinds_of_fault_come_in_one_message(folders):
    folders.add_pairs("a", "b", "c")
    (folders.targets / "a.txt").unlink()
    (folders.references / "b.png").write_bytes(b"")
    folders.add_target("c.jpg")
    folders.add_reference("alone.png")
    message = folders.refused()
    for part in ("no caption file: a.txt", "b.png cannot be read", "c.jpg = c.png", "alone.png (nearest", "4 reasons"):
        assert part in message


def test_empty_folders(folders):
    folders.add_pairs("a")
    (folders.references / "a.png").unlink()
    (folders.references / "inner").mkdir()
    message = folders.refused()
    assert f"The references folder {folders.references} holds no pictures" in message
    assert "holds no pictures. Put them" in message and "inner" not in message


def test_missing_folder_and_wrong_types(folders):
    targets = DatasetConfig(id="mine", instance_data_dir=str(folders.targets), dataset_type="conditioning")
    references = DatasetConfig(id="theirs", instance_data_dir=str(folders.references / "gone"), dataset_type="image")
    with pytest.raises(DataError) as caught:
        pair_datasets(targets, references)
    message = str(caught.value)
    assert "'mine'" in message and "must be 'image'" in message
    assert "'theirs'" in message and "must be 'conditioning'" in message
    assert "gone" in message and "does not exist" in message


def test_targets_need_instructions(folders):
    folders.add_pairs("a")
    assert "caption_strategy 'none'" in folders.refused(caption_strategy="none")


def with_captions(folders, **settings):
    return replace(folders.references_config(), **settings)


def paired(folders, references, **settings):
    targets = DatasetConfig(instance_data_dir=str(folders.targets), resolution="64", **settings)
    return pair_datasets(targets, references)


def test_captions_of_references_replace_the_instructions_with_a_warning(folders):
    folders.add_pairs("a", "b", "c")
    (folders.references / "b.txt").write_text("the caption of b", encoding="utf-8")
    dataset = paired(folders, with_captions(folders, caption_strategy="textfile"))
    assert [record.caption for record in dataset.records] == ["edit it", "the caption of b", "edit it"]
    (warning,) = dataset.warnings
    assert warning.startswith("1 of 3 references (dataset 'refs') have captions, and these replace the instructions")
    assert "caption_strategy to 'none'" in warning
    quiet = paired(folders, folders.references_config())
    assert {record.caption for record in quiet.records} == {"edit it"}
    assert [warning.partition(": ")[2] for warning in quiet.warnings] == [
        "b.txt (1 caption files: caption_strategy none does not read them)."
    ]


def test_a_strategy_without_captions_replaces_nothing(folders):
    folders.add_pairs("a")
    for strategy in ("textfile", "json", "csv"):
        dataset = paired(folders, with_captions(folders, caption_strategy=strategy))
        assert dataset.records[0].caption == "edit it" and not dataset.warnings


def test_captions_of_references_may_be_the_only_ones(folders):
    folders.add_pairs("a_b", "c")
    named = with_captions(folders, caption_strategy="filename")
    assert [r.caption for r in paired(folders, named, caption_strategy="none").records] == ["a b", "c"]
    (folders.references / "c.txt").write_text("only c", encoding="utf-8")
    partly = with_captions(folders, caption_strategy="textfile")
    with pytest.raises(DataError, match=r"1 of 2 targets have no caption: a_b\.png .*another caption_strategy"):
        paired(folders, partly, caption_strategy="none")


def test_faulty_captions_of_references_are_told_with_the_others(folders):
    folders.add_pairs("a", "b")
    (folders.references / "b.txt").write_bytes(b"\xff")
    (folders.targets / "a.txt").unlink()
    with pytest.raises(DataError) as caught:
        paired(folders, with_captions(folders, caption_strategy="textfile"))
    assert "for 2 reasons" in str(caught.value) and f"{folders.references / 'b.txt'} is not UTF-8" in str(caught.value)


def test_one_folder_for_both_sides_also_through_a_link(folders, tmp_path):
    folders.add_pairs("a")
    link = tmp_path / "link"
    link.symlink_to(folders.references)
    folders.targets = link
    assert "the same folder" in folders.refused()


def test_a_broken_link_is_named(folders):
    folders.add_pairs("a")
    (folders.targets / "b.png").symlink_to(folders.targets / "gone.png")
    (folders.targets / "b.txt").write_text("edit it", encoding="utf-8")
    folders.add_reference("b.png")
    assert f"{folders.targets / 'b.png'} is not there" in folders.refused()


def test_fingerprint_changes_with_the_folder(folders):
    assert folder_fingerprint(folders.targets) == folder_fingerprint(folders.targets / "gone")
    path = folders.add_target("a.png")
    seen = [folder_fingerprint(folders.targets)]
    assert folder_fingerprint(folders.targets) == seen[0]
    os.utime(path, ns=(1, 1))
    seen.append(folder_fingerprint(folders.targets))
    path.with_suffix(".txt").write_text("another", encoding="utf-8")
    seen.append(folder_fingerprint(folders.targets))
    path.rename(path.with_name("b.png"))
    seen.append(folder_fingerprint(folders.targets))
    assert len(set(seen)) == 4


def test_a_file_replaced_by_one_of_the_same_size_and_time_is_noticed(folders):
    folder = folders.targets / "sub"
    folder.mkdir()
    path = folder / "a.bmp"
    Image.new("RGB", (64, 64), "red").save(path)
    Image.new("RGB", (64, 64), "blue").save(folders.references / "b.bmp")
    state, before = path.stat(), folder_fingerprint(folder)
    outer = folder_fingerprint(folders.targets), folder_fingerprint(folders.targets, subfolders=True)
    assert folder_fingerprint(folder) == before
    path.write_bytes((folders.references / "b.bmp").read_bytes())
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (state.st_size, state.st_mtime_ns)
    assert folder_fingerprint(folder) != before
    assert folder_fingerprint(folders.targets) == outer[0]
    assert folder_fingerprint(folders.targets, subfolders=True) != outer[1]


def test_content_alone_shows_a_replaced_file(folders):
    """On Windows no time does: ctime is that of creation."""
    path = folders.targets / "a.bmp"
    states = []
    for colour in ("red", "red", "blue"):
        Image.new("RGB", (64, 64), colour).save(path)
        states.append(state_of(path)[-1])
    assert states[0] == states[1] != states[2]
