"""Pictures are cut as their container says."""

import struct

import av
import numpy as np
import pytest
from comfyui_longcat.training.data.clips import iterate_pictures
from comfyui_longcat.training.data.cropping import Cropping, cropping_of
from comfyui_longcat.training.data.video_files import probe_video
from PIL import Image


def write(path, codec="libx264"):
    """64x48: a red picture of 40x32 at (16, 8), black around."""
    picture = Image.new("RGB", (64, 48))
    picture.paste((220, 30, 30), (16, 8, 56, 40))
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=15, options={"qp": "2"} if codec == "libx264" else {})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode())
    return path


def with_clap(path, width, height, across, down):
    """Puts the box behind the first sample entry's own fields, and makes all boxes around it longer."""
    data = path.read_bytes()
    clap = struct.pack(">I4s8i", 40, b"clap", *(part for value in (width, height, across, down) for part in (value, 1)))
    place = data.index(b"avc1", data.index(b"stsd")) - 4 + 86
    grown = bytearray(data[:place] + clap + data[place:])
    around = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1")
    at = data.index(b"moov")
    for name in around:
        at = data.index(name, at)
        struct.pack_into(">I", grown, at - 4, struct.unpack_from(">I", data, at - 4)[0] + len(clap))
    path.write_bytes(grown)


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_a_clean_aperture(tmp_path, suffix):
    path = write(tmp_path / f"a{suffix}")
    assert probe_video(path).reading.rule == ""
    # The middle of what is shown lies 4 px right of the picture's and at its height.
    with_clap(path, 40, 32, 4, 0)
    info = probe_video(path)
    assert (info.size, info.reading.rule) == ((40, 32), "cropped")
    seen = np.asarray(next(iterate_pictures(path, 0, 1, 15)))
    assert seen.shape == (32, 40, 3) and (seen[..., 0] > 150).all()


def element(number, content):
    return (
        number.to_bytes((number.bit_length() + 7) // 8, "big")
        + bytes([0x40 | len(content) >> 8, len(content) & 255])
        + content
    )


@pytest.mark.parametrize("unknown", [False, True])
def test_the_crop_of_matroska(tmp_path, unknown):
    crops = {0x54CC: 16, 0x54BB: 8, 0x54DD: 8, 0x54AA: 9}
    video = element(0xE0, b"".join(element(number, bytes([value])) for number, value in crops.items()))
    sound, film = element(0xAE, element(0x83, b"\2")), element(0xAE, element(0x83, b"\1") + video)
    body = element(0x1549A966, bytes(30)) + element(0x1654AE6B, sound + film)
    start = element(0x1A45DFA3, bytes(9))
    segment = b"\x18\x53\x80\x67" + (b"\x01" + b"\xff" * 7 if unknown else struct.pack(">H", 0x4000 | len(body))) + body
    path = tmp_path / "a.mkv"
    path.write_bytes(start + segment)
    assert cropping_of(path, "matroska,webm", (64, 48)) == Cropping(16, 8, 8, 9)
    # Nothing would be left.
    assert cropping_of(path, "matroska,webm", (20, 48)) == Cropping()


def test_what_is_no_container_is_not_cut(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "a"
    whole = write(tmp_path / "a.mp4").read_bytes()
    for kind in ("matroska,webm", "mov,mp4"):
        for _ in range(200):
            damaged = bytearray(whole if "mov" in kind else rng.bytes(300))
            for place in rng.integers(0, len(damaged), 20):
                damaged[place] = rng.integers(0, 256)
            path.write_bytes(damaged)
            assert min(cropping_of(path, kind, (64, 48))) >= 0
