"""Video files as streams of pictures: containers by PyAV, animations by Pillow, folders of pictures in their order.

Nothing here holds more than a few pictures of a video at a time. Times are exact fractions of a second.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from ..settings.geometry import Size
from .folder import natural_order
from .media import IMAGE_SUFFIXES, as_rgb, image_size, opened, read_image

if TYPE_CHECKING:
    import av
    from PIL import Image

ANIMATION_SUFFIXES = (".gif", ".webp")
"""Read by Pillow: FFmpeg does not decode animated WebP."""

CONTAINER_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".vob", ".ts", ".mts", ".m2ts"),
    *(".wmv", ".asf", ".flv", ".f4v", ".ogv", ".ogg", ".3gp", ".3g2", ".mxf", ".y4m", ".nut", ".dv", ".ivf"),
    *(".h264", ".264", ".h265", ".hevc", ".265", ".obu"),
)
VIDEO_SUFFIXES = (*CONTAINER_SUFFIXES, *ANIMATION_SUFFIXES)

DEMUXERS = ",".join(
    ("mov", "mp4", "m4a", "3gp", "3g2", "mj2", "matroska", "webm", "avi", "mpeg", "mpegts", "mpegvideo", "asf", "flv")
    + ("ogg", "mxf", "yuv4mpegpipe", "nut", "dv", "ivf", "h264", "hevc", "obu")
)
"""FFmpeg's that may run, whatever the suffix says: playlists and the like open other files and addresses."""

GUESSED_TIMES = ("mpeg", "mpegts")
"""Formats without an index, whose key pictures FFmpeg guesses when it seeks: they are decoded from the beginning."""

THREADS = 4
"""Of a decoder; each holds a picture of its own."""

OVERHANG = Fraction(2, 5)
"""How far behind the last picture a resampled one may lie, in intervals of the new rate: it is shown for a while, too.
Below a half, where halving a rate would hang on the rounding of times to milliseconds."""

UNTIMED_SECONDS = Fraction(1, 10)
"""How long browsers show a picture of an animation that says 0."""


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
    """Whether a dataset's entry is a video by its name, or a folder that holds pictures."""
    if path.is_dir():
        return any(_pictures_of(path))
    return path.suffix.lower() in VIDEO_SUFFIXES


def probe_video(path: Path) -> VideoInfo:
    """Reads the file once and decodes its first picture only (an animation: all of them).

    Counts what is really there, since many containers do not say, or lie.

    Raises:
        DataError: missing, damaged, no video, or the pictures of a folder differ in size; names the file.
    """
    if path.is_dir():
        return _probe_folder(path)
    if path.suffix.lower() in ANIMATION_SUFFIXES:
        return _probe_animation(path)
    return _probe_container(path)


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
    elif path.suffix.lower() in ANIMATION_SUFFIXES:
        yield from _animation_frames(path)
    else:
        yield from _container_frames(path, start)


def _pictures_of(folder: Path) -> Iterator[Path]:
    return (
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def _order(path: Path) -> Any:
    return natural_order(path.name)


def _probe_folder(path: Path) -> VideoInfo:
    pictures = sorted(_pictures_of(path), key=_order)
    if not pictures:
        raise DataError(f"{path} holds no pictures (looked for {' '.join(IMAGE_SUFFIXES)}).")
    size = image_size(pictures[0])
    for picture in pictures[1:]:
        other = image_size(picture)
        if other != size:
            raise DataError(
                f"{path} holds pictures of different sizes: {pictures[0].name} has {size[0]}x{size[1]} px,"
                f" {picture.name} {other[0]}x{other[1]}. Bring them to one size, or remove the odd ones."
            )
    return VideoInfo(size=size, frames=len(pictures), last=None)


def _probe_animation(path: Path) -> VideoInfo:
    frames, final = 0, None
    for frame in _animation_frames(path):
        frames, final = frames + 1, frame
    if final is None:
        raise DataError(f"{path} holds no picture. Replace it, or remove it.")
    return VideoInfo(size=final.picture().size, frames=frames, last=final.time)


def _animation_frames(path: Path) -> Iterator[TimedFrame]:
    from PIL import ImageSequence

    time = Fraction(0)
    with opened(path) as image:
        for stored in ImageSequence.Iterator(image):
            # At once, as Pillow overwrites it by the next one.
            picture = as_rgb(stored, path)
            yield TimedFrame(time=time, picture=functools.partial(_itself, picture))
            time += Fraction(round(stored.info.get("duration") or 0), 1000) or UNTIMED_SECONDS


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
            if stream is None:
                raise DataError(f"{path} holds no video. Replace it, or remove it.")
            stream.thread_type = "AUTO"
            stream.codec_context.thread_count = THREADS
            yield container, stream
    except FileNotFoundError as error:
        raise DataError(f"{path} is not there (any more). Put it back, or remove its caption.") from error
    except (av.FFmpegError, OSError) as error:
        raise DataError(
            f"{path} cannot be read as a video ({type(error).__name__}: {error.strerror or error}). It may be damaged"
            " or not fully copied; replace it, or remove it."
        ) from error


def _probe_container(path: Path) -> VideoInfo:
    first, count, latest = None, 0, None
    with _container(path) as (container, stream):
        for packet in container.demux(stream):
            if first is None:
                first = next(iter(packet.decode()), None)
            if packet.size and not packet.is_discard and not packet.is_corrupt:
                count += 1
                if packet.pts is not None:
                    latest = packet.pts if latest is None else max(latest, packet.pts)
        if first is None:
            raise DataError(f"{path} holds no picture that can be decoded. Replace it, or remove it.")
        if first.pts is None or latest is None:
            # A bare stream without times (.h264): its pictures are evenly spaced.
            last = (count - 1) / _nominal_fps(stream)
        else:
            last = (latest - first.pts) * stream.time_base
        picture = _seen(first, stream.sample_aspect_ratio)
    return VideoInfo(size=picture.size, frames=count, last=max(last, Fraction(0)), rotation=first.rotation)


def _container_frames(path: Path, start: Fraction) -> Iterator[TimedFrame]:
    frames = _decoded_from(path, start)
    first = next(frames, None)
    if start > 0 and (first is None or first.time > start):
        # The container's index is missing or wrong.
        yield from _decoded_from(path, Fraction(0))
    elif first is not None:
        yield first
        yield from frames


def _decoded_from(path: Path, start: Fraction) -> Iterator[TimedFrame]:
    """From the nearest key picture that the container finds before `start` seconds."""
    with _container(path) as (container, stream):
        frames = _decode(container, stream, from_key=False)
        first = next(frames, None)
        if first is None:
            return
        if first.pts is not None and start > 0 and container.format.name not in GUESSED_TIMES:
            container.seek(first.pts + math.floor(start / stream.time_base), stream=stream)
            frames = _decode(container, stream, from_key=True)
        else:
            yield _timed(first, first.pts, 0, stream)
        for index, frame in enumerate(frames, 1):
            yield _timed(frame, first.pts, index, stream)


def _decode(container: Any, stream: Any, from_key: bool) -> Iterator[av.VideoFrame]:
    """Decoded pictures; `from_key`: what comes before a key picture leans on pictures that were not read."""
    skipping, earliest = from_key, None
    for packet in container.demux(stream):
        if packet.is_corrupt or (skipping and not packet.is_keyframe):
            continue
        if skipping:
            skipping, earliest = False, packet.pts
        for frame in packet.decode():
            if earliest is None or frame.pts >= earliest:
                yield frame


def _timed(frame: av.VideoFrame, origin: int | None, index: int, stream: Any) -> TimedFrame:
    time = index / _nominal_fps(stream) if origin is None else (frame.pts - origin) * stream.time_base
    return TimedFrame(time=time, picture=functools.partial(_seen, frame, stream.sample_aspect_ratio))


def _nominal_fps(stream: Any) -> Fraction:
    return Fraction(stream.guessed_rate or stream.average_rate or 25)


def _seen(frame: av.VideoFrame, pixel_aspect: Fraction | None) -> Image.Image:
    """`pixel_aspect`: width over height of one stored pixel; None means square."""
    width = round(frame.width * (pixel_aspect or 1))
    return frame.to_image(width=width, height=frame.height).rotate(frame.rotation, expand=True)
