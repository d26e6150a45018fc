"""Buckets of clips: width, height and number of frames, since a batch holds clips of one shape.

Width and height come from the same choices as those of pictures (buckets.py); here is what frames add.
"""

from __future__ import annotations

from typing import NamedTuple

from ..settings.geometry import FRAME_STEP, cut_down


class VideoBucket(NamedTuple):
    """The shape of a clip; px and frames."""

    width: int
    height: int
    frames: int

    def __str__(self) -> str:
        """As SimpleTuner writes it: 832x480@93."""
        return f"{self.width}x{self.height}@{self.frames}"


def clip_frames(available: int, num_frames: int, min_frames: int, interval: int = FRAME_STEP) -> int:
    """How many frames a clip gets, from a video that has `available` of them: `num_frames` or cut down, never up.

    Returns:
        0 when fewer than `min_frames` would be left.
    """
    frames = min(cut_down(available, interval), num_frames)
    return frames if frames >= min_frames else 0
