"""Every kind of video gives the pictures that were written, at their times, from any start."""

import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from comfyui_longcat.training.data.video_files import is_video, probe_video, read_frames
from comfyui_longcat.training.errors import DataError
from PIL import Image

FPS = 15
SIZE = (64, 48)
COUNT = 40

# suffix -> (encoder, pixel format, its options)
CONTAINERS = {
    ".mp4": ("libx264", "yuv420p", {"g": "12", "crf": "5"}),
    ".mov": ("libx264", "yuv420p", {"g": "12", "crf": "5"}),
    ".mkv": ("ffv1", "bgr0", {}),
    ".webm": ("libvpx-vp9", "yuv420p", {"crf": "10", "g": "12"}),
    ".avi": ("mpeg4", "yuv420p", {"bf": "2", "g": "12", "b": "4M"}),
    ".ts": ("libx264", "yuv420p", {"g": "12", "crf": "5"}),
    ".flv": ("flv", "yuv420p", {"g": "12", "b": "4M"}),
    ".wmv": ("wmv2", "yuv420p", {"g": "12", "b": "4M"}),
    ".h264": ("libx264", "yuv420p", {"g": "12", "crf": "5"}),
}


def level(number: int) -> int:
    return 15 + 6 * number


def frame(number: int, size=SIZE) -> Image.Image:
    """Grey by its number; the left upper quarter red, so that turns show."""
    picture = Image.new("RGB", size, (level(number),) * 3)
    picture.paste((220, 30, 30), (0, 0, size[0] // 2, size[1] // 2))
    return picture


def number_of(picture: Image.Image) -> int:
    """Which frame it is, from the grey of the right lower quarter."""
    pixels = np.asarray(picture).astype(float)
    height, width = pixels.shape[:2]
    return round((pixels[height * 5 // 8 :, width * 5 // 8 :].mean() - 15) / 6)


def write(path, count=COUNT, fps=FPS, size=SIZE, times=None):
    codec, pix_fmt, options = CONTAINERS[path.suffix]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(fps), options=options)
        stream.width, stream.height = size
        stream.pix_fmt = pix_fmt
        for number in range(count):
            picture = av.VideoFrame.from_image(frame(number, size))
            if times is not None:
                picture.pts, picture.time_base = times[number], Fraction(1, fps)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def read(path, start=0):
    return list(read_frames(path, Fraction(start), Fraction(FPS)))


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_containers_give_size_count_rate_and_every_picture(tmp_path, suffix):
    path = write(tmp_path / f"clip{suffix}")
    info = probe_video(path)
    assert (info.size, info.frames, round(float(info.fps), 1), info.rotation) == (SIZE, COUNT, 15.0, 0)
    assert float(info.duration) == pytest.approx(COUNT / FPS, abs=0.002)
    assert info.frames_at(Fraction(FPS)) == COUNT
    frames = read(path)
    assert [number_of(each.picture()) for each in frames] == list(range(COUNT))
    # Some containers round to milliseconds.
    assert [float(each.time) for each in frames] == pytest.approx([n / FPS for n in range(COUNT)], abs=0.001)


@pytest.mark.parametrize("suffix", CONTAINERS)
@pytest.mark.parametrize("number", [5, 12, 26, 39])
def test_reading_from_a_time_begins_at_or_before_it(tmp_path, suffix, number):
    path = write(tmp_path / f"clip{suffix}")
    frames = read(path, Fraction(number, FPS) + Fraction(1, 1000))
    assert frames[0].time <= Fraction(number, FPS) + Fraction(1, 1000)
    numbers = [number_of(each.picture()) for each in frames]
    assert numbers == list(range(numbers[0], COUNT))
    assert [float(each.time) for each in frames] == pytest.approx([n / FPS for n in numbers], abs=0.001)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_seeking_skips_the_pictures_far_before(tmp_path, suffix):
    path = write(tmp_path / f"clip{suffix}")
    assert read(path, Fraction(30, FPS))[0].time >= Fraction(20, FPS)


def test_uneven_times_are_kept(tmp_path):
    times = [0, 1, 2, 10, 11, 30]
    path = write(tmp_path / "uneven.mp4", count=6, times=times)
    assert [each.time for each in read(path)] == [Fraction(time, FPS) for time in times]
    info = probe_video(path)
    assert (info.frames, info.last, info.fps) == (6, Fraction(2), Fraction(5, 2))
    assert info.frames_at(Fraction(FPS)) == 31


@pytest.mark.parametrize(
    ("matrix", "rotation", "size", "red_corner"),
    [
        # a b c d of the track's matrix: x' = a x + c y, y' = b x + d y
        ((0, 1, -1, 0), -90, (48, 64), "right upper"),
        ((0, -1, 1, 0), 90, (48, 64), "left lower"),
        ((-1, 0, 0, -1), 180, (64, 48), "right lower"),
    ],
)
def test_turned_by_the_rotation_of_its_track(tmp_path, matrix, rotation, size, red_corner):
    path = write(tmp_path / "phone.mp4", count=3)
    set_track_matrix(path, matrix)
    info = probe_video(path)
    assert info.size == size
    assert info.rotation % 360 == rotation % 360
    picture = read(path)[0].picture()
    assert picture.size == size
    across, down = red_corner.split()
    at = (4 if across == "left" else size[0] - 5, 4 if down == "upper" else size[1] - 5)
    red, green, _ = picture.getpixel(at)
    assert red > green + 100


def set_track_matrix(path, matrix):
    """Writes the matrix of the tkhd box (ISO 14496-12, 8.3.2), version 0: 40 bytes after its flags begin."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    a, b, c, d = (value * 0x10000 for value in matrix)
    struct.pack_into(">9i", data, at, a, b, 0, c, d, 0, 0, 0, 0x40000000)
    path.write_bytes(data)


def test_oblong_pixels_become_square(tmp_path):
    path = tmp_path / "wide.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 48, 48, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
        container.mux(stream.encode(av.VideoFrame.from_image(frame(0, (48, 48)))))
        container.mux(stream.encode())
    assert probe_video(path).size == (64, 48)
    assert read(path)[0].picture().size == (64, 48)


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_animations(tmp_path, suffix):
    path = tmp_path / f"moving{suffix}"
    frames = [frame(number * 4) for number in range(6)]
    frames[0].save(
        path, save_all=True, append_images=frames[1:], duration=[100, 100, 200, 100, 100, 100], lossless=True
    )
    info = probe_video(path)
    assert (info.size, info.frames, info.last) == (SIZE, 6, Fraction(6, 10))
    found = read(path)
    assert [each.time for each in found] == [Fraction(time, 10) for time in (0, 1, 2, 4, 5, 6)]
    assert [number_of(each.picture()) for each in found] == [0, 4, 8, 12, 16, 20]


def test_transparent_animations_are_laid_on_white(tmp_path):
    path = tmp_path / "clear.webp"
    frames = [Image.new("RGBA", (16, 16), (255, 0, 0, alpha)) for alpha in (0, 255)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100, lossless=True, exact=True)
    assert [each.picture().getpixel((5, 5)) for each in read(path)] == [(255, 255, 255), (255, 0, 0)]


def test_a_folder_of_pictures_in_the_order_of_their_numbers(tmp_path):
    for number in (0, 1, 2, 10):
        frame(number).save(tmp_path / f"f{number}.png")
    (tmp_path / "notes.txt").write_text("no picture", encoding="utf-8")
    info = probe_video(tmp_path)
    assert (info.size, info.frames, info.fps) == (SIZE, 4, None)
    assert info.frames_at(Fraction(24)) == 4
    assert [number_of(each.picture()) for each in read(tmp_path)] == [0, 1, 2, 10]
    later = read(tmp_path, Fraction(2, FPS))
    assert [(each.time, number_of(each.picture())) for each in later] == [(Fraction(2, 15), 2), (Fraction(3, 15), 10)]


def test_a_folder_of_unequal_pictures_is_refused(tmp_path):
    frame(0).save(tmp_path / "a.png")
    frame(0, (32, 32)).save(tmp_path / "b.png")
    with pytest.raises(DataError, match=r"a.png has 64x48 px, b.png 32x32"):
        probe_video(tmp_path)


def test_what_is_a_video(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "sequence").mkdir()
    frame(0).save(tmp_path / "sequence" / "1.png")
    names = ("a.MP4", "a.webm", "a.gif", "a.txt", "a.png", "sequence", "empty")
    assert [name for name in names if is_video(tmp_path / name)] == ["a.MP4", "a.webm", "a.gif", "sequence"]


def broken(kind, folder):
    path = folder / "broken.mp4"
    if kind == "noise":
        path.write_bytes(bytes(range(256)) * 40)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "cut off":
        whole = write(folder / "whole.mp4").read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "playlist":
        other = write(folder / "other.ts").as_posix()
        path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://{other}\n#EXT-X-ENDLIST\n", "utf-8")
    elif kind == "sound":
        with av.open(str(path), "w") as container:
            stream = container.add_stream("aac", rate=16000, layout="mono")
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            silence.sample_rate = 16000
            container.mux(stream.encode(silence))
            container.mux(stream.encode())
    return path


@pytest.mark.parametrize("kind", ["noise", "empty", "cut off", "playlist", "sound", "missing"])
def test_broken_files_are_named(tmp_path, kind):
    path = broken(kind, tmp_path)
    for act in (probe_video, read):
        with pytest.raises(DataError, match=r"broken\.mp4 (cannot be read as a video|holds no video|is not there)"):
            act(path)


def test_a_broken_animation_is_named(tmp_path):
    path = tmp_path / "broken.gif"
    path.write_bytes(b"GIF89a" + bytes(30))
    with pytest.raises(DataError, match=r"broken\.gif"):
        probe_video(path)


def test_what_is_left_of_a_cut_off_file_is_counted(tmp_path):
    whole = write(tmp_path / "whole.mkv").read_bytes()
    (tmp_path / "part.mkv").write_bytes(whole[: int(len(whole) * 0.6)])
    info = probe_video(tmp_path / "part.mkv")
    assert 10 < info.frames < COUNT
    assert [number_of(each.picture()) for each in read(tmp_path / "part.mkv")] == list(range(info.frames))


def test_a_stream_of_an_unknown_codec_is_named(tmp_path):
    path = write(tmp_path / "a.mkv")
    content = path.read_bytes()
    assert b"V_FFV1" in content
    path.write_bytes(content.replace(b"V_FFV1", b"V_XXXX"))
    with pytest.raises(DataError, match=r"a\.mkv holds no video that can be decoded\. Replace it"):
        probe_video(path)


def test_an_animation_of_a_bomb_is_refused(tmp_path):
    path = tmp_path / "a.gif"
    Image.new("P", (8, 8)).save(path, save_all=True, append_images=[Image.new("P", (8, 8), 1)])
    content = bytearray(path.read_bytes())
    content[6:10] = b"\xff" * 4
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.gif is too large to be read"):
        probe_video(path)
