"""Pictures and clips sampled while training."""

from __future__ import annotations

from dataclasses import dataclass

from .geometry import FRAME_RULE, FRAME_STEP, MOST_FRAMES, check_frames, parse_size
from .option import LARGEST_INT, Checked, option


@dataclass(kw_only=True, frozen=True)
class ValidationConfig(Checked):
    """Pictures sampled while training (LongCatValidation)."""

    node = "LongCat Validation"

    validation_steps: int = option(
        100, "Sample every so many steps, and once before step 1.", low=1, high=1_000_000, step=1
    )
    validation_resolution: str = option(
        "768x768",
        "WIDTHxHEIGHT in px. Text-to-image: exactly that. Edits: its area, with the aspect of the reference."
        " Clips: its two sides, with the orientation of the first frame.",
    )
    validation_num_inference_steps: int = option(40, "Euler steps of a sample (guide: 40).", low=1, high=1000, step=1)
    validation_guidance: float = option(
        4.5, "Classifier-free guidance; 1 switches it off (guide: 4 to 6; 4.5 for edits).", low=1.0, high=30.0, step=0.1
    )
    validation_seed: int = option(42, "Seed of the samples' noise.", low=0, high=LARGEST_INT, step=1)
    num_samples: int = option(
        2, "How many pairs or captions are sampled, counted from the first.", low=1, high=64, step=1
    )
    validation_prompt: str = option(
        "",
        "Instructions or prompts instead of the captions, one per line. Edits: line n is for pair n, the last line"
        " for all further pairs. Text-to-image: each line is one sample.",
        multiline=True,
    )
    validation_negative_prompt: str = option(
        "", "What guidance leads away from. Empty: the empty prompt (official).", multiline=True
    )
    validation_num_video_frames: int = option(
        93, f"LongCat-Video: frames of a sample; {FRAME_RULE}.", low=1, high=MOST_FRAMES, step=FRAME_STEP
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_frames(self.named("validation_num_video_frames"), self.validation_num_video_frames)
        parse_size(self.validation_resolution, self.named("validation_resolution"))
