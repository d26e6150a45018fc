"""Video files as streams of pictures: containers by PyAV, animations by Pillow, folders of pictures in their order.

Nothing here holds more than a few pictures of a video at a time. Times are exact fractions of a second.
"""

from __future__ import annotations

import contextlib
import functools
import math
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from ..files import state_of
from ..settings.geometry import Size
from .colours import Colours, Reading, coded, colours_of, profiled, shown
from .cropping import Cropping, cropping_of
from .folder import natural_order
from .media import as_rgb, formats_by_suffix, image_info, is_picture, on_white, opened, read_image

if TYPE_CHECKING:
    import av
    from PIL import Image

ANIMATION_SUFFIXES = (".gif", ".webp", ".apng", ".avifs", ".flc", ".fli")
"""Read by Pillow: FFmpeg does not decode animated WebP."""

ANIMATIONS = ("GIF", "WEBP", "PNG", "AVIF", "FLI")
"""Pillow's formats that may move."""

CONTAINER_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".qt", ".mkv", ".mk3d", ".webm", ".avi", ".divx", ".xvid", ".mp4v", ".mj2", ".f4v"),
    *(".mpg", ".mpeg", ".mpe", ".mpv", ".m1v", ".m2v", ".m2p", ".vob", ".vro", ".mod", ".tod", ".flv", ".f4p"),
    *(".ts", ".mts", ".m2ts", ".m2t", ".tp", ".trp", ".wmv", ".asf", ".ogv", ".ogg", ".ogm", ".rm", ".rmvb"),
    *(".3gp", ".3g2", ".mxf", ".gxf", ".wtv", ".y4m", ".nut", ".dv", ".ivf", ".mjpg", ".mjpeg"),
    *(".h264", ".264", ".h265", ".hevc", ".265", ".obu", ".vc1"),
)
VIDEO_SUFFIXES = (*CONTAINER_SUFFIXES, *ANIMATION_SUFFIXES)

DEMUXERS = ",".join(
    ("mov", "mp4", "m4a", "3gp", "3g2", "mj2", "matroska", "webm", "avi", "mpeg", "mpegts", "mpegvideo", "asf", "flv")
    + ("ogg", "mxf", "gxf", "wtv", "rm", "yuv4mpegpipe", "nut", "dv", "ivf", "h264", "hevc", "obu", "m4v", "vc1")
    + ("mjpeg",)
)
"""FFmpeg's that may run, whatever the suffix says: playlists and the like open other files and addresses."""

RESTARTING = ("mpeg", "mpegts")
"""Formats that may be joined from parts whose clocks differ, and that have no index: FFmpeg guesses key pictures when
it seeks, so they are decoded from the beginning."""

JUMP = Fraction(10)
"""Seconds; a longer gap in `RESTARTING` formats is another part's clock (FFmpeg's dts_delta_threshold)."""

ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
"""FFmpeg's own decoders of these leave the transparency out."""

UNREADABLE_MATRICES = {8: "YCgCo", 11: "Y'D'zD'x", 12: "chromaticity-derived", 13: "chromaticity-derived", 14: "ICtCp"}
"""Codes of H.273 for which swscale has no table: it would show false colours without a word."""

UNSPECIFIED = 2
"""In H.273."""

THREADS = 4
"""Of a decoder; each holds a picture of its own."""

OVERHANG = Fraction(2, 5)
"""How far behind the last picture a resampled one may lie, in intervals of the new rate: it is shown for a while, too.
Below a half, where halving a rate would hang on the rounding of times to milliseconds."""

SHORTEST_DELAY = Fraction(10, 1000)
UNTIMED_SECONDS = Fraction(1, 10)
"""How long browsers show a picture of an animation that says `SHORTEST_DELAY` or less."""


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What a video is."""

    size: Size
    """(width, height) px as it is seen: turned by its rotation, square pixels."""
    frames: int
    last: Fraction | None
    """Seconds from the first picture to the last; None for a folder of pictures, which has no rate of its own."""
    rotation: int = 0
    """Degrees anticlockwise that the stored pictures are turned by; `size` is after it."""
    reading: Reading = Reading()

    @property
    def fps(self) -> Fraction | None:
        """Mean pictures per second; None where it is not known."""
        return (self.frames - 1) / self.last if self.last else None

    @property
    def duration(self) -> Fraction | None:
        """Seconds, the last picture's own time included."""
        return self.frames / self.fps if self.fps else None

    def frames_at(self, fps: Fraction) -> int:
        """How many pictures the video gives at `fps`; a folder's are taken as they are."""
        return self.frames if self.last is None else math.floor(self.last * fps + OVERHANG) + 1


@dataclass(frozen=True, kw_only=True)
class TimedFrame:
    """One picture of a video."""

    time: Fraction
    """Seconds after the first."""
    picture: Callable[[], Image.Image]
    """As it is seen: RGB, turned. Converts when called, as most pictures of a fast video are passed over."""


def is_video(path: Path) -> bool:
    """Whether a dataset's entry is a video by its name, a picture that moves, or a folder that holds pictures."""
    if path.is_dir():
        inside = [each for each in path.iterdir() if each.is_file()]
        return any(_pictures_of(path)) and not any(each.suffix.lower() in CONTAINER_SUFFIXES for each in inside)
    return path.suffix.lower() in VIDEO_SUFFIXES or (is_picture(path) and _moves(path))


def probe_video(path: Path) -> VideoInfo:
    """Decodes every picture once, converting the first one only.

    Counts what a player shows, since many containers do not say, or lie; so what is sound here is sound later.
    Remembered until the file changes.

    Raises:
        DataError: missing, damaged, no video, or the pictures of a folder differ in size; names the file.
    """
    if path.is_dir():
        return _probe_folder(path)
    return _probed(path)[0]


def read_frames(path: Path, start: Fraction, folder_fps: Fraction) -> Iterator[TimedFrame]:
    """The pictures of a video in their order, from one at or before `start` (seconds) on.

    Args:
        folder_fps: pictures per second of a folder, which has no rate of its own.

    Raises:
        DataError: missing or damaged; names the file.
    """
    if path.is_dir():
        first = math.floor(start * folder_fps)
        for index, picture in enumerate(sorted(_pictures_of(path), key=_order)[first:], first):
            yield TimedFrame(time=index / folder_fps, picture=functools.partial(read_image, picture))
    elif _is_animation(path):
        yield from _animation_frames(path)
    else:
        yield from _container_frames(path, start)


def _probed(path: Path) -> tuple[VideoInfo, tuple[Fraction, ...] | None]:
    """What the file is, and the times of its pictures where they cannot be had from each picture alone."""
    try:
        state = state_of(path)
    except OSError as error:
        raise DataError(f"{path} is not there (any more). Put it back, or remove its caption.") from error
    return _probed_once(path, *state)


@functools.lru_cache(maxsize=4096)
def _probed_once(path: Path, *_state: int | str) -> tuple[VideoInfo, tuple[Fraction, ...] | None]:
    return (_probe_animation(path), None) if _is_animation(path) else _probe_container(path)


def _is_animation(path: Path) -> bool:
    """Whether Pillow knows what is in the file, whatever its suffix says."""
    from PIL import Image

    formats = [name for name in ANIMATIONS if name in formats_by_suffix().values()]
    try:
        with Image.open(path, formats=formats):
            return True
    # Known, and refused where it is read.
    except Image.DecompressionBombError:
        return True
    except (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, RuntimeError):
        return False


def _moves(path: Path) -> bool:
    try:
        with opened(path) as image:
            return image.format in ANIMATIONS and getattr(image, "is_animated", False)
    except DataError:
        return False


def _pictures_of(folder: Path) -> Iterator[Path]:
    return (path for path in folder.iterdir() if is_picture(path) and not path.name.startswith(".") and path.is_file())


def _order(path: Path) -> Any:
    return natural_order(path.name)


def _probe_folder(path: Path) -> VideoInfo:
    pictures = sorted(_pictures_of(path), key=_order)
    if not pictures:
        raise DataError(f"{path} holds no pictures of a kind that is read here.")
    infos = [image_info(picture) for picture in pictures]
    size = infos[0].size
    for picture, info in zip(pictures, infos, strict=True):
        if info.size != size:
            raise DataError(
                f"{path} holds pictures of different sizes: {pictures[0].name} has {size[0]}x{size[1]} px,"
                f" {picture.name} {info.size[0]}x{info.size[1]}. Bring them to one size, or remove the odd ones."
            )
    return VideoInfo(size=size, frames=len(pictures), last=None, reading=_joined([info.reading for info in infos]))


def _joined(readings: Sequence[Reading]) -> Reading:
    """What is done with one or another."""
    rules = dict.fromkeys(each.rule for each in readings if each.rule)
    notes = dict.fromkeys(each.note for each in readings if each.note)
    return Reading(rule=", ".join(rules), note="; ".join(notes))


def _probe_animation(path: Path) -> VideoInfo:
    times, final = [], None
    for frame in _animation_frames(path):
        times, final = [*times, frame.time], frame
    if final is None:
        raise DataError(f"{path} holds no picture. Replace it, or remove it.")
    with opened(path) as image:
        readings = [colours_of(image, path).reading, _reading_of_times(image)]
    return VideoInfo(size=final.picture().size, frames=len(times), last=times[-1], reading=_joined(readings))


def _reading_of_times(image: Image.Image) -> Reading:
    """What browsers do with an animation beyond following its delays."""
    from PIL import ImageSequence

    rule = "no default picture" if image.info.get("default_image") else ""
    for stored in ImageSequence.Iterator(image):
        stored.load()
        if 0 < Fraction(stored.info.get("duration") or 0) / 1000 <= SHORTEST_DELAY:
            rule = "short delays"
    return Reading(rule=rule)


def _animation_frames(path: Path) -> Iterator[TimedFrame]:
    from PIL import ImageSequence

    time = Fraction(0)
    with opened(path) as image:
        colours = colours_of(image, path)
        # Shown by what cannot show the animation.
        beside = bool(image.info.get("default_image"))
        for index, stored in enumerate(ImageSequence.Iterator(image)):
            if beside and index == 0:
                continue
            # At once, as Pillow overwrites it by the next one.
            picture = as_rgb(stored, path, colours)
            yield TimedFrame(time=time, picture=functools.partial(_itself, picture))
            delay = Fraction(round(stored.info.get("duration") or 0), 1000)
            time += delay if delay > SHORTEST_DELAY else UNTIMED_SECONDS


def _itself(picture: Image.Image) -> Image.Image:
    return picture


@contextlib.contextmanager
def _container(path: Path) -> Iterator[tuple[Any, Any]]:
    """(container, its video stream) of PyAV."""
    import av

    safely = {"format_whitelist": DEMUXERS, "protocol_whitelist": "file"}
    try:
        with av.open(str(path.absolute()), options=safely) as container:
            stream = container.streams.best("video")
            if stream is None or stream.codec_context is None:
                raise DataError(f"{path} holds no video that can be decoded. Replace it, or remove it.")
            stream.thread_type = "AUTO"
            stream.codec_context.thread_count = THREADS
            yield container, stream
    except FileNotFoundError as error:
        raise DataError(f"{path} is not there (any more). Put it back, or remove its caption.") from error
    # PyAV decodes what a container says of itself as UTF-8.
    except (av.FFmpegError, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read as a video ({type(error).__name__}: {getattr(error, 'strerror', None) or error})."
            " It may be damaged or not fully copied; replace it, or remove it."
        ) from error


def _probe_container(path: Path) -> tuple[VideoInfo, tuple[Fraction, ...] | None]:
    first, given, gaps = None, [], False
    with _container(path) as (container, stream):
        decode = _decoder_of(path, stream)
        for packet in _packets(container, stream):
            gaps = gaps or packet.is_corrupt
            for frame in decode(packet):
                first = frame if first is None else first
                given.append((frame.pts, frame.duration))
        if first is None:
            raise DataError(f"{path} holds no picture that can be decoded. Replace it, or remove it.")
        times, steady = _times_of(given, stream, container.format.name in RESTARTING)
        look = _look_of(path, first, stream)
        size = _seen(first, look).size
        # A bare stream without any time is as even as its rate says, which is nothing to report.
        guessed = not steady and any(pts is not None for pts, _ in given)
        odd = guessed or (not steady and _nominal_fps(stream) != Fraction(stream.guessed_rate or 25))
    note = "times are missing or jump: its pictures are shown at its rate" if guessed else ""
    clock = Reading(rule="clock" if odd else "", note=note)
    torn = Reading(rule="gaps", note="its stream has gaps: look at its pictures") if gaps else Reading()
    info = VideoInfo(
        size=size,
        frames=len(times),
        last=times[-1],
        rotation=first.rotation,
        reading=_joined([look.reading, clock, torn]),
    )
    return info, None if steady else times


def _times_of(
    given: Sequence[tuple[int | None, int]], stream: Any, restarts: bool
) -> tuple[tuple[Fraction, ...], bool]:
    """When a player shows the decoded pictures, in seconds after the first; and whether that is what they say.

    A picture without a time, or of one that is not after the time before it, lies evenly between its neighbours. A
    clock that goes back for good, or in some formats leaps, belongs to another part, which follows on.

    Args:
        given: (time, duration) of each picture in the stream's unit; None and 0 where it does not say.
    """
    period = 1 / _nominal_fps(stream)
    parts: list[list[tuple[int, Fraction]]] = [[]]
    latest = None
    stamps = [None if pts is None else pts * stream.time_base for pts, _ in given]
    following = [*stamps[1:], None]
    for index, (stamp, after) in enumerate(zip(stamps, following, strict=True)):
        if stamp is None or (latest is not None and stamp == latest):
            continue
        if latest is not None and stamp < latest:
            if after is not None and after > latest:
                # One that is out of place among good ones.
                continue
            parts.append([])
        elif latest is not None and restarts and stamp - latest > JUMP:
            parts.append([])
        parts[-1].append((index, stamp))
        latest = stamp
    steady = len(parts) == 1 and len(parts[0]) == len(given)
    if steady:
        return tuple(stamp - parts[0][0][1] for _, stamp in parts[0]), True
    lengths = [duration * stream.time_base or period for _, duration in given]
    if not parts[0]:
        return tuple(index * period for index in range(len(given))), False
    return _spread(parts, lengths), False


def _spread(parts: Sequence[Sequence[tuple[int, Fraction]]], lengths: Sequence[Fraction]) -> tuple[Fraction, ...]:
    """Times of all pictures from those of some.

    Args:
        parts: of each part (number, time) of the pictures whose time is known; the first picture of a part is known,
            but for the first part.
        lengths: how long each picture is shown, as far as is known.
    """
    (start, origin) = parts[0][0]
    times = [origin - sum(lengths[index:start], Fraction(0)) for index in range(start)]
    shift = Fraction(0)
    for part in parts:
        if times and part is not parts[0]:
            shift = times[-1] + lengths[len(times) - 1] - part[0][1]
        for (index, time), (after, later) in zip(part, [*part[1:], (None, None)], strict=True):
            if after is not None:
                step = (later - time) / (after - index)
                times += [time + shift + step * number for number in range(after - index)]
                continue
            following = [each[0][0] for each in parts if each[0][0] > index]
            end = following[0] if following else len(lengths)
            held = time + shift
            for number in range(index, end):
                times.append(held)
                held += lengths[number]
    return tuple(time - times[0] for time in times)


def _nominal_fps(stream: Any) -> Fraction:
    return Fraction(stream.codec_context.framerate or stream.guessed_rate or stream.average_rate or 25)


def _container_frames(path: Path, start: Fraction) -> Iterator[TimedFrame]:
    """From a picture at or before `start` seconds on."""
    times = _probed(path)[1] if start > 0 else None
    frames = _decoded_from(path, start if times is None else Fraction(0))
    first = next(frames, None)
    if start > 0 and (first is None or first.time > start):
        # The container's index is missing or wrong.
        yield from _decoded_from(path, Fraction(0))
    elif first is not None:
        yield first
        yield from frames


def _decoded_from(path: Path, start: Fraction) -> Iterator[TimedFrame]:
    """From the nearest key picture that the container finds before `start` seconds."""
    times = _probed(path)[1]
    with _container(path) as (container, stream):
        frames = _decode(path, container, stream)
        first = next(frames, None)
        if first is None:
            return
        look = _look_of(path, first, stream)
        if start > 0 and container.format.name not in RESTARTING:
            container.seek(first.pts + math.floor(start / stream.time_base), stream=stream)
            frames = _decode(path, container, stream, from_key=True)
        else:
            yield TimedFrame(time=Fraction(0), picture=functools.partial(_seen, first, look))
        for index, frame in enumerate(frames, 1):
            if times is not None and index >= len(times):
                return
            time = times[index] if times is not None else (frame.pts - first.pts) * stream.time_base
            yield TimedFrame(time=time, picture=functools.partial(_seen, frame, look))


def _decode(path: Path, container: Any, stream: Any, from_key: bool = False) -> Iterator[av.VideoFrame]:
    """Decoded pictures; `from_key`: what comes before a key picture leans on pictures that were not read."""
    skipping, earliest = from_key, None
    decode = _decoder_of(path, stream)
    for packet in _packets(container, stream):
        if skipping and not packet.is_keyframe:
            continue
        if skipping:
            skipping, earliest = False, packet.pts
        for frame in decode(packet):
            if earliest is None or frame.pts >= earliest:
                yield frame


def _packets(container: Any, stream: Any) -> Iterator[Any]:
    """All but a torn one at the end, of which a player shows nothing."""
    torn = None
    for packet in container.demux(stream):
        if torn is not None and packet.size:
            yield torn
        torn = packet if packet.is_corrupt else None
        if torn is None:
            yield packet


def _decoder_of(path: Path, stream: Any) -> Callable[[Any], list[av.VideoFrame]]:
    """What makes pictures of a packet.

    Raises:
        DataError: the video is transparent, and nothing here decodes that.
    """
    import av

    tags = {name.lower(): value for name, value in stream.metadata.items()}
    decoder = ALPHA_DECODERS.get(stream.codec_context.name)
    if decoder is None or tags.get("alpha_mode") != "1":
        return lambda packet: packet.decode()
    try:
        context = av.CodecContext.create(decoder, "r")
    except ValueError as error:
        raise DataError(
            f"{path} is transparent, and the installed PyAV has no {decoder} to decode that. Install av from PyPI, or"
            " save the video without transparency."
        ) from error
    context.extradata = stream.codec_context.extradata
    return lambda packet: context.decode(packet if packet.size else None)


@dataclass(frozen=True, kw_only=True)
class _Look:
    """How a video's decoded pictures are shown."""

    pixel_aspect: Fraction
    """Width over height of one stored pixel."""
    cropping: Cropping
    colours: Colours
    reading: Reading


def _look_of(path: Path, frame: av.VideoFrame, stream: Any) -> _Look:
    """
    Raises:
        DataError: nothing here can make its colours.
    """
    data = {each.type.name: each for each in frame.side_data}
    matrix = UNREADABLE_MATRICES.get(int(frame.colorspace))
    primaries, transfer = _codes_of(frame, stream)
    if "DOVI_METADATA" in data and transfer == UNSPECIFIED:
        # Profile 5, whose colours only Dolby's own metadata explain.
        matrix = "Dolby Vision profile 5"
    if matrix is not None:
        raise DataError(f"{path} has colours of {matrix}, which are not read here. Convert it to BT.709 first.")
    colours = coded(primaries, transfer)
    if not colours.reading.rule and "ICC_PROFILE" in data:
        colours = profiled("RGB", bytes(data["ICC_PROFILE"]))
    cropping = cropping_of(path, stream.container.format.name, (frame.width, frame.height))
    more = [
        *([Reading(rule="cropped", note="cropped as its container says")] if any(cropping) else []),
        *([Reading(rule="alpha", note="transparent: laid on white")] if _is_transparent(frame) else []),
        *([Reading(rule="mirrored")] if _is_mirrored(frame) else []),
    ]
    return _Look(
        pixel_aspect=Fraction(stream.sample_aspect_ratio or 1),
        cropping=cropping,
        colours=colours,
        reading=_joined([colours.reading, *more]),
    )


def _codes_of(frame: av.VideoFrame, stream: Any) -> tuple[int, int]:
    """(primaries, transfer): what the picture says, else what the container does."""

    def said(name: str) -> int:
        # Pictures of PyAV before 17 do not have them.
        own = int(getattr(frame, name, UNSPECIFIED))
        return int(getattr(stream.codec_context, name)) if own == UNSPECIFIED else own

    return said("color_primaries"), said("color_trc")


def _seen(frame: av.VideoFrame, look: _Look) -> Image.Image:
    """As a player shows it."""
    from PIL import Image

    picture = _stored(frame, round(frame.width * look.pixel_aspect), look.colours)
    if any(look.cropping):
        left, top, right, bottom = look.cropping
        sides = (round(left * look.pixel_aspect), round((frame.width - right) * look.pixel_aspect))
        picture = picture.crop((sides[0], top, sides[1], frame.height - bottom))
    picture = picture.rotate(frame.rotation if not _is_mirrored(frame) else _turn_of(frame), expand=True)
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if _is_mirrored(frame) else picture


def _stored(frame: av.VideoFrame, width: int, colours: Colours) -> Image.Image:
    """sRGB of `width` px, before it is turned."""
    from PIL import Image

    deep = bool(colours.reading.rule) and not colours.profile
    if not _is_transparent(frame) and not deep:
        return colours.to_srgb(frame.to_image(width=width, height=frame.height))
    kind = "rgba" if _is_transparent(frame) else "rgb"
    layout = {"rgba": ("rgba", "rgba64le"), "rgb": ("rgb24", "rgb48le")}[kind][deep]
    levels = frame.reformat(width=width, height=frame.height, format=layout).to_ndarray()
    if deep:
        picture = shown(levels[..., :3], colours.primaries, colours.transfer)
        alpha = (levels[..., 3:] >> 8).astype("uint8")
    else:
        picture = colours.to_srgb(Image.fromarray(levels[..., :3].copy()))
        alpha = levels[..., 3:]
    return on_white(picture, Image.fromarray(alpha[..., 0].copy())) if kind == "rgba" else picture


def _is_transparent(frame: av.VideoFrame) -> bool:
    return any(component.is_alpha for component in frame.format.components)


def _is_mirrored(frame: av.VideoFrame) -> bool:
    a, b, c, d = _matrix_of(frame)
    return a * d - b * c < 0


def _turn_of(frame: av.VideoFrame) -> int:
    """Degrees anticlockwise, after which a mirrored picture is mirrored left to right."""
    a, b, c, d = _matrix_of(frame)
    wide, high = math.hypot(a, c), math.hypot(b, d)
    return round(-math.degrees(math.atan2(b / high, -a / wide)))


def _matrix_of(frame: av.VideoFrame) -> tuple[int, int, int, int]:
    """Of the display matrix what turns and mirrors; (1, 0, 0, 1) without one."""
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            values = struct.unpack("=9i", bytes(data)[:36])
            return values[0], values[1], values[3], values[4]
    return 1, 0, 0, 1
