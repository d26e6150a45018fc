"""`longcat demo`: teaches two tiny models what they do not know, and shows unseen pictures and clips before and after.

A shipped workflow trains the tiny model, another one samples with it. The drawn pairs and clips lie where the shipped
workflow looks for its example, so the workflow runs as it is. What is taught: see demo_lessons.py.
"""

from __future__ import annotations

import contextlib
import gc
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ...training.files import replacing
from ...training.settings.model import ModelConfig
from ..graph.core_nodes import node_classes
from ..graph.description import Graph, to_api
from ..graph.override import apply_settings
from ..graph.runner import run_graph
from ..graph.sampling import SAMPLERS, Sampling, sampling_graph
from ..graph.tiny import make_tiny
from ..host import use_host
from ..images import one_picture
from .host import TerminalHost, say, show_node

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

STRENGTHS = (0.0, 1.0)
"""Of the LoRA: without it and with it."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Means over pictures or clips that the training has not seen."""

    psnr: float
    """dB, between what was sampled and its target."""
    right: float
    """Share of them in which the classifier finds the right thing, 0..1."""


@dataclass(frozen=True, kw_only=True)
class Taught:
    """Result of a lesson."""

    before: Scores
    """At strength 0."""
    after: Scores
    """At strength 1."""
    samples: tuple[Sequence[Tensor], Sequence[Tensor]]
    """IMAGEs at strength 0 and at strength 1."""
    files: tuple[Path, ...]
    """Contact sheet, loss curve, LoRA."""

    @property
    def gain(self) -> float:
        """dB"""
        return self.after.psnr - self.before.psnr


class Lesson(Protocol):
    """Something new for a tiny model, and how to measure whether it was learnt.

    What is sampled comes as IMAGEs [F, H, W, 3] in 0..1, one for each of `samples` (F is 1 for pictures).
    """

    name: str
    model: ModelConfig
    workflow: Callable[[], Graph]
    """The shipped one that trains."""

    @property
    def steps(self) -> int:
        """Of training."""
        ...

    def draw(self, input_dir: Path) -> None:
        """Writes the examples, and the unseen pictures to sample from."""
        ...

    def settings(self) -> Sequence[str]:
        """Where the lesson differs from the tiny twin of the shipped workflow, as values of `--set`."""
        ...

    def samples(self) -> list[Sampling]:
        """What is asked of the model, without the LoRA and with it."""
        ...

    def score(self, sampled: Sequence[Tensor]) -> Scores: ...

    def sheet(self, before: Sequence[Tensor], after: Sequence[Tensor]) -> Image: ...

    def verdict(self, taught: Taught) -> str:
        """A sentence with the measured numbers."""
        ...


def run_demo(host: TerminalHost, lessons: Sequence[Lesson]) -> list[Path]:
    """Gives each lesson and shows what was measured; returns the files to look at. A second call reuses finished runs.

    Raises:
        StoppedByUserError: stopped; a second call continues.
        LongCatError, OSError: a stage refused, or the disk is full.
    """
    files, verdicts = [], []
    with one_thread():
        for lesson in lessons:
            taught = teach(lesson, host)
            files += taught.files
            verdicts.append(lesson.verdict(taught))
    for verdict in verdicts:
        say(verdict)
    return files


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Matrices this small gain nothing from a second thread, and on a busy machine two wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def teach(lesson: Lesson, host: TerminalHost) -> Taught:
    """Trains and samples below `host.home`. A second call reuses the finished run.

    Raises:
        StoppedByUserError: stopped; a second call continues.
        LongCatError, OSError: a stage refused, or the disk is full.
    """
    lesson.draw(host.input_dir())
    lora, loss_curve = _train(lesson, host)
    before, after = _sample(lesson, host, lora)
    return Taught(
        before=lesson.score(before),
        after=lesson.score(after),
        samples=(before, after),
        files=(
            _save(lesson.sheet(before, after), host.home / f"{lesson.name}_contact_sheet.png"),
            _save(one_picture(loss_curve, lesson.name), host.home / f"{lesson.name}_loss_curve.png"),
            _copy(lora, host.home / lora.name),
        ),
    )


def _train(lesson: Lesson, host: TerminalHost) -> tuple[Path, Tensor]:
    """The LoRA and the picture of its losses."""
    with use_host(host):
        graph = make_tiny(to_api(lesson.workflow(), node_classes()))
        graph = apply_settings(graph, (*_common_settings(lesson), *lesson.settings()), node_classes())
    outputs = run_graph(graph, host, show_node, host.stop.is_set)
    (trained,) = _outputs_of(graph, outputs, ("TrainLoRA",))
    lora, _, _, loss_curve, _ = trained
    return lora.path, loss_curve


def _common_settings(lesson: Lesson) -> tuple[str, ...]:
    half = max(lesson.steps // 2, 1)
    return (
        # fp32 is faster than bf16 on a CPU.
        "LoadLongCat.base_model_precision=fp32",
        f"TrainLoRA.run_name=demo-{lesson.name}",
        f"TrainLoRA.max_train_steps={lesson.steps}",
        "LongCatTrainingOptions.gradient_checkpointing=false",
        f"LongCatTrainingOptions.checkpoint_step_interval={half}",
        f"LongCatValidation.validation_steps={half}",
        "LongCatValidation.num_samples=1",
        "LongCatValidation.validation_guidance=1",
    )


def _sample(lesson: Lesson, host: TerminalHost, lora: Path) -> tuple[list[Tensor], list[Tensor]]:
    """An IMAGE for each of the lesson's samples, with each of `STRENGTHS`."""
    samples = lesson.samples()
    say(f"sampling {len(samples)} unseen ones with strengths {' and '.join(f'{each:g}' for each in STRENGTHS)}")
    name = lora.relative_to(host.lora_dirs()[0]).as_posix()
    sampled = run_sampling(sampling_graph(lesson.name, lesson.model, name, samples, STRENGTHS), host)
    return sampled[0::2], sampled[1::2]


def run_sampling(graph: Graph, host: TerminalHost) -> list[Tensor]:
    """An IMAGE for each sampling node of the graph."""
    with use_host(host):
        nodes = to_api(graph, node_classes())
    with _without_old_garbage():
        outputs = run_graph(nodes, host, lambda event: None, host.stop.is_set)
    return [values[0] for values in _outputs_of(nodes, outputs, SAMPLERS)]


@contextlib.contextmanager
def _without_old_garbage() -> Iterator[None]:
    """Every node collects garbage: with all objects of the imported libraries that takes longer than sampling."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _outputs_of(graph: dict[str, Any], outputs: dict[str, tuple], classes: Sequence[str]) -> list[tuple]:
    """Outputs of the nodes of these classes, in the graph's order."""
    return [outputs[node_id] for node_id, node in graph.items() if node["class_type"] in classes]


def _save(picture: Image, path: Path) -> Path:
    with replacing(path) as temporary:
        picture.save(temporary, format="PNG", optimize=True)
    return path


def _copy(source: Path, path: Path) -> Path:
    with replacing(path) as temporary:
        shutil.copyfile(source, temporary)
    return path
