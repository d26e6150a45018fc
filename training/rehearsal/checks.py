"""What the real run needs and would meet, found without loading its model. Nothing here ends at the first fault."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..data.records import ClipRecord, Record
from ..errors import LongCatError
from ..loop.check import SETTINGS_CHECKS, check_batch_size, training_hints
from ..loop.train import RunPlaces
from ..models.training_data import check_training_data
from ..settings.flavours import FLAVOURS
from ..settings.model import flavour_of
from ..settings.run import TrainConfig
from ..weights.devices import choose_dtype
from ..weights.source import check_files, present_folder
from ..weights.spec import ModelSpec
from .cache import RealData
from .data_checks import data_surprises, small_buckets
from .estimate import GB, Needs, needs_of
from .small import CLIPS

NEARLY_FULL = 0.9
"""Of a card's memory: more may or may not fit."""

SMALLER = (
    "What helps: base_model_precision and text_encoder_1_precision int8-quanto, gradient_checkpointing,"
    " train_batch_size 1, blocks_to_swap, a lower resolution (of the datasets and of validation), fewer frames, a lower"
    " lora_rank."
)


@dataclass(frozen=True, kw_only=True)
class RealRun:
    """The run that is rehearsed."""

    config: TrainConfig
    model: ModelSpec
    model_faults: tuple[str, ...]
    """What would end it where its model is chosen."""
    data: RealData
    validation_data: RealData | None
    places: RunPlaces


@dataclass(kw_only=True)
class Findings:
    """What has been found so far, one sentence each."""

    needs: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    surprises: list[str] = field(default_factory=list)

    def attempt(self, check: Callable[..., Any], *arguments: Any) -> Any:
        """What `check` returns; if it refuses, None, and its reason is a fault."""
        try:
            return check(*arguments)
        except (LongCatError, OSError) as error:
            if str(error) not in self.faults:
                self.faults.append(str(error))
            return None


def look_at(run: RealRun) -> Findings:
    """Everything that can be known of the real run beforehand."""
    found = Findings(faults=list(run.model_faults))
    for data in (run.data, run.validation_data):
        if data is not None:
            _look_at_data(data, run, found)
    for check in SETTINGS_CHECKS:
        found.attempt(check, run.config, run.model)
    found.attempt(check_batch_size, run.config, run.data.dataset.records)
    _look_at_items(run, found)
    _look_at_steps(run, found)
    _look_at_places(run, found)
    known = FLAVOURS.get((run.model.config.model_family, run.model.config.model_flavour))
    if known is None:
        return found
    found.surprises += training_hints(run.model)
    if known.is_twin:
        found.needs.append(f"no more than this: {known.folder_name} is a tiny twin itself")
        return found
    needs = found.attempt(needs_of, run.config, run.model.config, run.data.dataset.records)
    if needs is not None:
        _look_at_memory(needs, run, found)
        _look_at_disk(needs, run, found)
    return found


def _look_at_data(data: RealData, run: RealRun, found: Findings) -> None:
    found.faults += [fault for fault in data.dataset.faults if fault not in found.faults]
    if not data.dataset.records:
        return
    found.attempt(check_training_data, run.model.config, data.dataset.records)
    tokenizer = _tokenizer_folder(run.model)
    surprises = data_surprises(data, run.model, tokenizer)
    found.surprises += [surprise for surprise in surprises if surprise not in found.surprises]


def _tokenizer_folder(model: ModelSpec) -> Path | None:
    if model.files is not None:
        return model.files.tokenizer
    try:
        folder = present_folder(model)
    except LongCatError:
        return None
    return folder / "tokenizer" if folder is not None else None


def _look_at_items(run: RealRun, found: Findings) -> None:
    records = run.data.dataset.records
    if not records:
        return
    files = len({record.target for record in records})
    buckets = len({_shape(record) for record in records})
    several = f" of {files} files" if files < len(records) else ""
    decoded = f"; {CLIPS} of them were decoded to their ends" if kind_of(records) == "clips" and files > CLIPS else ""
    found.needs.append(f"data: {len(records)} {kind_of(records)}{several} in {_counted(buckets, 'bucket')}{decoded}")


def _look_at_steps(run: RealRun, found: Findings) -> None:
    config = run.config
    samples = sum(1 + record.repeats for record in run.data.dataset.records)
    if not samples:
        return
    seen = config.max_train_steps * config.train_batch_size * config.options.gradient_accumulation_steps
    accumulated = config.options.gradient_accumulation_steps
    more = f" x {accumulated}" if accumulated > 1 else ""
    found.needs.append(
        f"steps: {config.max_train_steps} of batch {config.train_batch_size}{more}, that is {seen / samples:.1f} epochs"
        f" of {samples} samples"
    )
    if seen < samples:
        found.surprises.append(f"Only {seen} of {samples} samples are seen. Raise max_train_steps.")
    if config.options.checkpoint_step_interval >= config.max_train_steps:
        found.surprises.append(
            f"checkpoint_step_interval is {config.options.checkpoint_step_interval}, max_train_steps"
            f" {config.max_train_steps}: there is no checkpoint before the end, and after a crash nothing is left."
        )
    if config.validation is not None and config.validation.validation_steps > config.max_train_steps:
        found.surprises.append(
            f"validation_steps is {config.validation.validation_steps}, max_train_steps {config.max_train_steps}:"
            " there are samples before the first step and after the last, and none between."
        )
    found.surprises += small_buckets(run.data, config.train_batch_size)


def _look_at_memory(needs: Needs, run: RealRun, found: Findings) -> None:
    device, model = run.places.device, run.model.config
    for precision in dict.fromkeys((model.base_model_precision, model.text_encoder_1_precision)):
        found.attempt(choose_dtype, device, precision)
    parts = ", ".join(f"{count / GB:.1f} {phase}" for phase, count in needs.memory.items())
    peak = max(needs.memory.values())
    found.needs.append(f"graphics memory: about {peak / GB:.1f} GB (estimated, not measured: {parts})")
    if device.type != "cuda":
        found.surprises.append(
            f"There is no NVIDIA card here to compare with ({device.type}): the run needs one of {peak / GB:.0f} GB or"
            " more."
        )
        return

    total = torch.cuda.mem_get_info(device)[1]
    card = f"{torch.cuda.get_device_name(device)} has {total / GB:.1f} GB, the run needs about {peak / GB:.1f} GB"
    if peak > total:
        found.faults.append(f"The card is too small: {card} (estimated). {SMALLER}")
    elif peak > NEARLY_FULL * total:
        found.surprises.append(f"The card may be too small: {card} (estimated). {SMALLER}")


def _look_at_disk(needs: Needs, run: RealRun, found: Findings) -> None:
    wanted = [
        (needs.caches, "caches", run.data.folders.targets),
        (needs.checkpoints, "checkpoints and LoRA", run.places.runs_dir),
    ]
    missing = _look_for_model(needs, run, found)
    if missing is not None:
        wanted.append((needs.download, "the model", missing))
    by_disk: dict[int, list[tuple[int, str, Path]]] = {}
    for count, what, folder in wanted:
        by_disk.setdefault(os.stat(_existing(folder)).st_dev, []).append((count, what, _existing(folder)))
    for parts in by_disk.values():
        total, free = sum(count for count, _, _ in parts), shutil.disk_usage(parts[0][2]).free
        listed = ", ".join(f"{_size(count)} {what}" for count, what, _ in parts)
        text = f"{_size(total)} ({listed}); {_size(free)} are free on the disk of {parts[0][2]}"
        found.needs.append(f"disk: {text}")
        if total > free:
            found.faults.append(
                f"The disk is too full: the run needs {text}. Make room, or lower checkpoints_total_limit (now"
                f" {run.config.options.checkpoints_total_limit}; 0 keeps all)."
            )


def _look_for_model(needs: Needs, run: RealRun, found: Findings) -> Path | None:
    """Says where the model is; the folder that it would be downloaded into, if it would."""
    model = run.model
    if run.model_faults:
        # Which folder or file is meant is not settled before these are fixed.
        return None
    if model.files is not None:
        found.attempt(check_files, model.files)
        found.needs.append(f"model: the single files {model.files.transformer} and its parts, which are there")
        return None
    faults = len(found.faults)
    folder = found.attempt(present_folder, model)
    if folder is not None:
        found.needs.append(f"model: {folder}, which is complete")
    if folder is not None or len(found.faults) > faults:
        return None
    repo_id = flavour_of(model.config).repo_id
    found.needs.append(f"model: a download of about {_size(needs.download)} from the hub ({repo_id})")
    if _is_offline():
        found.faults.append(
            f"The model is not here and would be downloaded, but HF_HUB_OFFLINE forbids it. Unset it, or put {repo_id}"
            f" into {model.models_dirs[0] / flavour_of(model.config).folder_name}."
        )
    else:
        found.surprises.append(
            f"The model is not here: {repo_id} is downloaded when the run starts, which takes long and needs a"
            " connection (and a token, if the hub asks for one; that was not tried)."
        )
    return model.models_dirs[0]


def _is_offline() -> bool:
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


def _look_at_places(run: RealRun, found: Findings) -> None:
    for folder in (run.places.runs_dir, run.places.lora_dir, run.data.folders.targets):
        if not os.access(_existing(folder), os.W_OK):
            found.faults.append(f"{_existing(folder)} cannot be written, where the run would write. Make it writable.")
    name = run.config.run_name
    if (run.places.runs_dir / name).exists() or (run.places.lora_dir / f"{name}.safetensors").exists():
        found.surprises.append(
            f"There is a run or a LoRA called {name} already. Of the same settings and data it goes on, or is returned"
            f" at once if it is finished; else this one becomes {name}-2 or so."
        )


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _size(count: float) -> str:
    return f"{count / GB:.1f} GB" if count >= 0.1 * GB else f"{count / 1e6:.0f} MB"


def _shape(record: Record) -> object:
    return record.shape if isinstance(record, ClipRecord) else record.bucket


def kind_of(records: Sequence[Record]) -> str:
    """What people call the records."""
    if any(isinstance(record, ClipRecord) for record in records):
        return "clips"
    return "pairs" if any(record.references for record in records) else "pictures"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
