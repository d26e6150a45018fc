"""Grids of pictures: where what stands, and no text that breaks them."""

from dataclasses import replace

import numpy as np
import pytest
from comfyui_longcat.training.data import contact_sheet as module
from comfyui_longcat.training.data.contact_sheet import CAPTION_WIDTH, CELL, MARGIN, image_grid
from comfyui_longcat.training.data.sets import pair_datasets, scan_dataset, without_files
from comfyui_longcat.training.settings.dataset import DatasetConfig
from comfyui_longcat.training.tiny.examples import draw_example_pairs
from comfyui_longcat.training.tiny.world import COLOURS
from PIL import Image

BLUE = COLOURS["blue"]
EDGE = 1
"""Px from a picture's left side: inside the border of the examples, and so far from its inner edge that enlarging does
not blur it."""

CHINESE = "\u5728\u56fe\u7247\u56db\u5468\u52a0\u4e0a\u84dd\u8272\u8fb9\u6846"


@pytest.fixture
def dataset(tmp_path):
    targets, references = tmp_path / "targets", tmp_path / "references"
    draw_example_pairs(targets, references, count=4)
    return pair_datasets(
        DatasetConfig(instance_data_dir=str(targets), resolution="64"),
        DatasetConfig(instance_data_dir=str(references), dataset_type="conditioning"),
    )


def contact_sheet(dataset, **limit):
    return module.contact_sheet(dataset, **limit)[0]


def dark(sheet, box):
    return int((np.array(sheet.crop(box).convert("L")) < 128).sum())


def test_rows_are_reference_target_instruction(dataset):
    sheet = contact_sheet(dataset, limit=3)
    assert sheet.mode == "RGB"
    top = sheet.height - 3 * (CELL + MARGIN)
    for row in range(3):
        y = top + row * (CELL + MARGIN)
        reference_edge, target_edge = (
            sheet.getpixel((MARGIN + EDGE, y + 96)),
            sheet.getpixel((2 * MARGIN + CELL + EDGE, y + 96)),
        )
        assert target_edge == BLUE and reference_edge != target_edge
        assert dark(sheet, (3 * MARGIN + 2 * CELL, y, sheet.width, y + CELL)) > 100
    assert contact_sheet(dataset).height - sheet.height == CELL + MARGIN


def test_shows_the_crop_of_the_bucket(dataset):
    wide = Image.new("RGB", (300, 100), "red")
    wide.paste("lime", (100, 0, 200, 100))
    wide.save(dataset.records[0].target)
    top = contact_sheet(dataset, limit=1).height - CELL - MARGIN
    target = (2 * MARGIN + CELL + 24, top, 2 * MARGIN + 2 * CELL - 24, top + CELL)
    assert (np.array(contact_sheet(dataset, limit=1).crop(target)) == (0, 255, 0)).all()


def test_a_captioned_folder_has_no_column_of_references(dataset):
    captioned = scan_dataset(dataset.sources[0].targets)
    sheet = contact_sheet(captioned, limit=2)
    assert sheet.width == contact_sheet(dataset, limit=2).width - CELL - MARGIN
    top = sheet.height - 2 * (CELL + MARGIN)
    assert sheet.getpixel((MARGIN + EDGE, top + 96)) == BLUE, "the target stands first"
    mixed = replace(dataset, records=(*dataset.records[:1], *captioned.records[:1]))
    sheet = contact_sheet(mixed)
    assert sheet.width == contact_sheet(dataset).width
    below = sheet.height - CELL - MARGIN + 96
    assert sheet.getpixel((MARGIN + EDGE, below)) == (255, 255, 255), "an empty place"
    assert sheet.getpixel((2 * MARGIN + CELL + EDGE, below)) == BLUE


def test_a_damaged_picture_is_named(dataset):
    target = dataset.records[2].target
    target.write_bytes(b"")
    assert module.contact_sheet(dataset, limit=2)[1] == {}
    sheet, unreadable = module.contact_sheet(dataset)
    assert list(unreadable) == [target] and target.name in unreadable[target]
    assert sheet.height == contact_sheet(dataset, limit=len(dataset.records) - 1).height, "the others are shown"
    sound = without_files(dataset, unreadable)
    assert [record.name for record in sound.records] == [r.name for r in dataset.records if r.target != target]
    (fault,) = sound.faults
    assert fault.startswith(f"1 of {2 * len(dataset.records)} files cannot be decoded:") and target.name in fault


def test_grid_of_any_columns_and_ragged_rows():
    red, blue = Image.new("RGB", (10, 10), "red"), Image.new("L", (20, 10), 0)
    sheet = image_grid([[red, red, red, blue], [blue]], ("a", "b", "c", "d"), cell=64)
    assert sheet.width == MARGIN + 4 * (64 + MARGIN)
    top = sheet.height - 2 * (64 + MARGIN)
    assert sheet.getpixel((MARGIN + 2 * (64 + MARGIN) + 5, top + 5)) == (255, 0, 0)
    # The wide one keeps its aspect, so paper shows above it.
    assert sheet.getpixel((MARGIN + 3 * (64 + MARGIN) + 5, top + 5)) == (255, 255, 255)
    assert sheet.getpixel((MARGIN + 3 * (64 + MARGIN) + 5, top + 32)) == (0, 0, 0)
    assert image_grid([[red]], row_captions=["text"]).width == 2 * MARGIN + CELL + CAPTION_WIDTH + MARGIN


def test_captions_stay_beside_their_row():
    picture = Image.new("RGB", (8, 8), "white")
    long = "replace the sky with a dramatic sunset " * 30 + "x" * 500
    sheet = image_grid([[picture], [picture]], ("one",), (long, ""), cell=96)
    top = sheet.height - 2 * (96 + MARGIN)
    left = 2 * MARGIN + 96
    assert dark(sheet, (left, top, left + CAPTION_WIDTH, top + 96)) > 500
    assert dark(sheet, (left + CAPTION_WIDTH + 1, 0, sheet.width, sheet.height)) == 0
    assert dark(sheet, (left, top + 96 + 6, sheet.width, sheet.height)) == 0


def test_words_stay_whole_and_chinese_wraps_anywhere():
    font = module._font_for("a")
    lines = module._wrap("one two three four five six seven eight nine", font, 120)
    assert len(lines) > 2 and " ".join(lines) == "one two three four five six seven eight nine"
    wide = module._font_for(CHINESE)
    lines = module._wrap(CHINESE * 4, wide, 120)
    assert len(lines) > 2 and "".join(lines) == CHINESE * 4
    assert all(wide.getlength(line) <= 120 for line in lines)


@pytest.mark.parametrize(
    "text", [CHINESE, "\U0001f600 \u0416\u05d0\u0e01", "tab\tand\x07bell\n\nline", "", "\ud800 lone"]
)
@pytest.mark.parametrize("fonts", [module.WIDE_FONTS, ("no-such-font.ttf",)])
def test_no_text_breaks_the_sheet(monkeypatch, text, fonts):
    monkeypatch.setattr(module, "WIDE_FONTS", fonts)
    module._wide_font.cache_clear()
    try:
        sheet = image_grid([[Image.new("RGB", (8, 8))]], (text,), (text,), cell=32)
    finally:
        module._wide_font.cache_clear()
    assert sheet.size == (2 * MARGIN + 32 + CAPTION_WIDTH + MARGIN, MARGIN + module.TITLE_HEIGHT + 32 + MARGIN)


def test_no_rows_give_a_small_empty_sheet():
    assert image_grid([]).size == (MARGIN, MARGIN)
