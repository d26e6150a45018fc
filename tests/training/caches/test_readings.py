"""A file that is read in another way than by decoding alone has another key; all others keep theirs."""

import av
import numpy as np
import pytest
from comfyui_longcat.tests.training.data import icc
from comfyui_longcat.training.caches.keys import hash_pictures
from comfyui_longcat.training.data.video_writer import write_video
from comfyui_longcat.training.events import NoCallbacks
from comfyui_longcat.training.files import sha256_of_file
from PIL import Image


def key_of(path, is_video=False):
    return hash_pictures([path], NoCallbacks(), {path} if is_video else ())[path]


def save(path, **settings):
    Image.new("RGB", (64, 64), (60, 160, 90)).save(path, **settings)
    return path


@pytest.mark.parametrize(
    ("profile", "rule"),
    [
        (None, ""),
        (b"this is no profile", ""),
        (icc.rgb_profile(icc.SRGB, "srgb"), ""),
        (icc.rgb_profile(icc.ADOBE, 563 / 256), " ICC profile"),
    ],
)
def test_pictures(tmp_path, profile, rule):
    path = save(tmp_path / "a.png", icc_profile=profile)
    assert key_of(path) == sha256_of_file(path) + rule


def test_pictures_that_are_turned_transparent_or_deep_keep_their_keys(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGBA", (64, 64), (9, 9, 9, 9)).save(tmp_path / "clear.png")
    Image.fromarray(np.full((64, 64), 999, np.uint16)).save(tmp_path / "deep.png")
    save(tmp_path / "turned.jpg", exif=exif)
    for name in ("clear.png", "deep.png", "turned.jpg"):
        assert key_of(tmp_path / name) == sha256_of_file(tmp_path / name)


def clip(path, layout, **tags):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=15)
        stream.width, stream.height, stream.pix_fmt = 64, 64, layout
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame(64, 64, layout)))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("layout", "tags", "rule"),
    [
        ("yuv420p", {}, ""),
        ("yuv420p", {"color_primaries": 6, "color_trc": 6, "colorspace": 6}, ""),
        ("yuv420p", {"color_primaries": 1, "color_trc": 1, "colorspace": 1, "color_range": 2}, ""),
        ("bgr0", {}, ""),
        ("bgra", {}, " alpha"),
        ("yuv420p10le", {"color_primaries": 9, "color_trc": 18, "colorspace": 9}, " BT.2020 HLG"),
    ],
)
def test_clips(tmp_path, layout, tags, rule):
    path = clip(tmp_path / "a.mkv", layout, **tags)
    assert key_of(path, is_video=True) == sha256_of_file(path) + rule


def test_clips_as_they_are_written_here_keep_their_keys(tmp_path):
    path = tmp_path / "a.mp4"
    write_video(path, [Image.new("RGB", (64, 64), (9 * number, 0, 0)) for number in range(5)], 15)
    assert key_of(path, is_video=True) == sha256_of_file(path)


def test_animations_and_folders_of_pictures(tmp_path):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=10)
    assert key_of(tmp_path / "a.gif", is_video=True).endswith(" short delays")
    assert key_of(tmp_path / "a.gif") == sha256_of_file(tmp_path / "a.gif")
    folder = tmp_path / "folder"
    folder.mkdir()
    save(folder / "0.png")
    plain = key_of(folder, is_video=True)
    assert " " not in plain
    save(folder / "1.png", icc_profile=icc.rgb_profile(icc.P3, "srgb"))
    assert key_of(folder, is_video=True).endswith(" ICC profile")
