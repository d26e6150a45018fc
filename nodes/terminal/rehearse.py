"""`longcat rehearse`: a training workflow on the tiny twin, and a report of what the real run needs and would meet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...training.errors import ConfigError, LongCatError
from ...training.files import read_json
from ...training.rehearsal.report import RehearsalError, RehearsalReport
from ...training.rehearsal.stages import RehearsalStages
from ..graph.check import find_faults, label, repaired, with_sources
from ..graph.constants import with_constants
from ..graph.core_nodes import node_classes
from ..graph.description import to_api
from ..graph.from_config import training_graph
from ..graph.from_ui import is_ui, read_workflow
from ..graph.override import apply_settings
from ..graph.runner import NodeEvent, run_graph
from ..host import use_host
from ..types import TrainedLora
from .host import StopFlag, TerminalHost
from .train import read_training

TRAINER = "TrainLoRA"


def rehearsals(
    path: Path, settings: Sequence[str], home: Path, stop: StopFlag, on_node: Callable[[NodeEvent], None]
) -> list[RehearsalReport]:
    """A report for each TrainLoRA of a file; in its faults also what other nodes refused.

    Args:
        path: a workflow in UI or API format, or a config.json.
        settings: `NODE.input=value`, as `longcat run --set`.

    Raises:
        ConfigError: nothing of that kind, or no TrainLoRA in it.
        StoppedByUserError: asked to stop.
    """
    graph, host = _graph_of(path, home, stop)
    with use_host(host):
        classes = node_classes()
        graph = with_constants(apply_settings(graph, settings, classes), classes)
        graph, faults = repaired(_rehearsed(_needed_to_train(graph, path)), classes)
        wiring = find_faults(graph, classes)
    if wiring:
        return [RehearsalReport(title=f"Rehearsal of {path}", faults=(*faults, *wiring))]
    refusals: dict[str, LongCatError] = {}
    outputs = run_graph(graph, host, on_node, stop.is_set, refusals.__setitem__)
    reports = _reports(graph, outputs, refusals) or [_without_training(path, outputs)]
    faults += [f"{label(i, graph[i])}: {error}" for i, error in refusals.items() if not _is_report(error)]
    return [replace(report, faults=(*faults, *report.faults)) for report in reports]


def _graph_of(path: Path, home: Path, stop: StopFlag) -> tuple[dict[str, Any], TerminalHost]:
    """The API graph of a workflow or of a configuration, and the host to run it in."""
    content = read_json(
        path, ConfigError, "Give the path of a workflow or of a config.json.", kind=object, comments=True
    )
    host = TerminalHost(home, stop=stop)
    if isinstance(content, Mapping) and content and not is_ui(content) and not any(map(_is_node, content.values())):
        run, host = read_training(path, {}, home, stop)
        with use_host(host):
            return to_api(training_graph(run, run.train.run_name), node_classes()), host
    with use_host(host):
        return read_workflow(content, str(path), node_classes()), host


def _is_node(value: Any) -> bool:
    return isinstance(value, Mapping) and "class_type" in value


def _needed_to_train(graph: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The trainers and all that they depend on: what comes after them would draw and write for the user."""
    trainers = [node_id for node_id, node in graph.items() if node["class_type"] == TRAINER]
    if not trainers:
        raise ConfigError(
            f"{path} has no {TRAINER}, so there is no training to rehearse. To try any other workflow out: longcat run"
            " --tiny."
        )
    needed = with_sources(trainers, graph)
    return {node_id: node for node_id, node in graph.items() if node_id in needed}


def _rehearsed(graph: Mapping[str, Any]) -> dict[str, Any]:
    return {
        node_id: {**node, "inputs": {**node["inputs"], "rehearsal": True}}
        if node["class_type"] == "LoadLongCat"
        else node
        for node_id, node in graph.items()
    }


def _reports(
    graph: Mapping[str, Any], outputs: Mapping[str, tuple], refusals: Mapping[str, LongCatError]
) -> list[RehearsalReport]:
    trained = [value for values in outputs.values() for value in values if isinstance(value, TrainedLora)]
    failed = [error.report for error in refusals.values() if _is_report(error)]
    return [*(each.report for each in trained if each.report), *failed]


def _is_report(error: LongCatError) -> bool:
    return isinstance(error, RehearsalError) and error.report is not None


def _without_training(path: Path, outputs: Mapping[str, tuple]) -> RehearsalReport:
    """What is known although no trainer was reached."""
    models = [value for values in outputs.values() for value in values if isinstance(value, RehearsalStages)]
    faults = dict.fromkeys(fault for model in models for fault in model.faults)
    return RehearsalReport(title=f"Rehearsal of {path}", faults=tuple(faults))
