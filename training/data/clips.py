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
from ..options import Checked, option
from ..sizes import Size
from .media import CENTRE, to_pixels
from .video_buckets import FRAME_STEP, check_frames, clip_frames
from .video_files import OVERHANG, TimedFrame, VideoInfo, read_frames

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

FRAME_RATE = 15.0
"""Frames per second that the base stage makes (official: run_demo_text_to_video.py)."""

LARGEST_DENOMINATOR = 1001
"""Of the rates in use: 30000/1001 is 29.97."""


@dataclass(kw_only=True, frozen=True)
class ClipConfig(Checked):
    """Which clips are taken from the videos of a dataset. Names as in SimpleTuner's `video` section."""

    num_frames: int = option(
        93, "Frames of a clip (guide: 93, 6.2 s); (frames - 1) must be a multiple of 4.", low=1, high=1001, step=4
    )
    min_frames: int = option(
        0,
        "With bucket_strategy resolution_frames: the fewest frames that a shorter video may be cut down to. 0:"
        " num_frames, so shorter videos are refused.",
        low=0,
        high=1001,
        step=1,
    )
    frame_rate: float = option(
        FRAME_RATE,
        "Frames per second that the clips are taken at. The model draws 15 per second, so 15 keeps movements at their"
        " speed.",
        low=1.0,
        high=120.0,
        step=0.01,
    )
    extraction: str = option(
        "first",
        "Where in a video its clip lies. first: at its beginning; middle; random: anywhere, the same place every time;"
        " multiple: as many clips as fit, one after another.",
        choices=("first", "middle", "random", "multiple"),
    )
    bucket_strategy: str = option(
        "aspect_ratio",
        "aspect_ratio: every clip has num_frames. resolution_frames: a shorter video gives a shorter clip, of"
        " min_frames at least, in a bucket of its own length.",
        choices=("aspect_ratio", "resolution_frames"),
    )
    frame_interval: int = option(
        FRAME_STEP,
        "Shorter clips are cut down to a multiple of this, plus one; a coarser step makes fewer buckets.",
        low=4,
        high=1000,
        step=4,
        advanced=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_frames("ClipConfig.num_frames", self.num_frames)

    @property
    def rate(self) -> Fraction:
        """`frame_rate`, exact."""
        return exact_rate(self.frame_rate)

    @property
    def least_frames(self) -> int:
        """Fewer frames than these make a video too short."""
        if self.bucket_strategy == "aspect_ratio":
            return self.num_frames
        return min(self.min_frames, self.num_frames) or self.num_frames


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
        seed: tells a random place apart from those in other videos; equal seeds give equal places.
    """
    available = info.frames_at(config.rate)
    frames = clip_frames(available, config.num_frames, config.least_frames, config.frame_interval)
    if not frames:
        return ()
    starts = _starts(available, frames, config.extraction, seed)
    return tuple(Clip(start=start, frames=frames, fps=config.frame_rate) for start in starts)


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
            " have changed or be damaged: replace it, or run PairDatasets again."
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
    raise DataError(f"extraction is {extraction!r}; it must be first, middle, random or multiple.")
