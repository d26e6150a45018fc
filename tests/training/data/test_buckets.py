"""Aspect buckets: the official table at 1024 px, nearest aspect, never over the area."""

import pytest
from comfyui_longcat.training.data.buckets import LARGEST_ASPECT, bucket_choices, bucket_for, buckets, nearest_bucket
from comfyui_longcat.training.settings.dataset import DatasetConfig

# meituan-longcat/LongCat-Image: longcat_image/dataset/data_utils.py; it has the turned twins too, but for 1344x704.
OFFICIAL = {
    *((704, 1408), (704, 1344), (768, 1344), (768, 1280), (832, 1216), (832, 1152), (896, 1152), (896, 1088)),
    *((960, 1088), (960, 1024), (1024, 1024)),
}


def test_1024_px_gives_the_official_buckets():
    assert set(buckets(1024)) == OFFICIAL | {(height, width) for width, height in OFFICIAL}


@pytest.mark.parametrize(
    ("width", "height", "resolution", "expected"),
    [
        (500, 500, 768, (768, 768)),
        (4000, 4000, 1024, (1024, 1024)),
        (64, 64, 64, (64, 64)),
        (4000, 3000, 1024, (1152, 896)),
        (3000, 4000, 1024, (896, 1152)),
        (1920, 1080, 1024, (1344, 768)),
        (1920, 1080, 768, (1024, 576)),
        (2000, 1000, 1024, (1408, 704)),
        (600, 400, 64, (64, 64)),
        (640, 640, 480, (448, 448)),
        (101, 100, 768, (768, 768)),
    ],
)
def test_bucket_of_a_picture(width, height, resolution, expected):
    assert bucket_for(width, height, resolution, 64) == expected


@pytest.mark.parametrize("resolution", [64, 96, 256, 480, 512, 768, 1024, 1536])
@pytest.mark.parametrize("alignment", [64, 128])
def test_every_bucket_keeps_grid_area_and_aspect(resolution, alignment):
    found = buckets(resolution, alignment)
    for width, height in found:
        assert width % alignment == height % alignment == 0 and min(width, height) >= alignment
        assert width * height <= max(resolution, alignment) ** 2
        assert max(width, height) <= LARGEST_ASPECT * min(width, height)
        assert (height, width) in found


def test_portrait_is_the_turned_landscape():
    for width, height in ((3, 2), (5, 4), (16, 9), (7, 5), (21, 9)):
        assert bucket_for(height, width, 768) == bucket_for(width, height, 768)[::-1]


def test_very_long_pictures_are_clamped():
    assert bucket_for(10_000, 10, 1024) == (1408, 704)
    assert bucket_for(10, 10_000, 1024) == (704, 1408)


def chosen(picture, **settings):
    """The buckets of one picture of (width, height) px, one for each resolution."""
    return [nearest_bucket(*picture, choices) for choices in bucket_choices(DatasetConfig(**settings))]


WIDE, TALL, SQUARE = (1920, 1080), (1080, 1920), (1000, 1000)


@pytest.mark.parametrize(
    ("picture", "settings", "expected"),
    [
        (WIDE, {"resolution": "512,1024"}, [bucket_for(*WIDE, 512), (1344, 768)]),
        (WIDE, {"resolution": "1024,512"}, [(1344, 768), bucket_for(*WIDE, 512)]),
        (WIDE, {"resolution": "1", "resolution_type": "area"}, [(1344, 768)]),
        (WIDE, {"resolution": "768", "resolution_type": "pixel"}, [(1344, 768)]),
        (TALL, {"resolution": "768", "resolution_type": "pixel"}, [(768, 1344)]),
        (SQUARE, {"resolution": "768", "resolution_type": "pixel"}, [(768, 768)]),
        ((9000, 1000), {"resolution": "720", "resolution_type": "pixel"}, [(1408, 704)]),
        # Sizes of about one area are alternatives, taken exactly, lying or standing.
        (WIDE, {"resolution": "1024x1024,1344x768"}, [(1344, 768)]),
        (TALL, {"resolution": "1024x1024,1344x768"}, [(768, 1344)]),
        (SQUARE, {"resolution": "1024x1024,1344x768"}, [(1024, 1024)]),
        (WIDE, {"resolution": "480x832"}, [(832, 480)]),
        (SQUARE, {"resolution": "512x512,1024x1024"}, [(1024, 1024), (512, 512)]),
        (WIDE, {"resolution": "512x512,768"}, [bucket_for(*WIDE, 768), (512, 512)]),
        (WIDE, {"resolution": "768,1008", "crop_aspect": "square"}, [(768, 768), (960, 960)]),
        (WIDE, {"resolution": "64"}, [(64, 64)]),
        (WIDE, {"resolution": "512", "aspect_bucket_alignment": 128}, [bucket_for(*WIDE, 512, 128)]),
    ],
)
def test_buckets_of_a_datasets_resolutions(picture, settings, expected):
    assert chosen(picture, **settings) == expected
