"""SimpleTuner's config.json and data file -> the settings of a run here. Nothing in them is silently ignored.

Reading needs no folder to exist and loads nothing: folders are checked when a run starts.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import ConfigError
from ..files import read_json
from ..settings.dataset import DatasetConfig
from ..settings.model import ModelConfig
from ..settings.run import TrainConfig, TrainingOptions
from ..settings.validation import ValidationConfig
from .datasets import SimpleTunerDataset, read_sets
from .keys import CONFIG_KEYS, VIDEO_KEYS
from .values import check_keys, field_values, value_of

if TYPE_CHECKING:
    from ..models.flavours import Flavour

DATA_FILE = "multidatabackend.json"

SIMPLETUNER_SHIFT = 3.0
"""SimpleTuner's flow_schedule_shift where neither the shift nor the automatic one is asked for."""

NO_SHIFT = 1.0

REMEDY = "Give the path of a configuration file, or correct it there."

T = TypeVar("T")


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
    config = {name.removeprefix("--"): value for name, value in config.items()}
    config |= overrides
    check_keys(config, CONFIG_KEYS, str(path) if path else "the command line")
    data_file = _data_file(config.get("data_backend_config"), path, needs_data)
    datasets = read_json(data_file, ConfigError, REMEDY, kind=list, comments=True) if data_file is not None else []
    if not all(isinstance(entry, dict) for entry in datasets):
        raise ConfigError(f"{data_file} is no list of datasets, each an object of keys and values. Correct it.")
    of_data = {name: value for name, value in overrides.items() if CONFIG_KEYS[name].owner is DatasetConfig}
    if of_data:
        datasets = [_overridden(entry, of_data) for entry in datasets]
    return read_run(config, datasets)


def read_run(config: Mapping[str, Any], datasets: Sequence[Mapping[str, Any]]) -> SimpleTunerRun:
    """The run that the two files' values describe.

    Raises:
        ConfigError: an unknown key (the nearest one is named), a value that is not possible here (with the reason),
            or keys that exclude each other.
    """
    check_keys(config, CONFIG_KEYS, "config.json")
    notes = list(_notes(config))
    model = _build(ModelConfig, config, **_model_values(config))
    sets, eval_sets, text_cache, data_notes = read_sets(config, datasets)
    runs_dir, run_name = _place(config)
    train = _build(
        TrainConfig,
        config,
        run_name=run_name,
        options=_build(TrainingOptions, config, **_option_values(config, notes)),
        validation=_validation(config),
    )
    return SimpleTunerRun(
        model=model,
        train=train,
        sets=sets,
        eval_sets=eval_sets,
        cache_dir_text=config.get("cache_dir_text") or text_cache or "text",
        runs_dir=runs_dir,
        notes=(*notes, *data_notes),
        config=dict(config),
        datasets=tuple(dict(entry) for entry in datasets),
    )


def check_trainable(run: SimpleTunerRun) -> None:
    """Refuses runs whose parts do not fit each other; loads nothing and looks at no folder.

    Raises:
        ConfigError: naming the keys and what to change.
    """
    from ..loop.check import check_steps
    from ..models.flavours import check_training_data, flavour_of

    check_steps(run.train)
    name, flavour = run.model.model_flavour, flavour_of(run.model)
    check_training_data(run.model, ())
    if not run.sets:
        raise ConfigError(
            f"There is no dataset to train on. Name a folder of pictures in {DATA_FILE} (beside config.json, or where"
            " data_backend_config says)."
        )
    for each in (*run.sets, *run.eval_sets):
        _check_media(each.targets, flavour)
        if flavour.needs_reference and each.references is None:
            raise ConfigError(
                f"model_flavour {name} edits a reference picture, but dataset {each.targets.id!r} has no"
                " conditioning_data. Give it the id of the dataset that holds its reference pictures."
            )
        if not (flavour.needs_reference or flavour.draws_clips) and each.references is not None:
            raise ConfigError(
                f"model_flavour {name} draws from text alone, but dataset {each.targets.id!r} has conditioning_data"
                f" {each.references.id!r}. Remove conditioning_data, or choose model_flavour edit."
            )


def _check_media(targets: DatasetConfig, flavour: Flavour) -> None:
    wanted = "video" if flavour.draws_clips else "image"
    if targets.dataset_type != wanted:
        raise ConfigError(
            f"model_family {flavour.family} is trained on dataset_type {wanted!r}, but dataset {targets.id!r} has"
            f" {targets.dataset_type!r}. Correct it, or choose another model_family."
        )


def _overridden(entry: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """`entry` of the data file with `values` for it; they also go before what its section `video` says."""
    if "instance_data_dir" not in entry:
        return dict(entry)
    about_videos = entry.get("dataset_type") == "video"
    fitting = {key: value for key, value in values.items() if about_videos or key not in VIDEO_KEYS}
    section = entry.get("video")
    if isinstance(section, dict):
        entry = {**entry, "video": {key: value for key, value in section.items() if key not in fitting}}
    return {**entry, **fitting}


def _data_file(named: Any, config_path: Path | None, needed: bool) -> Path | None:
    beside = config_path.parent if config_path is not None else Path.cwd()
    if named:
        # A moved pair of files finds each other; SimpleTuner itself starts from the current folder.
        candidates = [beside / named, beside / Path(named).name, Path(named).expanduser()]
    else:
        candidates = [beside / DATA_FILE]
    for candidate in candidates:
        if os.path.isfile(candidate):
            return candidate
    if named or needed:
        looked = ", ".join(str(candidate) for candidate in dict.fromkeys(candidates))
        raise ConfigError(f"There is no data file (looked for {looked}). Write it, or correct data_backend_config.")
    return None


def _build(kind: type[T], config: Mapping[str, Any], **values: Any) -> T:
    return kind(**{**field_values(kind, config, CONFIG_KEYS), **values})


def _notes(config: Mapping[str, Any]) -> list[str]:
    return [f"{name}: {CONFIG_KEYS[name].meaning}" for name in config if CONFIG_KEYS[name].without_effect]


def _model_values(config: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if _is_video(config) and config.get("model_flavour") is None:
        values["model_flavour"] = "final"
    precision = config.get("base_model_precision") or "no_change"
    full = config.get("mixed_precision", "bf16") == "no"
    if precision == "no_change":
        values["base_model_precision"] = "fp32" if full else ModelConfig.base_model_precision
    elif full and precision != "fp32":
        raise ConfigError(
            f"mixed_precision is 'no' (fp32 throughout) and base_model_precision {precision!r}; these exclude each"
            " other. Set mixed_precision to 'bf16', or base_model_precision to 'no_change'."
        )
    return values


def _option_values(config: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    values: dict[str, Any] = {"flow_schedule_shift": _shift(config, notes)}
    if config.get("optimizer") == "adamw_bf16":
        values["optimizer"] = "adamw"
        notes.append("optimizer: adamw_bf16 is AdamW on bf16 weights; the adapter here is fp32, so it is plain adamw.")
    return values


def _shift(config: Mapping[str, Any], notes: list[str]) -> float:
    shift, auto = config.get("flow_schedule_shift"), config.get("flow_schedule_auto_shift")
    if shift is not None:
        shift = value_of(TrainingOptions, "flow_schedule_shift", shift)
    if shift:
        if auto and shift > 0:
            notes.append(f"flow_schedule_auto_shift: flow_schedule_shift is {shift}, which goes before it.")
        return shift
    own = TrainingOptions.flow_schedule_shift
    if _is_video(config):
        if shift == 0 and not auto:
            raise ConfigError(
                "flow_schedule_shift is 0; LongCat-Video draws with shift 12, and 0 would leave no noise levels to"
                " train. Give 12, or leave the key out, or set flow_schedule_auto_shift to true."
            )
        return own
    if auto is False:
        return NO_SHIFT if shift == 0 else SIMPLETUNER_SHIFT
    return own if shift is None else shift


def _is_video(config: Mapping[str, Any]) -> bool:
    return config.get("model_family") == "longcat_video"


def _validation(config: Mapping[str, Any]) -> ValidationConfig | None:
    values = field_values(ValidationConfig, config, CONFIG_KEYS)
    if values.get("validation_steps") == 0:
        return None
    return ValidationConfig(**values)


def _place(config: Mapping[str, Any]) -> tuple[str | None, str]:
    """(folder above the run or None, name of the run)"""
    # run_name and output_dir are two keys of one field: the name given by hand goes first.
    output_dir, run_name = config.get("output_dir"), config.get("run_name")
    if not output_dir:
        return None, str(run_name or TrainConfig.run_name)
    path = Path(str(output_dir))
    return str(path.parent), str(run_name or path.name)
