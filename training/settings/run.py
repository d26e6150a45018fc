"""Settings of a training run.

Sources of defaults: "guide" = SimpleTuner's LongCat quickstarts, "official" = the trainers of
meituan-longcat/LongCat-Image, "diffusers" = its LongCat-Image pipelines.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ConfigError
from ..paths import check_name
from .option import LARGEST_INT, Checked, option
from .validation import ValidationConfig

POLYNOMIAL_END = 1e-7
"""Learning rate at which diffusers' polynomial schedule ends; it has to start above."""

OWN_SHIFT = -1.0
"""As `TrainingOptions.flow_schedule_shift`: the shift that the model's released schedule has."""


def given_shift(flow_schedule_shift: float) -> float | None:
    """The shift that the setting gives; None: it stands for the model's own."""
    return flow_schedule_shift if flow_schedule_shift > 0 else None


def check_video_shift(flow_schedule_shift: float) -> None:
    """Refuses 0, which pictures have for the model's own, and SimpleTuner for none, with which no noise is left here.

    Raises:
        ConfigError: naming what to give instead.
    """
    if flow_schedule_shift == 0:
        raise ConfigError(
            "flow_schedule_shift is 0, which would make every noise level of LongCat-Video 0. Give 12, the model's own,"
            f" or {OWN_SHIFT:g}, which stands for it (in SimpleTuner's config.json: leave the key out)."
        )


@dataclass(kw_only=True, frozen=True)
class TrainingOptions(Checked):
    """Settings that most runs leave alone (LongCatTrainingOptions)."""

    node = "LongCat Training Options"

    lora_target: str = option(
        "simpletuner",
        "Which layers get an adapter. LongCat-Image: simpletuner: attention q, k, v, out (100 layers); official:"
        " also the added projections and feed-forwards of the double blocks (180). LongCat-Video: attention (240;"
        " simpletuner means the same there); attention+ffn: also the feed-forwards (384).",
        choices=("simpletuner", "official", "attention", "attention+ffn"),
    )
    lora_alpha: float = option(
        0.0, "The adapter's output is scaled by alpha / rank. 0: alpha = rank.", low=0.0, high=1024.0, step=0.5
    )
    lr_scheduler: str = option(
        "constant",
        "Schedule of the learning rate after the warm-up (lr_warmup_steps, also for constant). With constant, a"
        " finished run can be made longer: raise max_train_steps and queue again.",
        choices=("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"),
    )
    lr_warmup_steps: int = option(
        0, "Steps in which the learning rate rises from 0 to its value.", low=0, high=1_000_000, step=1
    )
    weight_decay: float = option(
        0.01, "Weight decay of the optimiser (official, edit: 0.01).", low=0.0, high=1.0, step=0.001
    )
    max_grad_norm: float = option(
        1.0, "Gradients are clipped to this norm (official: 1); 0 does not clip.", low=0.0, high=1000.0, step=0.1
    )
    gradient_accumulation_steps: int = option(
        1, "Batches per optimiser step; works like a larger batch in less memory.", low=1, high=1024, step=1
    )
    gradient_checkpointing: bool = option(
        True, "Compute activations twice instead of keeping them: far less memory, about a third slower."
    )
    caption_dropout_probability: float = option(
        0.1,
        "Share of the samples that are trained with the empty instruction, their references kept (official: 0.1)."
        " Guidance needs it.",
        low=0.0,
        high=1.0,
        step=0.01,
    )
    flow_schedule_shift: float = option(
        OWN_SHIFT,
        "Moves the noise levels of the training towards noise. -1: the model's own shift, for LongCat-Image by the"
        " resolution (2.33 at 768 px, 3.16 at 1024 px; 0 means the same), for LongCat-Video 12 (0 is refused)."
        " SimpleTuner's default is a constant 3.",
        low=OWN_SHIFT,
        high=100.0,
        step=0.01,
    )
    checkpoint_step_interval: int = option(
        250,
        "Save a checkpoint every so many steps, and at the end or when stopped.",
        low=1,
        high=1_000_000,
        step=1,
    )
    checkpoints_total_limit: int = option(
        3, "Keep so many of the newest checkpoints; 0 keeps all.", low=0, high=1000, step=1
    )
    optimizer: str = option(
        "adamw",
        "adamw: torch's AdamW (official). adafactor: less memory; with the given learning rate, without its own"
        " scaling or decay.",
        choices=("adamw", "adafactor"),
    )
    adam_beta1: float = option(
        0.9,
        "AdamW: share of the old mean gradient that is kept at a step.",
        low=0.0,
        high=0.9999,
        step=0.0001,
        advanced=True,
    )
    adam_beta2: float = option(
        0.999,
        "AdamW: share of the old mean squared gradient that is kept at a step.",
        low=0.0,
        high=0.9999,
        step=0.0001,
        advanced=True,
    )
    adam_epsilon: float = option(
        1e-8,
        "AdamW: added to the divisor of a step, so that it is never 0.",
        low=0.0,
        high=1.0,
        step=1e-9,
        advanced=True,
    )
    lr_num_cycles: int = option(
        1, "cosine_with_restarts: how often the learning rate falls from its value to 0.", low=1, high=1000, step=1
    )
    lr_power: float = option(
        1.0, "polynomial: exponent of the fall to 1e-7; 1 is a straight line.", low=0.1, high=10.0, step=0.1
    )
    use_ema: bool = option(
        False,
        "Keep a moving average of the adapter's weights. Previews and the saved LoRA use it; the training itself"
        " does not change.",
    )
    ema_decay: float = option(
        0.995,
        "Only with use_ema: share of the old average that is kept at a step (SimpleTuner: 0.995); less in the"
        " first steps.",
        low=0.0,
        high=0.9999,
        step=0.0001,
    )
    debug_images: bool = option(
        False,
        "Before the first step, write noise, noisy picture, prediction, target and recovered picture of the first"
        " batches into the folder debug of the run.",
        advanced=True,
    )
    # Saved workflows hold widgets by place: new ones only at the end.
    first_frame_probability: float = option(
        1.0,
        "LongCat-Video: share of the image-to-video batches that are given their first frame. The others are"
        " trained as text-to-video, so that one LoRA serves both.",
        low=0.0,
        high=1.0,
        step=0.01,
    )


@dataclass(kw_only=True, frozen=True)
class TrainConfig(Checked):
    """One training run (TrainLoRA)."""

    node = "Train LoRA"

    run_name: str = option(
        "longcat-lora",
        "Name of the run's folder and of the LoRA file. An unfinished run of the same name and settings is continued.",
    )
    max_train_steps: int = option(1000, "Optimiser steps.", low=1, high=1_000_000, step=1)
    learning_rate: float = option(5e-5, "Learning rate (guide: 5e-5 for edit).", low=1e-8, high=1.0, step=1e-7)
    lora_rank: int = option(16, "Inner size of the adapter (guide: 16; 4 to 8 saves memory).", low=1, high=512, step=1)
    train_batch_size: int = option(1, "Samples per batch, all of one bucket (guide: 1).", low=1, high=256, step=1)
    seed: int = option(
        42,
        "Seed of the adapter, the order of the data, the noise and the noise levels.",
        low=0,
        high=LARGEST_INT,
        step=1,
    )
    restart: bool = option(
        False, "Start over under a new name, even if a run of the same settings exists.", advanced=True
    )
    options: TrainingOptions = TrainingOptions()
    validation: ValidationConfig | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name(self.named("run_name"), self.run_name)
        if self.options.lr_scheduler == "polynomial" and self.learning_rate <= POLYNOMIAL_END:
            raise ConfigError(
                f"{self.named('learning_rate')} is {self.learning_rate}, but lr_scheduler polynomial ends at"
                f" {POLYNOMIAL_END}. Raise learning_rate, or choose another lr_scheduler."
            )
