"""SimpleTuner's config.json and data file -> the settings of a run here. Nothing in them is silently ignored.

Reading needs no folder to exist and loads nothing: folders are checked when a run starts.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..errors import ConfigError
from ..files import read_json
from ..loop.check import check_steps
from ..models.training_data import check_training_data
from ..settings.dataset import TEXT_FOLDER, DatasetConfig
from ..settings.flavours import FLAVOURS, Flavour
from ..settings.model import ModelConfig, flavour_of
from ..settings.run import OWN_SHIFT, TrainConfig, TrainingOptions, check_video_shift, given_shift
from ..settings.validation import ValidationConfig
from .datasets import SimpleTunerDataset, read_sets
from .keys import CONFIG_KEYS, VIDEO_KEYS
from .values import Faults, build, field_values, fill_placeholders, nearest, read_values

DATA_FILE = "multidatabackend.json"

SIMPLETUNER_SHIFT = 3.0
"""SimpleTuner's flow_schedule_shift where neither the shift nor the automatic one is asked for."""

NO_SHIFT = 1.0

T = TypeVar("T")

KINDS_OF_ADAMW = (
    "adamw_bf16",
    "adamw-bf16",
    "adam_bfloat16",
    "adamw8bit",
    "bnb-adamw8bit",
    "ao-adamw8bit",
    "torch-adamw",
)
"""SimpleTuner's names of AdamW in other number formats."""

REMEDY = "Give the path of a configuration file, or correct it there."


@dataclass(frozen=True, kw_only=True)
class SimpleTunerRun:
    """A run as the two files describe it."""

    model: ModelConfig
    train: TrainConfig
    sets: tuple[SimpleTunerDataset, ...]
    """What is trained on."""
    eval_sets: tuple[SimpleTunerDataset, ...]
    """What validation samples; empty: the training data."""
    cache_dir_text: str
    runs_dir: str | None
    """The folder above output_dir; None: the host's own."""
    notes: tuple[str, ...]
    """Keys that were given and have no effect here, each with the reason."""
    config: Mapping[str, Any]
    """config.json as written, for the way back."""
    datasets: tuple[Mapping[str, Any], ...]
    """The data file as written, for the way back."""

    @property
    def settings(self) -> tuple[Any, ...]:
        """All that decides the run: two of equal settings are the same run."""
        return self.model, self.train, self.sets, self.eval_sets, self.cache_dir_text


def read_files(path: Path | None, overrides: Mapping[str, Any], needs_data: bool = True) -> SimpleTunerRun:
    """The run of a config.json and the data file that belongs to it.

    Args:
        path: of config.json; None: there are only `overrides`.
        overrides: keys that win over both files; those of a dataset hold for every dataset.
        needs_data: whether a missing data file is an error.

    Raises:
        ConfigError: a file cannot be read, or as `read_run` raises it.
    """
    config = read_json(path, ConfigError, REMEDY, comments=True) if path is not None else {}
    faults = Faults()
    config = _without_dashes(config, faults) | overrides
    _check_family(config)
    for name in [name for name in overrides if name not in CONFIG_KEYS]:
        faults.append(
            f"There is no flag --{name}{nearest(name, CONFIG_KEYS)}. Each key of config.json is a flag;"
            " docs/configuration.md lists them."
        )
        del config[name]
    datasets: list[Any] = []
    with faults.noted():
        datasets = _read_datasets(config.get("data_backend_config"), path, needs_data)
    of_data = {name: value for name, value in overrides.items() if _is_about_data(name)}
    if of_data:
        datasets = [_overridden(entry, of_data) for entry in datasets]
    return read_run(config, datasets, where=str(path) if path else "the command line", faults=faults)


def read_run(
    config: Mapping[str, Any],
    datasets: Sequence[Mapping[str, Any]],
    where: str = "config.json",
    faults: Sequence[str] = (),
) -> SimpleTunerRun:
    """The run that the two files' values describe.

    Args:
        where: what `config` is called in messages.
        faults: already found.

    Raises:
        ConfigError: unknown keys (the nearest ones are named), values that are not possible here (with the reason),
            keys that exclude each other; all of them at once, but another model_family alone.
    """
    _check_family(config)
    found, notes = Faults(faults), []
    values = read_values(fill_placeholders(config, {}, where, found), CONFIG_KEYS, where, found)
    notes += [f"{name}: {CONFIG_KEYS[name].meaning}" for name in values if CONFIG_KEYS[name].without_effect]
    model = _build(ModelConfig, values, found, **_model_values(values, notes, found))
    sets, eval_sets, text_cache = read_sets(values, datasets, notes, found)
    runs_dir, run_name = _place(values)
    train = _build(
        TrainConfig,
        values,
        found,
        run_name=run_name,
        options=_build(TrainingOptions, values, found, **_option_values(values, notes, found)),
        validation=_validation(values, found),
    )
    found.check()
    return SimpleTunerRun(
        model=model,
        train=train,
        sets=sets,
        eval_sets=eval_sets,
        cache_dir_text=values.get("cache_dir_text") or text_cache or TEXT_FOLDER,
        runs_dir=runs_dir,
        notes=tuple(notes),
        config=dict(config),
        datasets=tuple(dict(entry) for entry in datasets),
    )


def check_trainable(run: SimpleTunerRun) -> None:
    """Refuses runs whose parts do not fit each other; loads nothing and looks at no folder.

    Raises:
        ConfigError: naming the keys and what to change.
    """
    flavour = flavour_of(run.model)
    faults = Faults()
    with faults.noted():
        check_steps(run.train)
    with faults.noted():
        check_training_data(run.model, ())
    if not run.sets:
        faults.append(
            f"There is no dataset to train on. Name a folder of pictures in {DATA_FILE} (beside config.json, or where"
            " data_backend_config says)."
        )
    for each in (*run.sets, *run.eval_sets):
        with faults.noted():
            _check_fits(each, flavour, run)
    faults.check()


def _check_fits(dataset: SimpleTunerDataset, flavour: Flavour, run: SimpleTunerRun) -> None:
    targets, references = dataset.targets, dataset.references
    name = f"model_flavour {run.model.model_flavour}"
    if not run.config.get("model_flavour"):
        name += " (which no model_flavour means, as in SimpleTuner)"
    wanted = "video" if flavour.draws_clips else "image"
    if targets.dataset_type != wanted:
        raise ConfigError(
            f"model_family {flavour.family} is trained on dataset_type {wanted!r}, but dataset {targets.id!r} has"
            f" {targets.dataset_type!r}. Correct it, or choose another model_family."
        )
    if flavour.needs_reference and references is None:
        raise ConfigError(
            f"{name} edits a reference picture, but dataset {targets.id!r} has no conditioning_data. Give it the id of"
            " the dataset that holds its reference pictures."
        )
    if not (flavour.needs_reference or flavour.draws_clips) and references is not None:
        raise ConfigError(
            f"{name} draws from text alone, but dataset {targets.id!r} has conditioning_data {references.id!r}. Remove"
            ' conditioning_data, or write "model_flavour": "edit".'
        )


def _check_family(config: Mapping[str, Any]) -> None:
    """Refuses the family of another model before anything else: most other faults follow from it.

    Raises:
        ConfigError: naming the families that are trained here.
    """
    family = config.get("model_family") or ModelConfig.model_family
    families = list(dict.fromkeys(family for family, _ in FLAVOURS))
    if family not in families:
        raise ConfigError(
            f"model_family is {family!r}{nearest(str(family), families)}; trained here are {' and '.join(families)}."
            " Correct it, or train that model with SimpleTuner."
        )


def _without_dashes(config: Mapping[str, Any], faults: Faults) -> dict[str, Any]:
    """Keys may begin with `--`, as on the command line."""
    values: dict[str, Any] = {}
    for written, value in config.items():
        name = written.removeprefix("--")
        if name in values:
            faults.append(f"config.json has both {name} and --{name}, which are the same key. Remove one.")
        values[name] = value
    return values


def _is_about_data(name: str) -> bool:
    return name in CONFIG_KEYS and CONFIG_KEYS[name].owner is DatasetConfig


def _overridden(entry: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """`entry` of the data file with `values` for it; they also override what its section `video` says."""
    if "instance_data_dir" not in entry:
        return dict(entry)
    about_videos = entry.get("dataset_type") == "video"
    fitting = {key: value for key, value in values.items() if about_videos or key not in VIDEO_KEYS}
    section = entry.get("video")
    if isinstance(section, dict):
        entry = {**entry, "video": {key: value for key, value in section.items() if key not in fitting}}
    return {**entry, **fitting}


def _read_datasets(named: Any, config_path: Path | None, needed: bool) -> list[Any]:
    data_file = _data_file(named, config_path, needed)
    if data_file is None:
        return []
    datasets = read_json(data_file, ConfigError, REMEDY, kind=list, comments=True)
    if not all(isinstance(entry, dict) for entry in datasets):
        raise ConfigError(f"{data_file} is no list of datasets, each an object of keys and values. Correct it.")
    return datasets


def _data_file(named: Any, config_path: Path | None, needed: bool) -> Path | None:
    if named is not None and not isinstance(named, str):
        raise ConfigError(f"data_backend_config is {named!r}; it must be the path of the data file. Correct it.")
    beside = config_path.parent if config_path is not None else Path.cwd()
    if named:
        # A moved pair of files finds each other; SimpleTuner itself starts from the current folder, and its examples
        # keep their data files one folder up.
        own = Path(named)
        candidates = [beside / own, beside / own.name, own.expanduser(), beside.parent / own.name]
    else:
        candidates = [beside / DATA_FILE]
    for candidate in candidates:
        if os.path.isfile(candidate):
            return candidate
    if named or needed:
        looked = ", ".join(str(candidate) for candidate in dict.fromkeys(candidates))
        raise ConfigError(f"There is no data file (looked for {looked}). Write it, or correct data_backend_config.")
    return None


def _build(kind: type[T], config: Mapping[str, Any], faults: Faults, **values: Any) -> T:
    return build(kind, field_values(kind, config, CONFIG_KEYS, faults) | values, "", faults)


def _model_values(config: Mapping[str, Any], notes: list[str], faults: Faults) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if config.get("ramtorch"):
        values["enable_group_offload"] = True
        notes.append("ramtorch: as enable_group_offload, which streams the transformer's blocks through the card.")
    precision = config.get("base_model_precision") or "no_change"
    full = config.get("mixed_precision", "bf16") == "no"
    if precision == "no_change":
        values["base_model_precision"] = "fp32" if full else ModelConfig.base_model_precision
    elif full and precision != "fp32":
        faults.append(
            f"mixed_precision is 'no' (fp32 throughout) and base_model_precision {precision!r}; these exclude each"
            " other. Set mixed_precision to 'bf16', or base_model_precision to 'no_change'."
        )
    return values


def _option_values(config: Mapping[str, Any], notes: list[str], faults: Faults) -> dict[str, Any]:
    values: dict[str, Any] = {"flow_schedule_shift": _shift(config, notes, faults)}
    optimizer = config.get("optimizer")
    if optimizer in KINDS_OF_ADAMW:
        values["optimizer"] = "adamw"
        notes.append(f"optimizer: {optimizer} is plain adamw here: the adapter and the optimiser's state are fp32.")
    if config.get("lr_scheduler") == "cosine_with_warmup":
        values["lr_scheduler"] = "cosine"
    return values


def _shift(config: Mapping[str, Any], notes: list[str], faults: Faults) -> float:
    shift, auto = config.get("flow_schedule_shift"), config.get("flow_schedule_auto_shift")
    if shift:
        if auto and not isinstance(shift, str) and given_shift(shift):
            notes.append(f"flow_schedule_auto_shift: flow_schedule_shift is {shift}, which overrides it.")
        return shift
    if _is_video(config):
        if shift == 0 and not auto:
            with faults.noted():
                check_video_shift(shift)
        return OWN_SHIFT
    if auto is False:
        return NO_SHIFT if shift == 0 else SIMPLETUNER_SHIFT
    return OWN_SHIFT if shift is None else shift


def _is_video(config: Mapping[str, Any]) -> bool:
    return config.get("model_family") == "longcat_video"


def _validation(config: Mapping[str, Any], faults: Faults) -> ValidationConfig | None:
    values = field_values(ValidationConfig, config, CONFIG_KEYS, faults)
    if values.get("validation_steps") == 0:
        return None
    return build(ValidationConfig, values, "", faults)


def _place(config: Mapping[str, Any]) -> tuple[str | None, str]:
    """(folder above the run or None, name of the run)"""
    # run_name and output_dir are two keys of one field: the name given by hand overrides the folder's.
    output_dir, run_name = config.get("output_dir"), config.get("run_name")
    if not output_dir:
        return None, str(run_name or TrainConfig.run_name)
    path = Path(str(output_dir))
    return str(path.parent), str(run_name or path.name)
