"""Settings made small, field by field: what a tiny twin can do, in seconds and on any machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from ..errors import LongCatError
from ..settings.flavours import FLAVOURS, twin_of
from ..weights.precisions import ensure_available

T = TypeVar("T")

SIDE = 64
"""Px, the side the tiny twins are made for."""

FRAMES = 9
"""Of a clip: 3 latent frames."""

LONGEST_PROMPT = 120
"""Characters; letter by letter, as the twins' tokenizer reads unknown words, a long prompt would not fit its slots."""

GUIDANCE = 2.0
"""The strongest that the twins' pictures bear."""

AT_MOST: dict[str, float] = {
    "aspect_bucket_alignment": SIDE,
    "num_frames": FRAMES,
    "min_frames": FRAMES,
    "frame_interval": FRAMES - 1,
    "validation_steps": 4,
    "validation_num_inference_steps": 4,
    "validation_guidance": GUIDANCE,
    "validation_num_video_frames": FRAMES,
    "gradient_accumulation_steps": 2,
    "lr_warmup_steps": 2,
    "checkpoint_step_interval": 4,
    "max_train_steps": 8,
    # What the twins' pictures need to be clean.
    "num_inference_steps": 20,
    "guidance_scale": GUIDANCE,
}
"""Numbers that are brought down; smaller ones stay as they are. Keys of all tables: fields of any config dataclass."""

EXACTLY: dict[str, Any] = {
    "pretrained_model_name_or_path": "auto",
    "transformer_file": "auto",
    "vae_file": "auto",
    "text_encoder_file": "auto",
    "resolution": str(SIDE),
    "resolution_type": "pixel_area",
    "validation_resolution": f"{SIDE}x{SIDE}",
    "width": SIDE,
    "height": SIDE,
    # The distilled LoRA is one of the real model.
    "distilled": False,
}

PROMPTS = ("validation_prompt", "validation_negative_prompt")
"""Each line is cut."""

PRECISIONS = {"base_model_precision": "bf16", "text_encoder_1_precision": "no_change"}
"""What takes the place of a quantised precision."""


def small(config: T) -> T:
    """A config dataclass, and those inside it, with every setting made small."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    nested = {name: small(value) for name, value in values.items() if dataclasses.is_dataclass(value)}
    return dataclasses.replace(config, **small_values(values) | nested)


def small_values(values: Mapping[str, Any], quantised: bool | None = None) -> dict[str, Any]:
    """The same of settings by name; unknown names stay as they are.

    Args:
        quantised: whether to keep quantised precisions; None: those that can be had here.
    """
    made = {name: _small_value(name, value, quantised) for name, value in values.items()}
    if "model_family" in values and "model_flavour" in values:
        made["model_flavour"] = tiny_flavour(values["model_family"], values["model_flavour"])
    return made


def tiny_run_name(name: str) -> str:
    """A name of its own: a rehearsal must not stand in the way of the real run."""
    return name if name.endswith("-tiny") else f"{name}-tiny"


def tiny_flavour(family: str, flavour: str) -> str:
    """The twin that does the same work as `flavour`. An unknown one stays, so that it is refused by its name."""
    wanted = FLAVOURS.get((family, flavour))
    return flavour if wanted is None else twin_of(wanted)


def short_prompt(text: str) -> str:
    """`text` with each of its lines cut to what a twin reads."""
    return "\n".join(line[:LONGEST_PROMPT] for line in text.splitlines())


def _small_value(name: str, value: Any, quantised: bool | None) -> Any:
    if name in AT_MOST:
        return min(value, AT_MOST[name])
    if name in PROMPTS:
        return short_prompt(value)
    if name in PRECISIONS and not _keeps(value, quantised):
        return PRECISIONS[name]
    if name == "run_name":
        return tiny_run_name(value)
    return EXACTLY.get(name, value)


def _keeps(precision: str, quantised: bool | None) -> bool:
    # Quantisation loads torch, and a graph is made small without it.
    if quantised is not None:
        return quantised or precision in ("bf16", "fp32", "no_change")
    try:
        ensure_available(precision)
    except LongCatError:
        return False
    return True
