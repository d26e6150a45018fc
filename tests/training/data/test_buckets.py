"""Buckets: the official table at 1024 px, nearest aspect, never over the area; frames are only ever cut down."""

import pytest
from comfyui_longcat.training.data.buckets import (
    LARGEST_ASPECT,
    VideoBucket,
    bucket_choices,
    bucket_for,
    buckets,
    clip_frames,
    nearest_bucket,
)
from comfyui_longcat.training.errors import ConfigError
from comfyui_longcat.training.settings.dataset import DatasetConfig
from comfyui_longcat.training.settings.geometry import check_frames, cut_down

# meituan-longcat/LongCat-Image: longcat_image/dataset/data_utils.py; it has the turned twins too, but for 1344x704.
OFFICIAL = {
    *((704, 1408), (704, 1344), (768, 1344), (768, 1280), (832, 1216), (832, 1152), (896, 1152), (896, 1088)),
    *((960, 1088), (960, 1024), (1024, 1024)),
}

# Height x width on the grid of 64 (meituan-longcat/LongCat-Video: longcat_video/utils/bukcet_config.py), up to 2:1.
OFFICIAL_480P = {(448, 896), (512, 768), (576, 704), (640, 640), (704, 576), (768, 512), (832, 448), (896, 448)}


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


def test_nearness_is_the_ratio_of_the_aspects():
    # 2.2 lies nearer to 1 than to 4, but further from it as a ratio; the turned picture gets the turned bucket.
    assert nearest_bucket(220, 100, ((64, 64), (256, 64))) == (256, 64)
    assert nearest_bucket(100, 220, ((64, 64), (64, 256))) == (64, 256)


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


@pytest.mark.parametrize(
    ("frames", "expected"),
    [(0, 0), (1, 1), (2, 1), (4, 1), (5, 5), (92, 89), (93, 93), (94, 93), (96, 93), (97, 97)],
)
def test_cut_down_to_4_k_plus_1(frames, expected):
    assert cut_down(frames) == expected


def test_a_coarser_interval_makes_fewer_lengths():
    assert [cut_down(frames, 12) for frames in (12, 13, 24, 25, 93)] == [1, 13, 13, 25, 85]


@pytest.mark.parametrize(
    ("available", "least", "expected"),
    [(500, 93, 93), (93, 93, 93), (92, 93, 0), (92, 49, 89), (52, 49, 49), (48, 49, 0), (0, 1, 0)],
)
def test_frames_of_a_clip_of_93(available, least, expected):
    assert clip_frames(available, 93, least) == expected


def test_num_frames_off_the_interval_are_still_reached():
    assert clip_frames(500, 93, 1, interval=8) == 93


@pytest.mark.parametrize(("frames", "message"), [(92, "Use 89 or 93"), (94, "Use 93 or 97"), (0, "Use 1 or 5")])
def test_other_frame_counts_are_refused_with_their_neighbours(frames, message):
    with pytest.raises(ConfigError, match=rf"num_frames is {frames};.*{message}"):
        check_frames("num_frames", frames)
    check_frames("num_frames", 93)


def test_480x832_by_hand_keeps_its_sides_either_way():
    (choices,) = bucket_choices(DatasetConfig(resolution="832x480"))
    assert nearest_bucket(1920, 1080, choices) == (832, 480)
    assert nearest_bucket(1080, 1920, choices) == (480, 832)


def test_resolution_640_gives_the_official_buckets_of_480p():
    (choices,) = bucket_choices(DatasetConfig(resolution="640"))
    assert {(height, width) for width, height in choices} >= OFFICIAL_480P


def test_a_bucket_is_written_as_in_simpletuner():
    assert str(VideoBucket(832, 480, 93)) == "832x480@93"
