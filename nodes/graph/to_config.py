"""A training workflow, in UI or API format -> the run it describes, for writing config.json and data file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from ...training.errors import ConfigError
from ...training.settings.dataset import REFERENCES_FOLDER, DatasetConfig
from ...training.settings.model import ModelConfig
from ...training.settings.run import TrainConfig, TrainingOptions
from ...training.settings.validation import ValidationConfig
from ...training.simpletuner.datasets import OWN_TO_VIDEOS, SimpleTunerDataset
from ...training.simpletuner.read import SimpleTunerRun, read_run
from .check import convert, label
from .constants import with_constants
from .core_nodes import node_classes
from .from_config import KEPT, NODE_OF, widget_fields
from .from_ui import is_ui, read_workflow
from .signature import is_link, signature_of

T = TypeVar("T")


def run_of_workflow(workflow: Mapping[str, Any], where: str) -> SimpleTunerRun:
    """The run of a workflow's TrainLoRA, with the configuration that the workflow was imported from, if it was.

    Raises:
        ConfigError: no workflow, not exactly one TrainLoRA, or linked in a way that a configuration cannot express.
    """
    graph = with_constants(read_workflow(workflow, where, node_classes()), node_classes())
    trainers = [node_id for node_id, node in graph.items() if node["class_type"] == NODE_OF[TrainConfig]]
    if len(trainers) != 1:
        raise ConfigError(f"{where} has {len(trainers)} TrainLoRA; a configuration describes exactly one.")
    config, datasets = _kept(workflow.get("extra") if is_ui(workflow) else graph[trainers[0]].get("_meta"), where)
    return _Reader(graph, where).run(trainers[0], config, datasets)


def _kept(holder: Any, where: str) -> tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]]:
    """The two files that a workflow was imported from; empty if it was not."""
    kept = holder.get(KEPT) if isinstance(holder, Mapping) else None
    if kept is None:
        return {}, ()
    config, datasets = (kept.get("config"), kept.get("datasets")) if isinstance(kept, Mapping) else (None, None)
    if not isinstance(config, Mapping) or not isinstance(datasets, list):
        raise ConfigError(
            f"{where}: its entry {KEPT!r}, the configuration that it was imported from, is damaged. Remove the entry."
        )
    return config, datasets


class _Reader:
    """Follows the links of one graph upwards from TrainLoRA."""

    def __init__(self, graph: Mapping[str, Any], where: str) -> None:
        self.graph = graph
        self.where = where
        self.classes = node_classes()

    def run(self, trainer: str, config: Mapping[str, Any], datasets: Any) -> SimpleTunerRun:
        model = self.source(trainer, "model", NODE_OF[ModelConfig])
        sets, cache_dir_text = self.cached(trainer)
        plan = self.source(trainer, "validation", NODE_OF[ValidationConfig], needed=False)
        eval_sets = self.cached(plan)[0] if plan is not None and self.linked(plan, "cache") else ()
        options = self.source(trainer, "options", NODE_OF[TrainingOptions], needed=False)
        stored = read_run(config, datasets)
        return SimpleTunerRun(
            model=self.config(ModelConfig, model),
            train=self.config(
                TrainConfig,
                trainer,
                options=self.config(TrainingOptions, options) if options else TrainingOptions(),
                validation=self.config(ValidationConfig, plan) if plan else None,
            ),
            sets=sets,
            eval_sets=eval_sets,
            cache_dir_text=cache_dir_text,
            runs_dir=stored.runs_dir,
            notes=stored.notes,
            config=stored.config,
            datasets=stored.datasets,
        )

    def cached(self, node_id: str) -> tuple[tuple[SimpleTunerDataset, ...], str]:
        """(datasets, folder of text caches) behind the input `cache` of a node."""
        text = self.source(node_id, "cache", "LongCatCacheText")
        latents = self.source(text, "cache", "CacheVAELatents")
        folders = {name: self.value(latents, name) for name in ("cache_dir_vae", "reference_cache_dir_vae")}
        sets = self.sets(latents, "pairs")
        if all(references is None for _, references in sets):
            folders["reference_cache_dir_vae"] = REFERENCES_FOLDER
        read = tuple(
            SimpleTunerDataset(targets=targets, references=references, **folders) for targets, references in sets
        )
        return read, self.value(text, "cache_dir_text")

    def sets(self, node_id: str, name: str) -> list[tuple[DatasetConfig, DatasetConfig | None]]:
        """(targets, references) of each dataset behind an input."""
        source = self.source(node_id, name, NODE_OF[DatasetConfig], "PairDatasets", "LongCatJoinDatasets")
        kind = self.graph[source]["class_type"]
        if kind == "LongCatJoinDatasets":
            linked = [side for side in ("first", "second") if self.linked(source, side)]
            return [each for side in linked or ("first",) for each in self.sets(source, side)]
        if kind == "PairDatasets":
            targets, references = (
                self.dataset(self.source(source, side, NODE_OF[DatasetConfig])) for side in ("targets", "references")
            )
            return [(targets, references)]
        return [(self.dataset(source), None)]

    def dataset(self, node_id: str) -> DatasetConfig:
        """Pictures ignore the widgets about clips."""
        found = self.config(DatasetConfig, node_id)
        if found.dataset_type == "video":
            return found
        return replace(found, **{name: getattr(DatasetConfig, name) for name in OWN_TO_VIDEOS})

    def linked(self, node_id: str, name: str) -> bool:
        return is_link(self.graph[node_id]["inputs"].get(name))

    def source(self, node_id: str, name: str, *kinds: str, needed: bool = True) -> str | None:
        """Id of the node behind input `name`, which must be one of `kinds`."""
        link = self.graph[node_id]["inputs"].get(name)
        if link is None and not needed:
            return None
        source = self.graph.get(link[0]) if is_link(link) else None
        if source is None or source["class_type"] not in kinds:
            found = label(link[0], source) if source is not None else "nothing"
            raise ConfigError(
                f"{self.where}: input {name} of {label(node_id, self.graph[node_id])} comes from {found}; a"
                f" configuration can only express {' or '.join(kinds)}. Link one of these for the export."
            )
        return link[0]

    def value(self, node_id: str, name: str) -> Any:
        """A widget's value, its default where the workflow names none."""
        node = self.graph[node_id]
        spec = signature_of(self.classes[node["class_type"]]).input(name)
        value = node["inputs"].get(name, spec.default)
        if is_link(value):
            raise ConfigError(f"{self.where}: input {name} of {label(node_id, node)} is linked; set a value.")
        try:
            return convert(spec, value)
        except ConfigError as error:
            raise ConfigError(f"{self.where}: input {name} of {label(node_id, node)} {error}") from error

    def config(self, kind: type[T], node_id: str, **others: Any) -> T:
        return kind(**{name: self.value(node_id, name) for name in widget_fields(kind)}, **others)
