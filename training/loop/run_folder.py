"""A run on disk: which folder a run belongs to, who holds it, and what is written down about it.

`config.json` (complete, re-runnable settings), `manifest.json` (what the run is and how far it came), `events.jsonl`
(every step, sample, checkpoint and warning), `checkpoints/`, `samples/`, and a copy of the finished LoRA.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..caches.cache import Cache
from ..errors import CheckpointError
from ..events import Callbacks, WarningRaised
from ..files import read_json, replacing, sha256_of_file, sha256_of_json, write_json
from ..settings.model import flavour_of
from ..settings.run import TrainConfig
from ..weights.spec import ModelSpec
from .checkpoint import ADAPTER_FILE, list_checkpoints, step_of
from .run_lock import exclusive

CODE_VERSION = 1
"""Counts up whenever the same settings would train other numbers: older unfinished runs are then not resumed."""

FINISHED = "finished"

STEADY_SCHEDULES = ("constant", "constant_with_warmup")
"""Learning rates that do not depend on how long the run will be: more steps continue from the last one."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """manifest.json."""

    fingerprint: str
    state: str
    """running, stopped, failed or finished"""
    step: int
    total_steps: int
    message: str = ""
    pid: int
    heartbeat: float
    """Seconds since 1970 of the last sign of life."""
    lora: str | None = None
    """The LoRA file's name in the LoRA folder."""
    preview_failures: Mapping[str, str] = field(default_factory=dict)
    """Step -> what went wrong with its previews."""


@dataclass(kw_only=True)
class RunFolder:
    """One run, held by this process."""

    folder: Path
    manifest: Manifest
    notes: tuple[str, ...] = field(default=())
    """What the user should know about the choice of the folder."""

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def samples(self) -> Path:
        return self.folder / "samples"

    @property
    def lora_copy(self) -> Path:
        return self.folder / f"{self.name}.safetensors"

    @property
    def finished(self) -> bool:
        """Whether everything is done and the LoRA is still here, in the copy or in the last checkpoint."""
        here = self.lora_copy.is_file() or bool(list_checkpoints(self.checkpoints))
        return self.manifest.state == FINISHED and self.manifest.step == self.manifest.total_steps and here

    def note(self, manifest: Manifest) -> None:
        """Writes manifest.json.

        Raises:
            OSError: the disk is full or the folder cannot be written.
        """
        self.manifest = replace(manifest, pid=os.getpid(), heartbeat=time.time())
        write_json(self.folder / "manifest.json", dataclasses.asdict(self.manifest))


def run_fingerprint(config: TrainConfig, spec: ModelSpec, cache: Cache, transformer_identity: str) -> str:
    """Hash of everything that decides the trained numbers.

    Not in it: the name, where and how often things are saved, and the previews, which draw from seeds of their own.
    So a run can be resumed with other previews or another checkpoint interval. Nor is the number of steps, where the
    learning rate does not depend on it: a finished run can be made longer.
    """
    settings = dataclasses.asdict(config)
    for name in ("run_name", "restart", "validation"):
        del settings[name]
    for name in ("checkpoint_step_interval", "checkpoints_total_limit", "debug_images"):
        del settings["options"][name]
    # Not above 0 both mean the model's own shift, and pictures have no first frame: their runs stay the same.
    settings["options"]["flow_schedule_shift"] = max(config.options.flow_schedule_shift, 0.0)
    if not flavour_of(spec.config).draws_clips:
        del settings["options"]["first_frame_probability"]
    if config.options.lr_scheduler in STEADY_SCHEDULES:
        del settings["max_train_steps"]
    return sha256_of_json(
        {
            "code": CODE_VERSION,
            "train": settings,
            "transformer": transformer_identity,
            "precision": spec.config.base_model_precision,
            "loras": [[sha256_of_file(use.path), use.strength] for use in spec.loras],
            "cache": cache.fingerprint(),
        }
    )


@contextlib.contextmanager
def claim_run(config: TrainConfig, fingerprint: str, runs_dir: Path, lora_dir: Path) -> Iterator[RunFolder]:
    """The folder of this run, for this process alone while the block runs.

    A run of `run_name` (or `run_name-2`, `-3`, ...) with the same fingerprint is taken up again, the newest if there
    are several, unless it has done more steps than are asked for. Otherwise, and with `restart`, a new folder is made
    under the first name that neither a run nor a LoRA file has.

    Raises:
        CheckpointError: another process works on this run.
    """
    existing = None if config.restart else _existing_run(runs_dir, config, fingerprint)
    folder = existing or _new_folder(runs_dir, lora_dir, config.run_name)
    with _held(folder):
        manifest = _read_manifest(folder) or Manifest(
            fingerprint=fingerprint,
            state="running",
            step=0,
            total_steps=config.max_train_steps,
            pid=os.getpid(),
            heartbeat=time.time(),
        )
        manifest = replace(manifest, total_steps=config.max_train_steps)
        run = RunFolder(folder=folder, manifest=manifest, notes=_notes(folder, config, existing is not None))
        if existing is None:
            run.note(manifest)
        yield run


def settings_of(config: TrainConfig, spec: ModelSpec, cache: Cache) -> dict[str, Any]:
    """For config.json: all that is needed to run the same again on this machine."""
    return {
        "format_version": 1,
        "train": dataclasses.asdict(config),
        "model": dataclasses.asdict(spec.config),
        "model_folder": str(spec.folder) if spec.folder else None,
        "model_files": {name: str(path) for name, path in vars(spec.files).items()} if spec.files else None,
        "loras": [{"path": str(use.path), "strength": use.strength} for use in spec.loras],
        "sources": [dataclasses.asdict(source) for source in cache.dataset.sources],
        "cache_folders": {
            name: str(folder) if folder else None
            for name, folder in (
                ("targets", cache.folders.targets),
                ("references", cache.folders.references),
                ("text", cache.folders.text),
            )
        },
    }


def lora_metadata(config: TrainConfig, spec: ModelSpec, cache: Cache, fingerprint: str) -> dict[str, str]:
    """For the LoRA file. Equal training gives equal files, whatever the run is called and however it is previewed."""
    settings = settings_of(config, spec, cache)["train"]
    training = {name: value for name, value in settings.items() if name not in ("run_name", "restart", "validation")}
    return {
        "model_family": spec.config.model_family,
        "model_flavour": spec.config.model_flavour,
        "base_model_precision": spec.config.base_model_precision,
        "dataset_fingerprint": cache.fingerprint(),
        "run_fingerprint": fingerprint,
        "samples": str(len(cache.records)),
        "train": json.dumps(training, sort_keys=True),
    }


def publish_lora(run: RunFolder, lora_dir: Path, callbacks: Callbacks) -> Path:
    """Copies the newest checkpoint's adapter into the run folder and the LoRA folder; returns the latter's path.

    A file of another origin under that name is left alone, and the next free name taken.

    Raises:
        CheckpointError: a copy could not be written; the adapter is safe in the checkpoint.
    """
    checkpoints = list_checkpoints(run.checkpoints)
    try:
        if run.manifest.state != FINISHED or not run.lora_copy.is_file():
            _copy(checkpoints[-1] / ADAPTER_FILE, run.lora_copy)
        wanted = lora_dir / f"{run.manifest.lora or run.name}.safetensors"
        path = _own_or_free(wanted, sha256_of_file(run.lora_copy))
        if not path.exists():
            _copy(run.lora_copy, path)
    except OSError as error:
        source = checkpoints[-1] / ADAPTER_FILE if checkpoints else run.lora_copy
        raise CheckpointError(
            f"The finished LoRA could not be copied to {lora_dir}: {error}. It is safe in {source}. Free some space or"
            " make the folder writable, then queue again."
        ) from error
    if path != wanted:
        callbacks.on_event(
            WarningRaised(message=f"{wanted.name} is another LoRA and was left as it is; this one is {path.name}.")
        )
    return path


def _existing_run(runs_dir: Path, config: TrainConfig, fingerprint: str) -> Path | None:
    numbers = {}
    for folder in runs_dir.glob("*/") if runs_dir.is_dir() else ():
        match = re.fullmatch(rf"{re.escape(config.run_name)}(?:-(\d+))?", folder.name)
        manifest = _read_manifest(folder) if match else None
        if manifest is None or manifest.fingerprint != fingerprint:
            continue
        if _steps_done(folder, manifest) <= config.max_train_steps:
            numbers[folder] = int(match[1] or 1)
    return max(numbers, key=numbers.__getitem__, default=None)


def _steps_done(folder: Path, manifest: Manifest) -> int:
    """The manifest is written after a checkpoint: a crash between the two leaves it behind."""
    return max(manifest.step, *map(step_of, list_checkpoints(folder / "checkpoints")), 0)


def _new_folder(runs_dir: Path, lora_dir: Path, name: str) -> Path:
    number = 1
    while True:
        candidate = runs_dir / (name if number == 1 else f"{name}-{number}")
        number += 1
        if (lora_dir / f"{candidate.name}.safetensors").exists():
            continue
        try:
            candidate.mkdir(parents=True)
        except FileExistsError:
            continue
        return candidate


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    lock = contextlib.ExitStack()
    try:
        lock.enter_context(exclusive(folder / "run.lock"))
    except BlockingIOError as error:
        manifest = _read_manifest(folder)
        holder = f"process {manifest.pid}, step {manifest.step}" if manifest else "another process"
        raise CheckpointError(
            f"The run {folder} is being trained right now ({holder}). Wait until it ends or stop it there,"
            " or choose another run_name."
        ) from error
    with lock:
        yield


def _notes(folder: Path, config: TrainConfig, resumed: bool) -> tuple[str, ...]:
    if folder.name == config.run_name:
        return ()
    reason = (
        "it is the newest run with these settings"
        if resumed
        else "that name has a run of other settings, or a LoRA file, or restart is on"
    )
    return (f"This run is {folder.name}, not {config.run_name}: {reason}.",)


def _read_manifest(folder: Path) -> Manifest | None:
    try:
        return Manifest(**read_json(folder / "manifest.json", CheckpointError, ""))
    except (CheckpointError, TypeError):
        return None


def _own_or_free(wanted: Path, digest: str) -> Path:
    path, number = wanted, 1
    while path.exists() and sha256_of_file(path) != digest:
        number += 1
        path = wanted.with_name(f"{wanted.stem}-{number}.safetensors")
    return path


def _copy(source: Path, target: Path) -> None:
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary)
