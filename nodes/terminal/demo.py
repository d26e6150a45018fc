"""`longcat demo`: draws picture pairs, teaches the tiny model their edit, and shows unseen pictures before and after.

It runs the shipped training workflow and a sampling workflow through the nodes, as a user's graph would.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...training.files import replacing
from ..graph.catalogue import longcat_image_edit_train, node_classes
from ..graph.description import Graph, Group, Link, Node, to_api
from ..graph.override import apply_settings
from ..graph.runner import run_graph
from ..graph.tiny import make_tiny
from ..host import use_host
from .cli import show_node
from .host import TerminalHost, say

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

PAIRS = 12
UNSEEN = 4
"""Pairs that the sheet shows and the training does not see."""

SIDE = 64
"""Px, the side that the tiny twin is made for."""

SAMPLING_STEPS = 12

STEPS = 480
"""Of training; three quarters of a minute on one core."""


def run_demo(host: TerminalHost, steps: int = STEPS) -> list[Path]:
    """Trains and samples below `host.home`; returns the files to look at. A second call reuses the finished run.

    Raises:
        StoppedByUserError: stopped; a second call goes on.
        LongCatError, OSError: a stage refused, or the disk is full.
    """
    with _one_thread():
        return _run(host, steps)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Matrices this small gain nothing from a second thread, and on a busy machine two wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _run(host: TerminalHost, steps: int) -> list[Path]:
    unseen = _draw_pictures(host)
    say(f"{PAIRS} pairs teach the edit, {UNSEEN} others show it before and after")
    with use_host(host):
        graph = make_tiny(to_api(longcat_image_edit_train(), node_classes()))
        graph = apply_settings(graph, _settings(host, steps), node_classes())
        outputs = run_graph(graph, host, show_node, host.stop.is_set)
        lora, loss_curve = _training_results(graph, outputs)
        sampling, columns = _before_and_after(unseen, lora.relative_to(host.lora_dirs()[0]).as_posix())
        samples = run_graph(to_api(sampling, node_classes()), host, show_node, host.stop.is_set)
    rows = [
        (reference, *(_picture(samples[str(node.id)][0]) for node in nodes), target)
        for (_, reference, target, _), nodes in zip(unseen, columns, strict=True)
    ]
    return [
        _save(_sheet(rows, unseen), host.home / "contact_sheet.png"),
        _save(_picture(loss_curve), host.home / "loss_curve.png"),
        _copy(lora, host.home / lora.name),
    ]


def _draw_pictures(host: TerminalHost) -> list[tuple[str, Image, Image, str]]:
    """Writes the training pairs and the unseen references; returns the unseen pairs."""
    from ...training.tiny.examples import draw_example_pairs, draw_pairs

    draw_example_pairs(host.input_dir() / "targets", host.input_dir() / "references", PAIRS, SIDE)
    unseen = draw_pairs(PAIRS + UNSEEN, SIDE)[PAIRS:]
    for name, reference, _, _ in unseen:
        _save(reference, host.input_dir() / "unseen" / f"{name}.png")
    return unseen


def _settings(host: TerminalHost, steps: int) -> tuple[str, ...]:
    """Where the demo differs from the tiny twin of the shipped workflow."""
    return (
        # fp32 is faster than bf16 on a CPU.
        "LoadLongCat.base_model_precision=fp32",
        f"Edited pictures + instructions.instance_data_dir={host.input_dir() / 'targets'}",
        f"Reference pictures.instance_data_dir={host.input_dir() / 'references'}",
        "TrainLoRA.run_name=demo",
        f"TrainLoRA.max_train_steps={steps}",
        "TrainLoRA.learning_rate=3e-3",
        "TrainLoRA.lora_rank=64",
        "TrainLoRA.train_batch_size=2",
        "LongCatTrainingOptions.lora_target=official",
        "LongCatTrainingOptions.lr_scheduler=cosine",
        f"LongCatTrainingOptions.lr_warmup_steps={steps // 24}",
        "LongCatTrainingOptions.gradient_checkpointing=false",
        f"LongCatTrainingOptions.checkpoint_step_interval={steps // 2}",
        f"LongCatValidation.validation_steps={steps // 2}",
    )


def _training_results(graph: dict[str, Any], outputs: dict[str, tuple]) -> tuple[Path, Tensor]:
    (trained,) = (outputs[node_id] for node_id, node in graph.items() if node["class_type"] == "TrainLoRA")
    lora, _, _, loss_curve, _ = trained
    return lora.path, loss_curve


def _before_and_after(
    unseen: list[tuple[str, Image, Image, str]], lora_name: str
) -> tuple[Graph, list[tuple[Node, Node]]]:
    """A graph that edits each unseen picture without and with the LoRA, and its two sampling nodes per picture."""
    graph = Graph(name="demo")
    group = Group(title="demo", lane=0, color="")
    flavour = {"model_flavour": "tiny-edit", "base_model_precision": "fp32"}
    model = graph.add(group, "LoadLongCat", flavour).out("model")
    trained = graph.add(group, "LongCatLoadLoRA", {"model": model, "lora_name": lora_name}).out("model")
    return graph, [_add_edit(graph, group, (model, trained), name, text) for name, _, _, text in unseen]


def _add_edit(graph: Graph, group: Group, models: tuple[Link, Link], name: str, instruction: str) -> tuple[Node, Node]:
    size = {"width": SIDE, "height": SIDE}
    picture = graph.add(group, "LoadImage", {"image": f"unseen/{name}.png"}, name)
    prompt = {"model": models[0], "reference": picture.out("IMAGE"), "prompt": instruction}
    encoded = graph.add(group, "EncodeEditPrompt", prompt | size, name)
    # Guidance 1: the tiny twin has not learnt to follow a stronger one.
    wired = {"positive": encoded.out("positive"), "negative": encoded.out("negative"), "guidance_scale": 1.0}
    before, after = (
        graph.add(
            group,
            "LongCatSampleEdit",
            {"model": model, "num_inference_steps": SAMPLING_STEPS} | wired | size,
            f"{name}, {when} training",
        )
        for model, when in zip(models, ("before", "after"), strict=True)
    )
    for node in (before, after):
        graph.add(group, "PreviewImage", {"images": node.out("image")}, node.title)
    return before, after


def _sheet(rows: list[tuple[Image, ...]], unseen: list[tuple[str, Image, Image, str]]) -> Image:
    from ...training.data.contact_sheet import image_grid

    titles = ("reference", "before", "after", "target", "instruction (unseen pictures)")
    return image_grid(rows, titles, [instruction for _, _, _, instruction in unseen])


def _picture(image: Tensor) -> Image:
    from ..images import one_picture

    return one_picture(image, "demo")


def _save(picture: Image, path: Path) -> Path:
    with replacing(path) as temporary:
        picture.save(temporary, format="PNG")
    return path


def _copy(source: Path, path: Path) -> Path:
    with replacing(path) as temporary:
        shutil.copyfile(source, temporary)
    return path
