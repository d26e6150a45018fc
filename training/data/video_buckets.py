"""Buckets of clips: width, height and number of frames, since a batch holds clips of one shape.

Width and height come from the same choices as those of pictures (buckets.py); here is what frames add.
"""

from __future__ import annotations

from typing import NamedTuple

from ..errors import ConfigError

FRAME_STEP = 4
"""The VAE packs this many frames into a latent one, and the first alone: a clip has 4 k + 1 frames."""


class VideoBucket(NamedTuple):
    """The shape of a clip; px and frames."""

    width: int
    height: int
    frames: int

    def __str__(self) -> str:
        """As SimpleTuner writes it: 832x480@93."""
        return f"{self.width}x{self.height}@{self.frames}"


def cut_down(frames: int, interval: int = FRAME_STEP) -> int:
    """The largest k * interval + 1 that is at most `frames`; 0 without frames."""
    return (frames - 1) // interval * interval + 1 if frames > 0 else 0


def check_frames(where: str, frames: int) -> None:
    """
    Raises:
        ConfigError: `frames` is not 4 k + 1; names its neighbours.
    """
    if frames < 1 or (frames - 1) % FRAME_STEP:
        lower = max(cut_down(frames), 1)
        raise ConfigError(
            f"{where} is {frames}; the VAE takes one frame and then {FRAME_STEP} at a time, so (frames - 1) must be a"
            f" multiple of {FRAME_STEP}. Use {lower} or {lower + FRAME_STEP}."
        )


def clip_frames(available: int, num_frames: int, min_frames: int, interval: int = FRAME_STEP) -> int:
    """How many frames a clip gets, from a video that has `available` of them: `num_frames` or cut down, never up.

    Returns:
        0 when fewer than `min_frames` would be left.
    """
    frames = min(cut_down(available, interval), num_frames)
    return frames if frames >= min_frames else 0
