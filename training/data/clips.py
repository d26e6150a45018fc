"""Clips of videos at the trained rate: which ones are taken, and their pixels.

B batch, F frames, H W height and width in px.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DataError
from ..files import sha256_of_json
from ..settings.dataset import ClipConfig
from ..settings.geometry import FRAME_RATE, Size
from .buckets import clip_frames
from .media import CENTRE, to_pixels
from .video_files import OVERHANG, TimedFrame, VideoInfo, read_frames

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

LARGEST_DENOMINATOR = 1001
"""Of the rates in use: 30000/1001 is 29.97."""


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A part of a video."""

    start: int
    """Number of its first frame, of those that the video has at `fps`."""
    frames: int
    fps: float = FRAME_RATE


def exact_rate(fps: float) -> Fraction:
    return Fraction(fps).limit_denominator(LARGEST_DENOMINATOR)


def choose_clips(info: VideoInfo, config: ClipConfig, seed: str) -> tuple[Clip, ...]:
    """The clips that `config` takes from a video; none when it is too short.

    Args:
        seed: a random place depends on it alone; each video has its own.
    """
    available = info.frames_at(exact_rate(config.fps))
    frames = clip_frames(available, config.num_frames, config.least_frames, config.frame_interval)
    if not frames:
        return ()
    starts = _starts(available, frames, config.clip_extraction, seed)
    return tuple(Clip(start=start, frames=frames, fps=config.fps) for start in starts)


def read_clip(
    path: Path, start: int, frames: int, fps: float, size: Size, crop: tuple[float, float] = CENTRE
) -> Tensor:
    """A clip as pixels of a bucket; every frame is resized to cover `size` and cropped alike.

    Args:
        start: number of the first frame, of those that the video has at `fps`.
        size: (W, H) px.
        crop: shares of what is cropped off that fall to the left and to the top.

    Returns:
        pixels: [1, 3, F, H, W] float32, -1..1.

    Raises:
        DataError: as `iterate_pixels`.
    """
    import torch

    width, height = size
    pixels = torch.empty(1, 3, frames, height, width)
    for index, frame in enumerate(iterate_pixels(path, start, frames, fps, size, crop)):
        pixels[:, :, index] = frame
    return pixels


def iterate_pixels(
    path: Path, start: int, frames: int, fps: float, size: Size, crop: tuple[float, float] = CENTRE
) -> Iterator[Tensor]:
    """The frames of `read_clip` one at a time: [1, 3, H, W] float32, -1..1.

    Raises:
        DataError: the video is missing, damaged, or ends before the clip; names it.
    """
    for picture in iterate_pictures(path, start, frames, fps):
        yield to_pixels(picture, size, crop)


def iterate_pictures(path: Path, start: int, frames: int, fps: float) -> Iterator[Image.Image]:
    """The RGB frames of a clip in their own size, as seen.

    Raises:
        DataError: as `iterate_pixels`.
    """
    rate = exact_rate(fps)
    times = [number / rate for number in range(start, start + frames)]
    found = 0
    for frame in _nearest(read_frames(path, times[0], rate), times, OVERHANG / rate):
        found += 1
        yield frame.picture()
    if found < frames:
        raise DataError(
            f"{path} ends after {start + found} frames at {fps:g} per second; the clip needs {start + frames}. It may"
            " have changed or be damaged: replace it, or queue again, so that its clips are chosen again."
        )


def _nearest(frames: Iterable[TimedFrame], times: Iterable[Fraction], tolerance: Fraction) -> Iterator[TimedFrame]:
    """For each of the rising `times` the frame nearest to it, the earlier of two equally near ones.

    Times more than `tolerance` behind the last frame get none.
    """
    wanted = iter(times)
    time = next(wanted, None)
    before = None
    for frame in frames:
        while before is not None and time is not None and time - before.time <= frame.time - time:
            yield before
            time = next(wanted, None)
        if time is None:
            return
        before = frame
    while before is not None and time is not None and time <= before.time + tolerance:
        yield before
        time = next(wanted, None)


def _starts(available: int, frames: int, extraction: str, seed: str) -> Iterable[int]:
    spare = available - frames
    if extraction == "first":
        return (0,)
    if extraction == "middle":
        return (spare // 2,)
    if extraction == "random":
        return (int(sha256_of_json({"clip of": seed}), 16) % (spare + 1),)
    if extraction == "multiple":
        return range(0, spare + 1, frames)
    raise DataError(f"clip_extraction is {extraction!r}; it must be first, middle, random or multiple.")
