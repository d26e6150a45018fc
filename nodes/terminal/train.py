"""`longcat train` runs the training of a configuration; `longcat config` turns one into a workflow, and back."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...training.caches.cache import Cache, CacheFolders
from ...training.data.records import TrainingSet
from ...training.errors import ConfigError
from ...training.files import read_json, write_json
from ...training.simpletuner.datasets import SimpleTunerDataset
from ...training.simpletuner.read import DATA_FILE, SimpleTunerRun, check_trainable, read_files
from ...training.simpletuner.write import write_run
from .. import examples
from ..data import cache_folder, resolved, shown
from ..graph.core_nodes import node_classes, write_pictures
from ..graph.description import to_api
from ..graph.from_config import training_graph
from ..graph.to_config import run_of_workflow
from ..graph.ui import to_ui
from ..host import use_host
from ..images import to_image
from ..load import model_spec
from ..train import run_places
from .host import StopFlag, TerminalHost, say, show_text

if TYPE_CHECKING:
    from ...training.loop.stages import Stages

DEFAULT_CONFIG = Path("config/config.json")

EXAMPLES = Path(__file__).resolve().parents[2] / "config"


def read_training(
    config: Path, overrides: Mapping[str, Any], home: Path, stop: StopFlag
) -> tuple[SimpleTunerRun, TerminalHost]:
    """The run that the configuration describes, and the host to train it in. Nothing is loaded.

    Raises:
        ConfigError, PathError: whatever is wrong with keys, values, their combination or the folders.
    """
    run = read_files(config, overrides)
    check_trainable(run)
    show_notes(run)
    host = TerminalHost(home, stop=stop, runs_dir=Path(run.runs_dir) if run.runs_dir else None)
    check_folders(run, host)
    return run, host


def train_run(run: SimpleTunerRun, host: TerminalHost) -> None:
    """Model, data, caches, training: the stages that the nodes of a training workflow call. `host` lists the files.

    Raises:
        LongCatError: a stage refused.
        StoppedByUserError: asked to stop; everything that is finished is saved.
    """
    from ...training.loop.loss_curve import draw_loss_curve
    from ...training.loop.stages import RealStages

    with use_host(host):
        stages = RealStages(spec=model_spec(run.model, host.callbacks(None)))
        cache = _cached(run.sets, "pairs", run, stages, host)
        evaluated = run.train.validation is not None and run.eval_sets
        places = run_places(_cached(run.eval_sets, "evaluation-pairs", run, stages, host) if evaluated else None)
        say("Training")
        with host.work(None) as callbacks:
            result = stages.train(run.train, cache, places, callbacks)
        write_pictures(to_image([draw_loss_curve(result.losses)]), "previews/loss-curve")


def small_run(run: SimpleTunerRun) -> SimpleTunerRun:
    """The same run on a tiny twin: small sizes, few steps."""
    from ...training.rehearsal.scale import small

    sets, eval_sets = (tuple(small(each) for each in sets) for sets in (run.sets, run.eval_sets))
    return replace(run, model=small(run.model), train=small(run.train), sets=sets, eval_sets=eval_sets)


def _cached(
    sets: Sequence[SimpleTunerDataset], what: str, run: SimpleTunerRun, stages: Stages, host: TerminalHost
) -> Cache:
    """The caches of datasets; their contact sheets are drawn as previews called `what`."""
    say(f"Reading {', '.join(each.targets.id for each in sets)}")
    data, sheets, report = shown([_surveyed(each) for each in sets])
    show_text(report)
    write_pictures(sheets, f"previews/{what}")
    folders = CacheFolders(
        targets=cache_folder(sets[0].cache_dir_vae, "cache_dir_vae"),
        references=cache_folder(sets[0].reference_cache_dir_vae, "reference_cache_dir_vae"),
    )
    say("Caching latents and text")
    with host.work(None) as callbacks:
        cache, of_latents = stages.cache_latents(data, folders, host.device(), callbacks)
        show_text(of_latents.text())
        text_folder = cache_folder(run.cache_dir_text, "cache_dir_text")
        cache, of_text = stages.cache_text(cache, text_folder, host.device(), callbacks)
        show_text(of_text.text())
    return cache


def _surveyed(each: SimpleTunerDataset) -> TrainingSet:
    from ...training.data.sets import survey_dataset, survey_pairs

    targets = resolved(each.targets)
    return survey_dataset(targets) if each.references is None else survey_pairs(targets, resolved(each.references))


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
