"""Pictures come in the order and at the times in which a player shows them, whatever the container says."""

import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from comfyui_longcat.training.data.clips import iterate_pictures
from comfyui_longcat.training.data.sets import scan_dataset
from comfyui_longcat.training.data.video_files import probe_video, read_frames
from comfyui_longcat.training.errors import DataError
from comfyui_longcat.training.settings.dataset import DatasetConfig
from PIL import Image

COUNT = 45

# name -> (format, encoder, pixel format, options)
KINDS = {
    "h264.mp4": ("mp4", "libx264", "yuv420p", {"qp": "8", "bf": "3"}),
    "hevc.mp4": ("mp4", "libx265", "yuv420p", {"x265-params": "log-level=none:crf=8:bframes=4"}),
    "h264.mov": ("mov", "libx264", "yuv420p", {"qp": "8", "bf": "2"}),
    "prores.mov": ("mov", "prores_ks", "yuv422p10le", {}),
    "vp9.webm": ("webm", "libvpx-vp9", "yuv420p", {"crf": "8", "b:v": "0", "cpu-used": "8", "auto-alt-ref": "1"}),
    "vp8.webm": ("webm", "libvpx", "yuv420p", {"b:v": "4M", "auto-alt-ref": "1"}),
    "av1.mkv": ("matroska", "libsvtav1", "yuv420p", {"crf": "12", "preset": "12", "svtav1-params": "lp=1"}),
    "ffv1.mkv": ("matroska", "ffv1", "yuv420p", {}),
    "mpeg4.avi": ("avi", "mpeg4", "yuv420p", {"bf": "2", "b": "4M"}),
    "mjpeg.avi": ("avi", "mjpeg", "yuvj420p", {"q": "2"}),
    "h264.ts": ("mpegts", "libx264", "yuv420p", {"qp": "8", "bf": "3"}),
    "h264.flv": ("flv", "libx264", "yuv420p", {"qp": "8", "bf": "2"}),
    "mpeg2.mpg": ("mpeg", "mpeg2video", "yuv420p", {"bf": "2", "b": "4M"}),
    "mpeg1.mpg": ("mpeg", "mpeg1video", "yuv420p", {"bf": "2", "b": "4M"}),
    "mpeg2.vob": ("vob", "mpeg2video", "yuv420p", {"bf": "2", "b": "4M"}),
    "wmv2.wmv": ("asf", "wmv2", "yuv420p", {"b": "4M"}),
    "mpeg2.mxf": ("mxf", "mpeg2video", "yuv420p", {"bf": "2", "b": "4M"}),
    "h263.3gp": ("3gp", "h263", "yuv420p", {"b": "4M"}),
    "rawvideo.nut": ("nut", "rawvideo", "yuv420p", {}),
    "raw.y4m": ("yuv4mpegpipe", "wrapped_avframe", "yuv420p", {}),
    "h264.h264": ("h264", "libx264", "yuv420p", {"qp": "8", "bf": "2"}),
}
SIZES = {"h263.3gp": (176, 144)}
RATES = {"mpeg1.mpg": (25, 30), "mpeg2.mxf": (25, 30), "h263.3gp": (15, 30)}


def counted(number, layout="yuv420p", size=(64, 64)):
    """Grey that tells its number, from 0 to 59."""
    planes = av.VideoFrame.from_ndarray(np.full((size[1], size[0]), 40 + 3 * number, np.uint8), format="gray")
    return planes.reformat(format=layout) if layout != "gray" else planes


def number_of(picture):
    return round(float(np.asarray(picture).mean()))


def write(path, kind, fps=15, count=COUNT, times=None, start=0):
    form, codec, layout, options = KINDS[kind]
    size = SIZES.get(kind, (64, 64))
    with av.open(str(path), "w", format=form) as container:
        stream = container.add_stream(codec, rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = *size, layout
        stream.codec_context.time_base = Fraction(1, fps)
        for number in range(count):
            made = counted(start + number, layout, size)
            made.pts, made.time_base = (times[number] if times else number), Fraction(1, fps)
            container.mux(stream.encode(made))
        container.mux(stream.encode())
    return path


def in_order(numbers, count):
    """Whether greys rise by a step of about 3 each."""
    steps = np.diff(numbers)
    return len(numbers) == count and (steps > 0).all() and (steps < 6).all()


@pytest.mark.parametrize("kind", KINDS)
def test_numbered_pictures_come_complete_and_in_order(tmp_path, kind):
    for fps in RATES.get(kind, (15, 30)):
        path = write(tmp_path / f"{fps}{kind}", kind, fps)
        info = probe_video(path)
        assert (info.frames, round(float(info.fps), 1)) == (COUNT, fps)
        found = [number_of(picture) for picture in iterate_pictures(path, 0, COUNT, fps)]
        assert in_order(found, COUNT)
        # A clip from the middle, and one of every second picture.
        assert [number_of(picture) for picture in iterate_pictures(path, 21, 10, fps)] == found[21:31]
        if fps == 30:
            assert [number_of(picture) for picture in iterate_pictures(path, 0, 22, 15)] == found[:44:2]


def textured(number, grain, still):
    """As `counted`, with noise of mean 0 that makes the coded picture large."""
    noise = np.random.default_rng(0 if still else number).integers(-grain, grain + 1, (64, 128))
    levels = np.clip(40 + 3 * number + np.concatenate([noise, -noise]), 0, 255).astype(np.uint8)
    return av.VideoFrame.from_ndarray(levels, format="gray").reformat(format="yuv420p")


@pytest.mark.parametrize("looks", [(0, True), (16, True), (16, False)])
@pytest.mark.parametrize("form", ["mpeg", "vob"])
def test_program_streams_whose_pictures_share_one_time(tmp_path, form, looks):
    path = tmp_path / "a.mpg"
    with av.open(str(path), "w", format=form) as container:
        stream = container.add_stream("libx264", rate=15, options={"qp": "4", "bf": "2"})
        stream.width, stream.height, stream.pix_fmt = 128, 128, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 15)
        for number in range(COUNT):
            made = textured(number, *looks)
            made.pts, made.time_base = number, Fraction(1, 15)
            container.mux(stream.encode(made))
        container.mux(stream.encode())
    info = probe_video(path)
    assert (info.frames, info.last) == (COUNT, Fraction(COUNT - 1, 15))
    found = [number_of(picture) for picture in iterate_pictures(path, 0, 40, 15)]
    assert in_order(found, 40)
    assert [number_of(picture) for picture in iterate_pictures(path, 20, 5, 15)] == found[20:25]


def test_joined_parts_follow_each_other(tmp_path):
    parts = [write(tmp_path / f"{start}.ts", "h264.ts", count=15, start=start) for start in (0, 15, 30)]
    path = tmp_path / "joined.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    info = probe_video(path)
    assert (info.frames, info.reading.rule) == (45, "clock, gaps")
    assert float(info.last) == pytest.approx(44 / 15, abs=0.01)
    found = [number_of(picture) for picture in iterate_pictures(path, 0, 44, 15)]
    assert in_order(found, 44)


def test_uneven_times_late_starts_and_the_order_of_b_pictures(tmp_path):
    times = [30, 31, 33, 40, 41, 60]
    path = write(tmp_path / "a.mkv", "ffv1.mkv", count=6, times=times)
    assert [float(each.time) for each in read_frames(path, Fraction(0), Fraction(15))] == pytest.approx(
        [(time - 30) / 15 for time in times], abs=0.001
    )


def test_pictures_that_an_edit_list_cuts_off_are_not_shown(tmp_path):
    """The list of a .mov says that the film begins at its sixth picture."""
    path = write(tmp_path / "a.mov", "prores.mov")
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") + 4
    version, count, duration, start = struct.unpack_from(">IIIi", data, at)
    assert (version, count, start) == (0, 1, 0)
    scale = struct.unpack_from(">I", data, data.index(b"mdhd") + 4 + 12)[0]
    struct.pack_into(">i", data, at + 12, 5 * scale // 15)
    path.write_bytes(data)
    info = probe_video(path)
    shown = [number_of(each.picture()) for each in read_frames(path, Fraction(0), Fraction(15))]
    whole = [
        number_of(each.picture())
        for each in read_frames(write(tmp_path / "b.mov", "prores.mov"), Fraction(0), Fraction(15))
    ]
    assert (info.frames, shown) == (COUNT - 5, whole[5:])


@pytest.mark.parametrize(
    ("delays", "times"), [([0, 10, 20, 100], [0, 100, 200, 220]), ([40, 40, 40, 40], [0, 40, 80, 120])]
)
@pytest.mark.parametrize("suffix", [".gif", ".webp", ".apng"])
def test_animations_run_as_in_a_browser(tmp_path, suffix, delays, times):
    path = tmp_path / f"a{suffix}"
    frames = [Image.new("RGB", (16, 16), (40 * number, 0, 90)) for number in range(4)]
    frames[0].save(path, format={".apng": "PNG"}.get(suffix), save_all=True, append_images=frames[1:], duration=delays)
    found = list(read_frames(path, Fraction(0), Fraction(15)))
    assert [each.time for each in found] == [Fraction(time, 1000) for time in times]
    assert probe_video(path).reading.rule == ("short delays" if delays[1] == 10 else "")


def test_the_picture_for_programs_that_cannot_show_an_apng_is_no_frame(tmp_path):
    path = tmp_path / "a.apng"
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(path, format="PNG", save_all=True, append_images=frames[1:], duration=100, default_image=True)
    colours = [each.picture().getpixel((3, 3)) for each in read_frames(path, Fraction(0), Fraction(15))]
    assert colours == [(0, 255, 0), (0, 0, 255)] and probe_video(path).frames == 2


def test_contents_decide_what_a_file_is(tmp_path):
    frames = [Image.new("RGB", (64, 64), (30 * number, 90, 60)) for number in range(8)]
    more = {"save_all": True, "append_images": frames[1:], "duration": 67}
    frames[0].save(tmp_path / "gif.mp4", format="GIF", **more)
    frames[0].save(tmp_path / "webp.mov", format="WEBP", **more)
    frames[0].save(tmp_path / "apng.mkv", format="PNG", **more)
    write(tmp_path / "mp4.gif", "h264.mp4", count=8)
    write(tmp_path / "mkv.webp", "ffv1.mkv", count=8)
    for name in ("gif.mp4", "webp.mov", "apng.mkv", "mp4.gif", "mkv.webp"):
        assert probe_video(tmp_path / name).frames == 8
        assert len(list(read_frames(tmp_path / name, Fraction(0), Fraction(15)))) == 8


def transparent(layout):
    """Left half green and opaque, right half red and invisible."""
    rgba = np.zeros((64, 64, 4), np.uint8)
    rgba[:, :32], rgba[:, 32:] = (60, 160, 90, 255), (255, 0, 0, 0)
    return av.VideoFrame.from_ndarray(rgba, format="rgba").reformat(format=layout)


@pytest.mark.parametrize(
    ("name", "codec", "layout", "options"),
    [
        ("a.webm", "libvpx-vp9", "yuva420p", {"crf": "4", "b:v": "0", "auto-alt-ref": "0"}),
        ("b.webm", "libvpx", "yuva420p", {"b:v": "4M", "auto-alt-ref": "0"}),
        ("c.mov", "prores_ks", "yuva444p10le", {"profile": "4444"}),
        ("d.mov", "qtrle", "argb", {}),
        ("e.mkv", "ffv1", "bgra", {}),
        ("f.mov", "png", "rgba", {}),
    ],
)
def test_transparent_clips_are_laid_on_white(tmp_path, name, codec, layout, options):
    path = tmp_path / name
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=15, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 64, layout
        for _ in range(15):
            container.mux(stream.encode(transparent(layout)))
        container.mux(stream.encode())
    for place in (0, 9):
        picture = next(iterate_pictures(path, place, 1, 15))
        assert picture.getpixel((10, 10)) == pytest.approx((60, 160, 90), abs=4)
        assert picture.getpixel((50, 10)) == pytest.approx((255, 255, 255), abs=4)
    assert probe_video(path).reading.rule == "alpha"


@pytest.mark.parametrize("mirror", [{}, {"hflip": True}, {"vflip": True}])
@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_display_matrices_turn_and_mirror(tmp_path, turn, mirror):
    path = tmp_path / "a.mp4"
    stored = np.full((48, 64, 3), 90, np.uint8)
    stored[:24, :32] = (220, 30, 30)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=15, options={"qp": "4"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        if not hasattr(stream, "set_display_rotation"):
            pytest.skip("this PyAV writes no display matrix")
        stream.set_display_rotation(turn, **mirror)
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(stored, format="rgb24")))
        container.mux(stream.encode())
    expected = Image.fromarray(stored).rotate(turn, expand=True)
    if mirror:
        flip = Image.Transpose.FLIP_LEFT_RIGHT if "hflip" in mirror else Image.Transpose.FLIP_TOP_BOTTOM
        expected = expected.transpose(flip)
    seen = next(iterate_pictures(path, 0, 1, 15))
    assert seen.size == expected.size == probe_video(path).size
    assert np.abs(np.asarray(seen).astype(int) - np.asarray(expected)).mean() < 12


# FFmpeg's name of a kind of file that names another one -> such a file.
NAMING = {
    "concat": "ffconcat version 1.0\nfile other.ts\n",
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nother.ts\n#EXT-X-ENDLIST\n",
}


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".m3u8"])
@pytest.mark.parametrize("kind", NAMING)
def test_a_file_that_names_another_file_opens_none(tmp_path, kind, suffix):
    """FFmpeg itself would open it: the list of formats keeps it from doing so."""
    write(tmp_path / "other.ts", "h264.ts")
    path = tmp_path / f"list{suffix}"
    path.write_text(NAMING[kind], "utf-8")
    if kind == "concat" or suffix == ".m3u8":
        # Of playlists FFmpeg asks for their own suffix.
        with av.open(str(path)) as opened:
            assert opened.format.name == kind and len(opened.streams.video) == 1
    with pytest.raises(DataError, match=rf"list\{suffix} cannot be read as a video"):
        probe_video(path)


def test_only_files_are_opened(tmp_path):
    """Whatever the name looks like to FFmpeg: a protocol, a list of files, a number in a sequence."""
    write(tmp_path / "other.ts", "h264.ts")
    here = tmp_path.as_posix()
    for name in (f"file:{here}/other.ts", f"concat:{here}/other.ts", "subfile,,start,0,end,0,,:other.ts", "%5d.ts"):
        with pytest.raises(DataError, match="is not there"):
            probe_video(tmp_path / "folder" / name)
    assert probe_video(tmp_path / "other.ts").frames > 0


def test_a_clip_that_a_survey_calls_sound_can_be_read(tmp_path):
    """Packets of the last third hold nothing that decodes: counting them would promise pictures that never come."""
    path = write(tmp_path / "a.mkv", "ffv1.mkv", count=15)
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    for place, size in places[10:]:
        data[place + 8 : place + size] = bytes(size - 8)
    path.write_bytes(data)
    (tmp_path / "a.txt").write_text("a plain colour", encoding="utf-8")
    config = DatasetConfig(instance_data_dir=str(tmp_path), dataset_type="video", num_frames=13, resolution="64")
    try:
        found = scan_dataset(config)
    except DataError as error:
        assert "a.mkv" in str(error)
        return
    (record,) = found.records
    assert len(list(iterate_pictures(path, record.clip.start, record.clip.frames, 15))) == 13
