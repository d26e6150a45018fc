"""`longcat train` and `longcat config`: a configuration becomes the training graph, and back."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...training.errors import ConfigError
from ...training.files import read_json, write_json
from ...training.simpletuner.read import DATA_FILE, SimpleTunerRun, check_trainable, read_files
from ...training.simpletuner.write import write_run
from .. import examples
from ..graph.core_nodes import node_classes
from ..graph.description import to_api
from ..graph.from_config import training_graph
from ..graph.tiny import make_tiny
from ..graph.to_config import run_of_workflow
from ..graph.ui import to_ui
from ..host import use_host
from .host import StopFlag, TerminalHost, say

DEFAULT_CONFIG = Path("config/config.json")

EXAMPLES = Path(__file__).resolve().parents[2] / "config"


def training_of(
    config: Path, overrides: Mapping[str, Any], home: Path, stop: StopFlag, tiny: bool
) -> tuple[dict[str, Any], TerminalHost]:
    """The API graph that the configuration describes, and the host to run it in. Nothing is loaded.

    Raises:
        ConfigError, PathError: whatever is wrong with keys, values, their combination or the folders.
    """
    run = read_files(config, overrides)
    check_trainable(run)
    show_notes(run)
    host = TerminalHost(home, stop=stop, runs_dir=Path(run.runs_dir) if run.runs_dir else None)
    check_folders(run, host)
    with use_host(host):
        graph = to_api(training_graph(run, run.train.run_name), node_classes())
        return (make_tiny(graph) if tiny else graph), host


def show_notes(run: SimpleTunerRun) -> None:
    """Says which keys have no effect here, and why."""
    for note in run.notes:
        say(f"note: {note}")


def check_folders(run: SimpleTunerRun, host: TerminalHost) -> None:
    """Raises PathError for a dataset whose folder is not there; the drawn example comes into being when it is read."""
    for each in (*run.sets, *run.eval_sets):
        for dataset in (each.targets, each.references):
            if dataset is not None and dataset.instance_data_dir not in examples.EXAMPLES:
                host.data_roots().resolve_folder(
                    dataset.instance_data_dir, f"dataset {dataset.id!r}: instance_data_dir"
                )


def import_config(config: Path, overrides: Mapping[str, Any], output: Path | None, home: Path) -> list[Path]:
    """Writes the workflow of a configuration, `<output>.json` for ComfyUI's window and `<output>.api.json`.

    Raises:
        ConfigError: the configuration is faulty, or a file of that name is there.
    """
    run = read_files(config, overrides)
    check_trainable(run)
    show_notes(run)
    stem = output.with_suffix("") if output is not None and output.suffix == ".json" else output
    stem = stem or Path(run.train.run_name)
    with use_host(TerminalHost(home)):
        graph = training_graph(run, stem.name)
        texts = {".json": to_ui(graph, node_classes()), ".api.json": to_api(graph, node_classes())}
    return _write_new({stem.with_name(stem.name + ending): text for ending, text in texts.items()})


def export_config(workflow: Path, folder: Path | None, home: Path) -> list[Path]:
    """Writes config.json and the data file of a training workflow into `folder` (default: named after the workflow).

    Raises:
        ConfigError: no training workflow, one that a configuration cannot say, or a file of that name is there.
    """
    with use_host(TerminalHost(home)):
        content = read_json(workflow, ConfigError, "Give the path of a workflow file.", kind=object, comments=True)
        config, datasets = write_run(run_of_workflow(content, str(workflow)))
    folder = folder or Path(workflow.name.split(".")[0])
    data_file = Path(str(config.get("data_backend_config") or DATA_FILE)).name
    return _write_new({folder / "config.json": config, folder / data_file: datasets})


def copy_examples(folder: Path) -> list[Path]:
    """Puts config.json.example and multidatabackend.json.example into `folder`; files that are there stay."""
    written = []
    for source in sorted(EXAMPLES.glob("*.example")):
        target = folder / source.name
        if not target.exists():
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            written.append(target)
    return written


def _write_new(values: Mapping[Path, Any]) -> list[Path]:
    taken = [str(path) for path in values if path.exists()]
    if taken:
        raise ConfigError(f"{', '.join(taken)} is there already. Name another place with -o, or remove it.")
    for path, value in values.items():
        write_json(path, value)
    return list(values)
