"""A run as SimpleTuner's files describe it -> the training graph; imported and shipped workflows come from here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ...training.settings.dataset import DatasetConfig
from ...training.settings.model import ModelConfig
from ...training.settings.run import TrainConfig, TrainingOptions
from ...training.settings.validation import ValidationConfig
from ...training.simpletuner.datasets import SimpleTunerDataset
from ...training.simpletuner.read import SimpleTunerRun
from .description import Graph, Group, Link

NODE_OF: dict[type, str] = {
    ModelConfig: "LoadLongCat",
    DatasetConfig: "LongCatDataset",
    ValidationConfig: "LongCatValidation",
    TrainingOptions: "LongCatTrainingOptions",
    TrainConfig: "TrainLoRA",
}
"""The node whose widgets are the fields of a config dataclass."""

KEPT = "longcat"
"""Where a workflow keeps the two files as they were written: in the UI format's `extra`, in the API format's `_meta`
of TrainLoRA."""

BLUE, GREEN, BROWN, PURPLE = "#3f789e", "#4b7f52", "#8a6d3b", "#6b5b95"

EDIT_TITLES = ("Edited pictures + instructions", "Reference pictures")
VIDEO_TITLES = ("Videos + captions", "Start frames")

PICTURE = 340
"""Px kept free for a picture below a node's widgets."""

MODEL = Group(title="1 Model", lane=0, color=BLUE)
DATA = Group(title="2 Data", lane=0, color=GREEN)
CACHES = Group(title="3 Caches", lane=1, color=BROWN)
EVALUATION = Group(title="Evaluation pictures", lane=1, color=GREEN)
SETTINGS = Group(title="4 Settings", lane=1, color=BROWN)
TRAINING = Group(title="5 Training", lane=2, color=PURPLE)


def widget_values(config: Any) -> dict[str, Any]:
    """The fields of a config dataclass that are widgets of its node."""
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config) if _is_widget(field)}


def widget_fields(kind: type) -> list[str]:
    """Names of the fields that are widgets of the node of config dataclass `kind`."""
    return [field.name for field in dataclasses.fields(kind) if _is_widget(field)]


def training_graph(run: SimpleTunerRun, name: str) -> Graph:
    """The graph that trains as `run` says. `run.config`, if there is one, is kept inside."""
    graph = Graph(name=name)
    if run.config:
        graph.kept = {KEPT: {"config": dict(run.config), "datasets": [dict(entry) for entry in run.datasets]}}
    model = graph.add(MODEL, "LoadLongCat", widget_values(run.model), f"Load {_model_title(run.model)}").out("model")
    cache = _add_caches(graph, CACHES, model, _add_sets(graph, DATA, run.sets), run, run.sets)
    training = {"model": model, "cache": cache, **widget_values(run.train)}
    if run.train.validation is not None:
        plan: dict[str, Any] = widget_values(run.train.validation)
        if run.eval_sets:
            pairs = _add_sets(graph, EVALUATION, run.eval_sets)
            plan["cache"] = _add_caches(graph, EVALUATION, model, pairs, run, run.eval_sets)
        training["validation"] = graph.add(SETTINGS, "LongCatValidation", plan, "Validation").out("validation")
    options = graph.add(SETTINGS, "LongCatTrainingOptions", widget_values(run.train.options), "Options")
    training["options"] = options.out("options")
    trained = graph.add(TRAINING, "TrainLoRA", training, "Train the LoRA", PICTURE)
    graph.add(TRAINING, "PreviewImage", {"images": trained.out("loss_curve")}, "Loss curve", PICTURE)
    if run.train.validation is not None:
        graph.add(TRAINING, "PreviewImage", {"images": trained.out("samples")}, "Newest samples", PICTURE)
    return graph


def _is_widget(field: dataclasses.Field) -> bool:
    return "option" in field.metadata


def _model_title(model: ModelConfig) -> str:
    from ...training.settings.model import flavour_of

    return flavour_of(model).folder_name


def _add_sets(graph: Graph, group: Group, sets: Sequence[SimpleTunerDataset]) -> Link:
    several = len(sets) > 1
    links = [_add_set(graph, group, each, f" ({each.targets.id})" if several else "") for each in sets]
    joined = links[0]
    for link in links[1:]:
        wired = {"first": joined, "second": link}
        joined = graph.add(group, "LongCatJoinDatasets", wired, "Join datasets").out("pairs")
    return joined


def _add_set(graph: Graph, group: Group, each: SimpleTunerDataset, suffix: str) -> Link:
    video = each.targets.dataset_type == "video"
    if each.references is None:
        title = f"{'Videos' if video else 'Pictures'} + captions{suffix}"
        return graph.add(group, "LongCatDataset", widget_values(each.targets), title).out("dataset")
    titles = VIDEO_TITLES if video else EDIT_TITLES
    targets, references = (
        graph.add(group, "LongCatDataset", widget_values(dataset), title + suffix)
        for dataset, title in zip((each.targets, each.references), titles, strict=True)
    )
    wired = {"targets": targets.out("dataset"), "references": references.out("dataset")}
    pairs = graph.add(group, "PairDatasets", wired, f"Pair them{suffix}")
    graph.add(group, "PreviewImage", {"images": pairs.out("contact_sheet")}, f"The pairs{suffix}", PICTURE)
    return pairs.out("pairs")


def _add_caches(
    graph: Graph, group: Group, model: Link, pairs: Link, run: SimpleTunerRun, sets: Sequence[SimpleTunerDataset]
) -> Link:
    folders = {name: getattr(sets[0], name) for name in ("cache_dir_vae", "reference_cache_dir_vae")}
    wired: Mapping[str, Any] = {"model": model, "pairs": pairs, **folders}
    latents = graph.add(group, "CacheVAELatents", wired, "Cache VAE latents")
    wired = {"model": model, "cache": latents.out("cache"), "cache_dir_text": run.cache_dir_text}
    return graph.add(group, "LongCatCacheText", wired, "Cache prompts").out("cache")
