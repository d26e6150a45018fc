"""The shipped workflows. `make workflows` writes their files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ...training.settings.model import ModelConfig
from ...training.simpletuner.read import SimpleTunerRun, read_run
from ..examples import (
    CAPTIONED,
    CAPTIONED_SIZE,
    CLIP_FRAMES,
    CLIP_SIZE,
    CLIPS,
    EDIT_REFERENCES,
    EDIT_SIZE,
    EDIT_TARGETS,
    START_FRAMES,
)
from ..lora import NO_LORA
from .core_nodes import SAMPLE_PICTURE
from .description import Graph
from .from_config import TRAINING, training_graph
from .sampling import Sampling, sampling_graph

EXAMPLE_INSTRUCTION = "add a blue border"
"""What the drawn example pairs teach."""

EXAMPLE_PROMPT = "a purple circle in the middle on a white background"
"""In the words of the drawn captioned pictures."""

# 8.3 instead of 16.6 GB: the largest part of the model would not fit a 12 or 16 GB card.
SMALL_CARD = {"base_model_precision": "int8-quanto", "text_encoder_1_precision": "int8-quanto"}

SHARED = {
    "model_family": "longcat_image",
    **SMALL_CARD,
    "train_batch_size": 1,
    "gradient_checkpointing": True,
    # The node's own default; files of SimpleTuner mean true.
    "recursive": False,
}

EDIT_CONFIG = {
    **SHARED,
    "model_flavour": "edit",
    "learning_rate": 5e-5,
    "lora_rank": 16,
    "run_name": "longcat-edit-lora",
    "validation_resolution": "768x768",
    "validation_guidance": 4.5,
    "validation_num_inference_steps": 40,
}
EDIT_DATA = [
    {
        "id": "edit-images",
        "instance_data_dir": EDIT_TARGETS,
        "resolution": EDIT_SIZE,
        "conditioning_data": ["ref-images"],
    },
    {"id": "ref-images", "instance_data_dir": EDIT_REFERENCES, "resolution": EDIT_SIZE},
]
"""SimpleTuner's LongCat-Image edit quickstart, on the drawn example."""

T2I_CONFIG = {
    **SHARED,
    "model_flavour": "final",
    "learning_rate": 1e-4,
    "lora_rank": 16,
    "run_name": "longcat-t2i-lora",
    "validation_resolution": "1024x1024",
    "validation_guidance": 4.5,
    "validation_num_inference_steps": 30,
}
T2I_DATA = [
    {"id": "captioned-images", "instance_data_dir": CAPTIONED, "resolution": CAPTIONED_SIZE},
    {
        "id": "plain-images",
        "instance_data_dir": EDIT_REFERENCES,
        "resolution": CAPTIONED_SIZE,
        "caption_strategy": "instanceprompt",
        "instance_prompt": "a drawing of simple shapes",
    },
]
"""SimpleTuner's LongCat-Image quickstart, on the drawn example."""

EXAMPLE_CLIP_PROMPT = "a purple circle moves to the right on a white background"
"""In the words of the drawn clips, about the sample picture."""

VIDEO_CONFIG = {
    **SHARED,
    "model_family": "longcat_video",
    "model_flavour": "final",
    "learning_rate": 1e-4,
    "lora_rank": 8,
    "validation_num_video_frames": CLIP_FRAMES,
    "validation_guidance": 4.0,
    "validation_num_inference_steps": 40,
}
I2V_CONFIG = {
    **VIDEO_CONFIG,
    "run_name": "longcat-i2v-lora",
    # As in the quickstart; the start frame's own orientation decides which side is the width.
    "validation_resolution": "480x832",
    "validation_using_datasets": True,
    "eval_dataset_id": "longcat-video-val",
}
T2V_CONFIG = {**VIDEO_CONFIG, "run_name": "longcat-t2v-lora", "validation_resolution": "832x480"}
VIDEO_CLIPS = {
    "dataset_type": "video",
    "instance_data_dir": CLIPS,
    "caption_strategy": "textfile",
    "resolution": CLIP_SIZE,
}
VIDEO_STARTS = {"dataset_type": "conditioning", "instance_data_dir": START_FRAMES, "resolution": CLIP_SIZE}
I2V_DATA = [
    {"id": "longcat-video-train", **VIDEO_CLIPS, "is_i2v": True, "conditioning_data": ["longcat-video-cond"]},
    {"id": "longcat-video-cond", **VIDEO_STARTS},
    {"id": "longcat-video-val", **VIDEO_CLIPS, "is_i2v": True, "conditioning_data": ["longcat-video-val-cond"]},
    {"id": "longcat-video-val-cond", **VIDEO_STARTS},
]
T2V_DATA = [{"id": "longcat-video-train", **VIDEO_CLIPS}]
"""SimpleTuner's LongCat-Video image-to-video quickstart, on the drawn example; and without start frames."""


def longcat_image_edit_train() -> Graph:
    """Two folders of pictures -> an edit LoRA, with the values of SimpleTuner's LongCat-Image edit quickstart."""
    return training_graph(_described(EDIT_CONFIG, EDIT_DATA), "longcat_image_edit_train")


def longcat_image_t2i_train() -> Graph:
    """Captioned pictures -> a text-to-image LoRA, with the values of SimpleTuner's LongCat-Image quickstart."""
    graph = training_graph(_described(T2I_CONFIG, T2I_DATA), "longcat_image_t2i_train")
    (trained,) = (node for node in graph.nodes if node.class_type == "TrainLoRA")
    converted = {"lora": trained.out("lora"), "layout": "native"}
    graph.add(TRAINING, "LongCatConvertLoRA", converted, "The LoRA in ComfyUI's own names")
    return graph


def longcat_image_edit_sample() -> Graph:
    """One picture and an instruction -> the edited picture, with a LoRA or without."""
    sample = Sampling(
        prompt=EXAMPLE_INSTRUCTION,
        picture=SAMPLE_PICTURE,
        # 0: from the picture itself.
        width=0,
        height=0,
        num_inference_steps=40,
        guidance_scale=4.5,
        filename_prefix="longcat-edit",
    )
    model = _described(EDIT_CONFIG, EDIT_DATA).model
    return sampling_graph("longcat_image_edit_sample", model, NO_LORA, [sample])


def longcat_image_t2i_sample() -> Graph:
    """A prompt -> a picture, with a LoRA or without."""
    sample = Sampling(
        prompt=EXAMPLE_PROMPT,
        width=1024,
        height=1024,
        num_inference_steps=30,
        guidance_scale=4.5,
        filename_prefix="longcat-t2i",
    )
    model = _described(T2I_CONFIG, T2I_DATA).model
    return sampling_graph("longcat_image_t2i_sample", model, NO_LORA, [sample])


def longcat_video_t2v_train() -> Graph:
    """Captioned clips -> a text-to-video LoRA, with the values of SimpleTuner's LongCat-Video quickstart."""
    return training_graph(_described(T2V_CONFIG, T2V_DATA), "longcat_video_t2v_train")


def longcat_video_i2v_train() -> Graph:
    """Clips and their start frames -> an image-to-video LoRA, with the values of the same quickstart."""
    return training_graph(_described(I2V_CONFIG, I2V_DATA), "longcat_video_i2v_train")


def longcat_video_t2v_sample() -> Graph:
    """A prompt -> a clip, with a LoRA or without."""
    return _video_sample("longcat_video_t2v_sample", None, "video/longcat-t2v")


def longcat_video_i2v_sample() -> Graph:
    """A start frame and a prompt -> a clip, with a LoRA or without."""
    return _video_sample("longcat_video_i2v_sample", SAMPLE_PICTURE, "video/longcat-i2v")


def _video_sample(name: str, picture: str | None, filename_prefix: str) -> Graph:
    sample = Sampling(
        prompt=EXAMPLE_CLIP_PROMPT,
        picture=picture,
        width=832,
        height=480,
        num_frames=CLIP_FRAMES,
        num_inference_steps=40,
        guidance_scale=4.0,
        filename_prefix=filename_prefix,
    )
    model = ModelConfig(model_family="longcat_video", model_flavour="final", **SMALL_CARD)
    return sampling_graph(name, model, NO_LORA, [sample])


def _described(config: dict[str, Any], datasets: list[dict[str, Any]]) -> SimpleTunerRun:
    # Without the files' text: a shipped workflow is described by its widgets alone.
    return replace(read_run(config, datasets), config={}, datasets=())


WORKFLOWS: dict[str, Callable[[], Graph]] = {
    "longcat_image_edit_train": longcat_image_edit_train,
    "longcat_image_edit_sample": longcat_image_edit_sample,
    "longcat_image_t2i_train": longcat_image_t2i_train,
    "longcat_image_t2i_sample": longcat_image_t2i_sample,
    "longcat_video_t2v_train": longcat_video_t2v_train,
    "longcat_video_t2v_sample": longcat_video_t2v_sample,
    "longcat_video_i2v_train": longcat_video_i2v_train,
    "longcat_video_i2v_sample": longcat_video_i2v_sample,
}
