"""Graphs that sample: the shipped sampling workflows, and what `longcat validate` runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...training.config import ModelConfig
from .description import Graph, Group, Link
from .from_config import BLUE, GREEN, PICTURE, PURPLE, widget_values

NO_LORA = "none"

MODEL = Group(title="1 Model and LoRA", lane=0, color=BLUE)
PICTURES = Group(title="2 Picture", lane=0, color=GREEN)
SAMPLING = Group(title="3 Prompt and sampling", lane=1, color=PURPLE)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """One picture to draw."""

    prompt: str
    negative_prompt: str = ""
    picture: str | None = None
    """A LoadImage value: the picture to edit. None: the picture is drawn from the prompt alone."""
    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    seed: int = 42
    filename_prefix: str


def sampling_graph(name: str, model: ModelConfig, lora_name: str, samples: Sequence[Sampling]) -> Graph:
    """The graph that draws `samples` with `model` and the LoRA file `lora_name`, which may be `NO_LORA`."""
    from ...training.models.family import FLAVOURS

    graph = Graph(name=name)
    title = f"Load {FLAVOURS[model.model_flavour].folder_name}"
    loaded = graph.add(MODEL, "LoadLongCat", widget_values(model), title).out("model")
    lora = {"model": loaded, "lora_name": lora_name, "strength": 1.0}
    with_lora = graph.add(MODEL, "LongCatLoadLoRA", lora, "Load your LoRA").out("model")
    for sample in samples:
        _add_sample(graph, with_lora, sample)
    return graph


def _add_sample(graph: Graph, model: Link, sample: Sampling) -> None:
    size = {"width": sample.width, "height": sample.height}
    text = {"model": model, "prompt": sample.prompt, "negative_prompt": sample.negative_prompt}
    settings: dict[str, Any] = {
        "num_inference_steps": sample.num_inference_steps,
        "guidance_scale": sample.guidance_scale,
        "seed": sample.seed,
        **size,
    }
    if sample.picture is None:
        encoded = graph.add(SAMPLING, "LongCatEncodePrompt", text, "Prompt")
        sampler, title = "LongCatSampleT2I", "Draw the picture"
    else:
        picture = graph.add(PICTURES, "LoadImage", {"image": sample.picture}, "Picture to edit", PICTURE)
        text |= {"reference": picture.out("IMAGE"), **size}
        encoded = graph.add(SAMPLING, "EncodeEditPrompt", text, "Instruction")
        sampler, title = "LongCatSampleEdit", "Edit the picture"
    wired = {"model": model, "positive": encoded.out("positive"), "negative": encoded.out("negative"), **settings}
    sampled = graph.add(SAMPLING, sampler, wired, title, PICTURE)
    saved = {"images": sampled.out("image"), "filename_prefix": sample.filename_prefix}
    graph.add(SAMPLING, "SaveImage", saved, "Result", PICTURE)
