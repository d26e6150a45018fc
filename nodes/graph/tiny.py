"""The tiny twin of a workflow: same nodes and links, but a model of a few megabytes, small pictures and few steps."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from ...training.errors import LongCatError
from ...training.settings.model import ModelConfig
from ...training.settings.run import TrainConfig
from ..lora import NO_LORA
from .core_nodes import node_classes
from .signature import is_link, signature_of

T = TypeVar("T")

TINY_SIDE = 64
"""Px, the side the tiny twins are made for."""

TINY_FRAMES = 9
"""Of a clip: 3 latent frames."""

LONGEST_PROMPT = 120
"""Characters; letter by letter, as the twins' tokenizer reads unknown words, a long prompt would not fit its slots."""

SAMPLING_STEPS = 20
"""What the twins' pictures need to be clean."""

GUIDANCE = 2.0
"""The strongest that the twins' pictures bear."""

AT_MOST: dict[tuple[str, str], float] = {
    ("LongCatDataset", "aspect_bucket_alignment"): TINY_SIDE,
    ("LongCatValidation", "validation_steps"): 4,
    ("LongCatValidation", "validation_num_inference_steps"): 4,
    ("LongCatValidation", "validation_guidance"): GUIDANCE,
    ("LongCatTrainingOptions", "gradient_accumulation_steps"): 2,
    ("LongCatTrainingOptions", "lr_warmup_steps"): 2,
    ("LongCatTrainingOptions", "checkpoint_step_interval"): 4,
    ("TrainLoRA", "max_train_steps"): 8,
    ("LongCatSampleEdit", "num_inference_steps"): SAMPLING_STEPS,
    ("LongCatSampleEdit", "guidance_scale"): GUIDANCE,
    ("LongCatSampleT2I", "num_inference_steps"): SAMPLING_STEPS,
    ("LongCatSampleT2I", "guidance_scale"): GUIDANCE,
    ("LongCatSampleT2V", "num_inference_steps"): SAMPLING_STEPS,
    ("LongCatSampleT2V", "guidance_scale"): GUIDANCE,
    ("SampleI2V", "num_inference_steps"): SAMPLING_STEPS,
    ("SampleI2V", "guidance_scale"): GUIDANCE,
    ("LongCatDataset", "num_frames"): TINY_FRAMES,
    ("LongCatDataset", "min_frames"): TINY_FRAMES,
    ("LongCatDataset", "frame_interval"): TINY_FRAMES - 1,
    ("LongCatValidation", "validation_num_video_frames"): TINY_FRAMES,
    ("LongCatSampleT2V", "num_frames"): TINY_FRAMES,
    ("SampleI2V", "num_frames"): TINY_FRAMES,
}
"""Numbers that are brought down; smaller ones stay as they are."""

EXACTLY: dict[tuple[str, str], Any] = {
    ("LoadLongCat", "pretrained_model_name_or_path"): "auto",
    ("LoadLongCat", "transformer_file"): "auto",
    ("LoadLongCat", "vae_file"): "auto",
    ("LoadLongCat", "text_encoder_file"): "auto",
    # A LoRA of the real model fits no module of the twin.
    ("LongCatLoadLoRA", "lora_name"): NO_LORA,
    ("LongCatConvertLoRA", "lora_name"): NO_LORA,
    ("LongCatDataset", "resolution"): str(TINY_SIDE),
    ("LongCatDataset", "resolution_type"): "pixel_area",
    ("LongCatValidation", "validation_resolution"): f"{TINY_SIDE}x{TINY_SIDE}",
    ("EncodeEditPrompt", "width"): TINY_SIDE,
    ("EncodeEditPrompt", "height"): TINY_SIDE,
    ("LongCatSampleEdit", "width"): TINY_SIDE,
    ("LongCatSampleEdit", "height"): TINY_SIDE,
    ("LongCatSampleT2I", "width"): TINY_SIDE,
    ("LongCatSampleT2I", "height"): TINY_SIDE,
    ("LongCatSampleT2V", "width"): TINY_SIDE,
    ("LongCatSampleT2V", "height"): TINY_SIDE,
    ("SampleI2V", "width"): TINY_SIDE,
    ("SampleI2V", "height"): TINY_SIDE,
    # The distilled LoRA is left out with all the others.
    ("LongCatSampleT2V", "distilled"): False,
    ("SampleI2V", "distilled"): False,
}

PROMPTS = {
    ("EncodeEditPrompt", "prompt"),
    ("EncodeEditPrompt", "negative_prompt"),
    ("LongCatEncodePrompt", "prompt"),
    ("LongCatEncodePrompt", "negative_prompt"),
    ("LongCatValidation", "validation_prompt"),
    ("LongCatValidation", "validation_negative_prompt"),
}


PRECISIONS: dict[tuple[str, str], str] = {
    ("LoadLongCat", "base_model_precision"): "bf16",
    ("LoadLongCat", "text_encoder_1_precision"): "no_change",
}
"""What takes the place of a quantised precision."""


def tiny_value(class_type: str, name: str, value: Any, quantised: bool | None) -> Any:
    """What `value` of this widget becomes; `quantised` as in `make_tiny`. The flavour: see `tiny_flavour`."""
    key = (class_type, name)
    if key in AT_MOST:
        return min(value, AT_MOST[key])
    if key in EXACTLY:
        return EXACTLY[key]
    if key in PROMPTS:
        return "\n".join(line[:LONGEST_PROMPT] for line in value.splitlines())
    if key in PRECISIONS and not _keeps(value, quantised):
        return PRECISIONS[key]
    if key == ("TrainLoRA", "run_name"):
        return tiny_run_name(value)
    return value


def tiny_run_name(name: str) -> str:
    """A name of its own: a rehearsal must not stand in the way of the real run."""
    return name if name.endswith("-tiny") else f"{name}-tiny"


def tiny_flavour(family: str, flavour: str) -> str:
    """The twin that does the same work as `flavour`. An unknown one stays, so that it is refused by its name."""
    from ...training.settings.flavours import FLAVOURS, twin_of

    wanted = FLAVOURS.get((family, flavour))
    return flavour if wanted is None else twin_of(wanted)


def make_tiny(workflow: Mapping[str, Any], quantised: bool | None = None) -> dict[str, Any]:
    """A copy of an API graph or of a UI workflow that runs in seconds on any machine.

    Args:
        quantised: whether to keep quantised precisions; None: those that can be had here. (Say False for a server,
            whose packages are not known.)
    """
    tiny = copy.deepcopy(dict(workflow))
    if isinstance(tiny.get("nodes"), list):
        for node in tiny["nodes"]:
            _shrink_ui_node(node, quantised)
        return tiny
    for node in tiny.values():
        given = {name: value for name, value in node["inputs"].items() if not is_link(value)}
        node["inputs"] |= _tiny_values(node["class_type"], given, quantised)
    return tiny


def tiny_config(class_type: str, config: T, quantised: bool | None = None) -> T:
    """A config dataclass with the values that the widgets of its node get by `make_tiny`."""
    fields = [field.name for field in dataclasses.fields(config) if "option" in field.metadata]
    given = {name: getattr(config, name) for name in fields}
    return dataclasses.replace(config, **_tiny_values(class_type, given, quantised))


def tiny_training(config: TrainConfig) -> TrainConfig:
    """The same of TrainLoRA and of the settings that are wired into it."""
    plan = config.validation
    return dataclasses.replace(
        tiny_config("TrainLoRA", config),
        options=tiny_config("LongCatTrainingOptions", config.options),
        validation=tiny_config("LongCatValidation", plan) if plan is not None else None,
    )


def _tiny_values(class_type: str, values: Mapping[str, Any], quantised: bool | None) -> dict[str, Any]:
    tiny = {name: tiny_value(class_type, name, value, quantised) for name, value in values.items()}
    if class_type == "LoadLongCat" and "model_flavour" in values:
        family = values.get("model_family", ModelConfig.model_family)
        tiny["model_flavour"] = tiny_flavour(family, values["model_flavour"])
    return tiny


def _shrink_ui_node(node: dict[str, Any], quantised: bool | None) -> None:
    node_class = node_classes().get(node["type"])
    values = node.get("widgets_values")
    if node_class is None or not isinstance(values, list):
        return
    names = [name for name, _ in signature_of(node_class).widget_slots()[: len(values)]]
    given = {name: value for name, value in zip(names, values, strict=False) if name}
    tiny = _tiny_values(node["type"], given, quantised)
    node["widgets_values"] = [tiny.get(name, value) for name, value in zip(names, values, strict=False)]
    node["widgets_values"] += values[len(names) :]


def _keeps(precision: str, quantised: bool | None) -> bool:
    from ...training.weights.quantisation import ensure_available

    if quantised is not None:
        return quantised or precision in ("bf16", "fp32", "no_change")
    try:
        ensure_available(precision)
    except LongCatError:
        return False
    return True
