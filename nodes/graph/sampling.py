"""Graphs that sample: the shipped sampling workflows, and what `longcat validate` runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...training.settings.model import ModelConfig
from .description import Graph, Group, Link
from .from_config import BLUE, GREEN, PICTURE, PURPLE, widget_values

SAMPLERS = ("LongCatSampleT2I", "LongCatSampleEdit", "LongCatSampleT2V", "SampleI2V")
"""The nodes that sample; such a graph has one for each `Sampling`."""

MODEL = Group(title="1 Model and LoRA", lane=0, color=BLUE)
PICTURES = Group(title="2 Picture", lane=0, color=GREEN)
SAMPLING = Group(title="3 Prompt and sampling", lane=1, color=PURPLE)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """One picture or clip to draw."""

    prompt: str
    negative_prompt: str = ""
    picture: str | None = None
    """A LoadImage value: the picture to edit, or to begin a clip with. None: drawn from the prompt alone."""
    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    seed: int = 42
    filename_prefix: str
    num_frames: int | None = None
    """Of a clip; None: a picture."""


def sampling_graph(
    name: str, model: ModelConfig, lora_name: str, samples: Sequence[Sampling], strengths: Sequence[float] = (1.0,)
) -> Graph:
    """The graph that draws each of `samples` with `model` and the LoRA file `lora_name`, which may be `NO_LORA`.

    `strengths`: of the LoRA; each sample is drawn with the first one, then with the next, from the same noise.
    """
    from ...training.settings.model import flavour_of

    graph = Graph(name=name)
    title = f"Load {flavour_of(model).folder_name}"
    loaded = graph.add(MODEL, "LoadLongCat", widget_values(model), title).out("model")
    models = []
    for strength in strengths:
        lora = {"model": loaded, "lora_name": lora_name, "strength": strength}
        models.append(graph.add(MODEL, "LongCatLoadLoRA", lora, "Load your LoRA").out("model"))
    for sample in samples:
        add = _add_picture if sample.num_frames is None else _add_clip
        add(graph, models, sample)
    return graph


def _add_picture(graph: Graph, models: Sequence[Link], sample: Sampling) -> None:
    text = _text(models[0], sample)
    if sample.picture is None:
        encoded = graph.add(SAMPLING, "LongCatEncodePrompt", text, "Prompt")
        sampler, title = "LongCatSampleT2I", "Draw the picture"
    else:
        picture = graph.add(PICTURES, "LoadImage", {"image": sample.picture}, "Picture to edit", PICTURE)
        text |= {"reference": picture.out("IMAGE"), "width": sample.width, "height": sample.height}
        encoded = graph.add(SAMPLING, "EncodeEditPrompt", text, "Instruction")
        sampler, title = "LongCatSampleEdit", "Edit the picture"
    wired = {"positive": encoded.out("positive"), "negative": encoded.out("negative"), **_settings(sample)}
    for model in models:
        sampled = graph.add(SAMPLING, sampler, {"model": model, **wired}, title, PICTURE)
        saved = {"images": sampled.out("image"), "filename_prefix": sample.filename_prefix}
        graph.add(SAMPLING, "SaveImage", saved, "Result", PICTURE)


def _add_clip(graph: Graph, models: Sequence[Link], sample: Sampling) -> None:
    encoded = graph.add(SAMPLING, "LongCatEncodePrompt", _text(models[0], sample), "Prompt")
    wired = {"positive": encoded.out("positive"), "negative": encoded.out("negative")}
    wired |= _settings(sample) | {"num_frames": sample.num_frames}
    sampler = "LongCatSampleT2V"
    if sample.picture is not None:
        picture = graph.add(PICTURES, "LoadImage", {"image": sample.picture}, "Start frame", PICTURE)
        sampler, wired["start_frame"] = "SampleI2V", picture.out("IMAGE")
    for model in models:
        sampled = graph.add(SAMPLING, sampler, {"model": model, **wired}, "Draw the clip", PICTURE)
        made = {"images": sampled.out("frames"), "fps": sampled.out("fps")}
        video = graph.add(SAMPLING, "CreateVideo", made, "Frames to video")
        saved = {"video": video.out("VIDEO"), "filename_prefix": sample.filename_prefix}
        graph.add(SAMPLING, "SaveVideo", saved, "Result", PICTURE)


def _text(model: Link, sample: Sampling) -> dict[str, Any]:
    return {"model": model, "prompt": sample.prompt, "negative_prompt": sample.negative_prompt}


def _settings(sample: Sampling) -> dict[str, Any]:
    return {
        "num_inference_steps": sample.num_inference_steps,
        "guidance_scale": sample.guidance_scale,
        "seed": sample.seed,
        "width": sample.width,
        "height": sample.height,
    }
