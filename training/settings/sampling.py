"""The settings of one sampling call."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ConfigError
from .geometry import (
    FRAME_RATE,
    FRAME_RULE,
    FRAME_STEP,
    LARGEST_SIDE,
    MOST_FRAMES,
    PIXELS_PER_TOKEN,
    check_frames,
    check_multiple,
)
from .option import LARGEST_INT, Checked, option

SIDE = {"high": LARGEST_SIDE, "step": PIXELS_PER_TOKEN}


@dataclass(kw_only=True, frozen=True)
class SampleConfig(Checked):
    """One sampling call (LongCatSampleEdit)."""

    node = "Sample Edit"

    width: int = option(0, "Px, a multiple of 16; 0: from the reference.", low=0, **SIDE)
    height: int = option(0, "Px, a multiple of 16; 0: from the reference.", low=0, **SIDE)
    num_inference_steps: int = option(50, "Euler steps (released pipeline: 50; guide: 40).", low=1, high=1000, step=1)
    guidance_scale: float = option(
        4.5,
        "Classifier-free guidance; 1 switches it off and halves the time (guide: 4 to 6).",
        low=1.0,
        high=30.0,
        step=0.1,
    )
    seed: int = option(42, "Seed of the noise.", low=0, high=LARGEST_INT, step=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_multiple(self.named("width"), self.width, PIXELS_PER_TOKEN)
        check_multiple(self.named("height"), self.height, PIXELS_PER_TOKEN)
        if (self.width == 0) != (self.height == 0):
            raise ConfigError(
                f"{self.named('width')} is {self.width} and height {self.height}; give both sides, or 0 for both (size"
                " of the reference)."
            )


@dataclass(kw_only=True, frozen=True)
class TextToImageConfig(SampleConfig):
    """One sampling call (LongCatSampleT2I)."""

    node = "Sample T2I"

    width: int = option(1024, "Px, a multiple of 16.", low=PIXELS_PER_TOKEN, **SIDE)
    height: int = option(1024, "Px, a multiple of 16.", low=PIXELS_PER_TOKEN, **SIDE)
    cfg_renorm: bool = option(
        True,
        "Keep guidance from making any part of the picture stronger than it is without guidance (released"
        " pipeline: on). Off: plain guidance.",
    )


@dataclass(kw_only=True, frozen=True)
class VideoSampleConfig(SampleConfig):
    """One sampling call (LongCatSampleT2V, SampleI2V)."""

    node = "Sample T2V or Sample I2V"

    width: int = option(
        832,
        "Px, a multiple of 16 (official: 832x480). With a start frame, its own orientation decides which of the two"
        " sides is the width.",
        low=PIXELS_PER_TOKEN,
        **SIDE,
    )
    height: int = option(480, "Px, a multiple of 16; see width.", low=PIXELS_PER_TOKEN, **SIDE)
    num_frames: int = option(
        93,
        f"Frames of the clip; {FRAME_RULE} (official: 93, which are 6.2 s).",
        low=1,
        high=MOST_FRAMES,
        step=FRAME_STEP,
    )
    num_inference_steps: int = option(
        50, "Euler steps (official: 50; guide: 40). Not used with distilled.", low=1, high=1000, step=1
    )
    guidance_scale: float = option(
        4.0,
        "Classifier-free guidance (CFG-zero*); 1 switches it off and halves the time (official and guide: 4). Not used"
        " with distilled.",
        low=1.0,
        high=30.0,
        step=0.1,
    )
    fps: float = option(FRAME_RATE, "Frames per second that the model was trained at.", low=1.0, high=120.0, step=0.01)
    distilled: bool = option(
        False,
        "For the released cfg_step_lora, loaded with Load LongCat LoRA, or another LoRA distilled like it: 16"
        " steps with noise levels of their own, without guidance.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_frames(self.named("num_frames"), self.num_frames)
