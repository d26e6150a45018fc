"""The shipped workflows. `python -m comfyui_longcat.nodes.graph.catalogue` writes both formats of each."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...training.files import replacing
from ..host import use_host
from .core_nodes import CORE_NODES, SAMPLE_PICTURE
from .description import Graph, Group, Link, to_api

WORKFLOWS_DIR = Path(__file__).resolve().parents[2] / "workflows"

BLUE, GREEN, BROWN, PURPLE = "#3f789e", "#4b7f52", "#8a6d3b", "#6b5b95"

PICTURE = 340
"""Px kept free for a picture below a node's widgets."""

EDIT_MODEL = {
    "model_family": "longcat_image",
    "model_flavour": "edit",
    "base_model_precision": "int8-quanto",
    # 8.3 instead of 16.6 GB: the largest part would not fit a 12 or 16 GB card.
    "text_encoder_1_precision": "int8-quanto",
}

EXAMPLE_INSTRUCTION = "add a blue border"
"""What the drawn example pairs teach."""


def longcat_image_edit_train() -> Graph:
    """Two folders of pictures -> an edit LoRA, with the values of SimpleTuner's LongCat-Image edit quickstart."""
    graph = Graph(name="longcat_image_edit_train")
    model = graph.add(
        Group(title="1 Model", lane=0, color=BLUE),
        "LoadLongCat",
        EDIT_MODEL,
        "Load LongCat-Image-Edit",
    ).out("model")
    cache = _add_caches(graph, model, _add_edit_pairs(graph))
    validation, options = _add_settings(graph)
    training = Group(title="5 Training", lane=2, color=PURPLE)
    trained = graph.add(
        training,
        "TrainLoRA",
        {
            "model": model,
            "cache": cache,
            "run_name": "longcat-edit-lora",
            "max_train_steps": 1000,
            "learning_rate": 5e-5,
            "lora_rank": 16,
            "train_batch_size": 1,
            "validation": validation,
            "options": options,
        },
        "Train the LoRA",
        PICTURE,
    )
    graph.add(training, "PreviewImage", {"images": trained.out("loss_curve")}, "Loss curve", PICTURE)
    graph.add(training, "PreviewImage", {"images": trained.out("samples")}, "Newest samples", PICTURE)
    return graph


def _add_edit_pairs(graph: Graph) -> Link:
    group = Group(title="2 Data", lane=0, color=GREEN)
    shared = {"resolution": "768", "aspect_bucket_alignment": 64}
    targets = graph.add(
        group,
        "LongCatDataset",
        {
            "instance_data_dir": "longcat-example/targets",
            "id": "edit-images",
            "dataset_type": "image",
            "caption_strategy": "textfile",
            **shared,
        },
        "Edited pictures + instructions",
    )
    references = graph.add(
        group,
        "LongCatDataset",
        {
            "instance_data_dir": "longcat-example/references",
            "id": "ref-images",
            "dataset_type": "conditioning",
            "caption_strategy": "none",
            **shared,
        },
        "Reference pictures",
    )
    wired = {"targets": targets.out("dataset"), "references": references.out("dataset")}
    pairs = graph.add(group, "PairDatasets", wired, "Pair them")
    graph.add(group, "PreviewImage", {"images": pairs.out("contact_sheet")}, "The pairs", PICTURE)
    return pairs.out("pairs")


def _add_caches(graph: Graph, model: Link, pairs: Link) -> Link:
    group = Group(title="3 Caches", lane=1, color=BROWN)
    latents = graph.add(
        group,
        "CacheVAELatents",
        {
            "model": model,
            "pairs": pairs,
            "cache_dir_vae": "vae/targets",
            "reference_cache_dir_vae": "vae/references",
        },
        "Cache VAE latents",
    )
    return graph.add(
        group,
        "LongCatCacheText",
        {"model": model, "cache": latents.out("cache"), "cache_dir_text": "text"},
        "Cache instructions",
    ).out("cache")


def _add_settings(graph: Graph) -> tuple[Link, Link]:
    group = Group(title="4 Settings", lane=1, color=BROWN)
    validation = graph.add(
        group,
        "LongCatValidation",
        {
            "validation_steps": 100,
            "validation_resolution": "768x768",
            "validation_num_inference_steps": 40,
            "validation_guidance": 4.5,
        },
        "Validation",
    )
    options = graph.add(group, "LongCatTrainingOptions", {"gradient_checkpointing": True}, "Options")
    return validation.out("validation"), options.out("options")


def longcat_image_edit_sample() -> Graph:
    """One picture and an instruction -> the edited picture, with a LoRA or without."""
    graph = Graph(name="longcat_image_edit_sample")
    loading = Group(title="1 Model and LoRA", lane=0, color=BLUE)
    reference = Group(title="2 Picture", lane=0, color=GREEN)

    model = graph.add(
        loading,
        "LoadLongCat",
        EDIT_MODEL,
        "Load LongCat-Image-Edit",
    )
    with_lora = graph.add(
        loading,
        "LongCatLoadLoRA",
        {"model": model.out("model"), "lora_name": "none", "strength": 1.0},
        "Load your LoRA",
    )
    picture = graph.add(reference, "LoadImage", {"image": SAMPLE_PICTURE}, "Picture to edit", PICTURE)
    _add_edit(graph, with_lora.out("model"), picture.out("IMAGE"))
    return graph


def _add_edit(graph: Graph, model: Link, picture: Link) -> None:
    group = Group(title="3 Instruction and sampling", lane=1, color=PURPLE)
    # 0: from the picture itself.
    size = {"width": 0, "height": 0}
    prompt = graph.add(
        group,
        "EncodeEditPrompt",
        {"model": model, "reference": picture, "prompt": EXAMPLE_INSTRUCTION, "negative_prompt": "", **size},
        "Instruction",
    )
    conditioning = {"positive": prompt.out("positive"), "negative": prompt.out("negative")}
    sampled = graph.add(
        group,
        "LongCatSampleEdit",
        {"model": model, **conditioning, **size, "num_inference_steps": 40, "guidance_scale": 4.5},
        "Edit the picture",
        PICTURE,
    )
    saved = {"images": sampled.out("image"), "filename_prefix": "longcat-edit"}
    graph.add(group, "SaveImage", saved, "Result", PICTURE)


WORKFLOWS: dict[str, Callable[[], Graph]] = {
    "longcat_image_edit_train": longcat_image_edit_train,
    "longcat_image_edit_sample": longcat_image_edit_sample,
}


def node_classes() -> dict[str, type]:
    """Own and core node classes by id."""
    from .. import NODE_CLASS_MAPPINGS

    return {**CORE_NODES, **NODE_CLASS_MAPPINGS}


def workflow_files() -> dict[Path, str]:
    """Text of every shipped workflow file by its path relative to `workflows/`."""
    from ..terminal.host import TerminalHost
    from .ui import to_ui

    files: dict[Path, str] = {}
    # An empty home, so that no file of this machine gets into a list of choices.
    with tempfile.TemporaryDirectory() as home, use_host(TerminalHost(Path(home))):
        for name, build in WORKFLOWS.items():
            graph, classes = build(), node_classes()
            files[Path(f"{name}.json")] = _text(to_ui(graph, classes))
            files[Path("api") / f"{name}.json"] = _text(to_api(graph, classes))
    return files


def write_workflows(folder: Path = WORKFLOWS_DIR) -> list[Path]:
    """Writes every shipped workflow below `folder`."""
    written = []
    for relative, text in workflow_files().items():
        with replacing(folder / relative) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="\n")
        written.append(folder / relative)
    return written


def _text(workflow: dict[str, Any]) -> str:
    return json.dumps(workflow, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    write_workflows()
