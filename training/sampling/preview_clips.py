"""What previews of clips have beyond those of pictures: where they start, and the files that show them.

Legend of shapes: F frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image
from torch import Tensor

from ..data.media import from_pixels, image_size
from ..data.records import ClipRecord
from ..data.video_writer import write_video
from ..files import replacing
from ..settings.geometry import Size, parse_size
from ..settings.validation import ValidationConfig

STRIP_FRAMES = 8
"""Of a clip, evenly spaced from the first to the last, side by side."""

STRIP_HEIGHT = 256
"""Px, at most."""


def starting_record(record: ClipRecord, caption: str, config: ValidationConfig) -> ClipRecord:
    """What is cached of a preview's start: the first frame of `record` alone, at the preview's size."""
    frame = image_size(record.references[0]) if record.references else record.video.size
    return replace(
        record,
        caption=caption,
        bucket=clip_size(frame, config.validation_resolution),
        clip=replace(record.clip, frames=1),
        # Of this one frame nothing is given: it is all there is.
        is_i2v=False,
    )


def clip_size(frame: Size, resolution: str) -> Size:
    """The sides of `resolution`, upright where a start frame of (width, height) px is."""
    width, height = parse_size(resolution, ValidationConfig.named("validation_resolution"))
    return (height, width) if (width - height) * (frame[0] - frame[1]) < 0 else (width, height)


def save_clip(pixels: Tensor, path: Path, fps: float) -> None:
    """Writes pixels [1, 3, F, H, W] as an MP4 file.

    Raises:
        OSError: the file cannot be written.
    """
    with replacing(path) as temporary:
        write_video(temporary, _pictures(pixels, range(pixels.shape[2])), fps)


def strip_of(pixels: Tensor) -> Image.Image:
    """Some frames of pixels [1, 3, F, H, W] side by side."""
    last = pixels.shape[2] - 1
    count = min(STRIP_FRAMES, last + 1)
    frames = _pictures(pixels, [round(place * last / max(count - 1, 1)) for place in range(count)])
    width, height = frames[0].size
    if height > STRIP_HEIGHT:
        width, height = max(round(width * STRIP_HEIGHT / height), 1), STRIP_HEIGHT
        frames = [frame.resize((width, height)) for frame in frames]
    strip = Image.new("RGB", (width * count, height))
    for place, frame in enumerate(frames):
        strip.paste(frame, (place * width, 0))
    return strip


def _pictures(pixels: Tensor, places: Sequence[int]) -> list[Image.Image]:
    return [from_pixels(pixels[:, :, place]) for place in places]
