"""Frame counts fit the VAE, and are only ever cut down."""

import pytest
from comfyui_longcat.training.data.buckets import bucket_choices, nearest_bucket
from comfyui_longcat.training.data.video_buckets import VideoBucket, clip_frames
from comfyui_longcat.training.errors import ConfigError
from comfyui_longcat.training.settings.dataset import DatasetConfig
from comfyui_longcat.training.settings.geometry import check_frames, cut_down

# Height x width on the grid of 64 (meituan-longcat/LongCat-Video: longcat_video/utils/bukcet_config.py), up to 2:1.
OFFICIAL_480P = {(448, 896), (512, 768), (576, 704), (640, 640), (704, 576), (768, 512), (832, 448), (896, 448)}


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
