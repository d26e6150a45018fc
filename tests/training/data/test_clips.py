"""Which clips are taken, at which times their frames lie, and that a start frame is cropped like its clip."""

from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from comfyui_longcat.training.data.clips import Clip, choose_clips, iterate_pictures, read_clip
from comfyui_longcat.training.data.media import to_pixels
from comfyui_longcat.training.data.video_files import VideoInfo, probe_video
from comfyui_longcat.training.errors import ConfigError, DataError
from comfyui_longcat.training.settings.dataset import ClipConfig
from PIL import Image


def write(path, count, fps, size=(32, 32)):
    """Frame n is grey of level 4 n, lossless."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=Fraction(fps).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = *size, "bgr0"
        for number in range(count):
            container.mux(stream.encode(av.VideoFrame.from_image(Image.new("RGB", size, (4 * number,) * 3))))
        container.mux(stream.encode())
    return path


def numbers(path, start, frames, fps):
    return [picture.getpixel((0, 0))[0] // 4 for picture in iterate_pictures(path, start, frames, fps)]


def video(frames, fps=15):
    return VideoInfo(size=(64, 64), frames=frames, last=Fraction(frames - 1) / Fraction(fps))


# Frame rate of the file, its frames -> which of them are seen at 15 per second.
RESAMPLED = [
    (15, 9, list(range(9))),
    (30, 17, list(range(0, 17, 2))),
    (30, 18, list(range(0, 18, 2))),
    (60, 33, list(range(0, 33, 4))),
    (24, 15, [0, 2, 3, 5, 6, 8, 10, 11, 13, 14]),
    (10, 6, [0, 1, 1, 2, 3, 3, 4, 5]),
    (29.97, 17, list(range(0, 17, 2))),
]


@pytest.mark.parametrize(("fps", "count", "expected"), RESAMPLED)
def test_resampled_to_the_nearest_frames(tmp_path, fps, count, expected):
    path = write(tmp_path / "clip.mkv", count, fps)
    assert probe_video(path).frames_at(Fraction(15)) == len(expected)
    assert numbers(path, 0, len(expected), 15) == expected


@pytest.mark.parametrize("fps", [15, 24, 25, 29.97, 60])
@pytest.mark.parametrize("start", [1, 7, 11])
def test_a_later_clip_equals_that_part_of_the_whole(tmp_path, fps, start):
    path = write(tmp_path / "clip.mkv", 50, fps)
    whole = numbers(path, 0, probe_video(path).frames_at(Fraction(15)), 15)
    assert len(whole) >= 12
    assert numbers(path, start, len(whole) - start, 15) == whole[start:]


def test_a_clip_beyond_the_end_is_refused(tmp_path):
    path = write(tmp_path / "clip.mkv", 20, 15)
    with pytest.raises(DataError, match=r"clip\.mkv ends after 20 frames at 15 per second; the clip needs 21"):
        numbers(path, 12, 9, 15)


def test_pixels_of_a_clip(tmp_path):
    path = write(tmp_path / "clip.mkv", 12, 15, size=(60, 32))
    pixels = read_clip(path, 2, 9, 15, (48, 32))
    assert (pixels.shape, pixels.dtype) == ((1, 3, 9, 32, 48), torch.float32)
    expected = torch.tensor([4.0 * number / 127.5 - 1 for number in range(2, 11)])
    assert torch.allclose(pixels, expected.view(1, 1, 9, 1, 1).expand_as(pixels), atol=1e-6)


@pytest.mark.parametrize("crop", [(0.5, 0.5), (0.0, 0.0), (0.25, 0.9)])
def test_a_start_frame_is_cropped_like_its_clip(tmp_path, crop):
    generator = np.random.default_rng(0)
    picture = Image.fromarray(generator.integers(0, 255, (48, 80, 3), dtype=np.uint8))
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(5):
        picture.save(folder / f"{number}.png")
    pixels = read_clip(folder, 0, 5, 15, (48, 48), crop)
    start = to_pixels(picture, (48, 48), crop)
    assert all(torch.equal(pixels[:, :, index], start) for index in range(5))
    assert torch.equal(start, to_pixels(picture, (48, 48))) == (crop == (0.5, 0.5))


@pytest.mark.parametrize(
    ("extraction", "available", "starts"),
    [
        ("first", 100, [0]),
        ("middle", 100, [3]),
        ("middle", 93, [0]),
        ("multiple", 185, [0]),
        ("multiple", 186, [0, 93]),
        ("multiple", 300, [0, 93, 186]),
    ],
)
def test_where_clips_lie(extraction, available, starts):
    clips = choose_clips(video(available), ClipConfig(clip_extraction=extraction), "a")
    assert clips == tuple(Clip(start=start, frames=93, fps=15.0) for start in starts)


def test_random_clips_stay_inside_and_in_their_place():
    config = ClipConfig(num_frames=9, clip_extraction="random")
    starts = [choose_clips(video(19), config, f"video {n}")[0].start for n in range(200)]
    assert set(starts) == set(range(11))
    assert starts == [choose_clips(video(19), config, f"video {n}")[0].start for n in range(200)]


def test_short_videos_give_no_clip_or_a_shorter_one():
    assert choose_clips(video(60), ClipConfig(), "a") == ()
    assert choose_clips(video(60), ClipConfig(min_frames=49), "a") == (), "aspect_ratio: one length for all"
    several = ClipConfig(bucket_strategy="resolution_frames", min_frames=49)
    assert [clip.frames for clip in choose_clips(video(60), several, "a")] == [57]
    assert choose_clips(video(48), several, "a") == ()
    assert choose_clips(video(92), ClipConfig(bucket_strategy="resolution_frames"), "a") == ()


def test_frames_of_a_fast_video_are_counted_at_the_trained_rate():
    assert choose_clips(video(184, fps=30), ClipConfig(), "a") == ()
    assert choose_clips(video(186, fps=30), ClipConfig(), "a") != ()


@pytest.mark.parametrize("settings", [{"num_frames": 92}, {"fps": 0.0}, {"clip_extraction": "last"}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        ClipConfig(**settings)
