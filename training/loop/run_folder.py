"""A run on disk: which folder a run belongs to, who holds it, and what is written down about it.

`config.json` (complete, re-runnable settings), `manifest.json` (what the run is and how far it came), `events.jsonl`
(every step, sample, checkpoint and warning), `checkpoints/`, `samples/`, and a copy of the finished LoRA.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..caches.cache import Cache
from ..errors import CheckpointError, ConfigError, LoraFileError
from ..events import Callbacks, WarningRaised
from ..files import A_DAY, TEMPORARY, read_json, remove_leftovers, replacing, sha256_of_file, sha256_of_json, write_json
from ..lora.file import read_lora
from ..settings.model import flavour_of
from ..settings.run import TrainConfig
from ..weights.spec import ModelSpec
from .checkpoint import ADAPTER_FILE, adapter_digest, fingerprint_of, list_checkpoints, step_of
from .run_lock import exclusive

logger = logging.getLogger(__name__)

CODE_VERSION = 1
"""Counts up whenever the same settings would train other numbers: older unfinished runs are then not resumed."""

FINISHED = "finished"

MANIFEST_FILE, LOCK_FILE, CHECKPOINTS = "manifest.json", "run.lock", "checkpoints"

LONGEST_PATH = 259 if os.name == "nt" else float("inf")
"""Characters that programs may use in a path on a Windows without long paths switched on."""

LONGEST_INSIDE = 110
"""Characters of the longest path inside a run's folder, that of a preview (`previews.py`)."""

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
    updated: float
    """Seconds since 1970."""
    lora: str | None = None
    """The LoRA file's name in the LoRA folder."""
    lora_sha256: str | None = None
    """Of the finished LoRA; None before, and in runs of versions that did not note it."""
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
        return self.folder / CHECKPOINTS

    @property
    def samples(self) -> Path:
        return self.folder / "samples"

    @property
    def lora_copy(self) -> Path:
        return self.folder / f"{self.name}.safetensors"

    @property
    def finished(self) -> bool:
        """Whether everything is done and the LoRA is still here as it was written."""
        done = self.manifest.state == FINISHED and self.manifest.step == self.manifest.total_steps
        return done and sound_lora(self) is not None

    def note(self, manifest: Manifest) -> None:
        """Writes manifest.json; a failure is a warning only, since a checkpoint tells the same."""
        self.manifest = replace(manifest, pid=os.getpid(), updated=time.time())
        path = self.folder / MANIFEST_FILE
        try:
            write_json(path, dataclasses.asdict(self.manifest))
        except OSError as error:
            logger.warning("%s could not be updated: %s", path, error)


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
        CheckpointError: another process works on this run, or its folder cannot be made.
    """
    existing = None if config.restart else _existing_run(runs_dir, config, fingerprint)
    try:
        folder = existing or _new_folder(runs_dir, lora_dir, config.run_name)
    except OSError as error:
        raise CheckpointError(
            f"The folder of the run cannot be made in {runs_dir}: {error}. Free some space or make the folder writable,"
            " then queue again."
        ) from error
    with _held(folder):
        _remove_leftovers(folder, lora_dir)
        manifest = read_manifest(folder)
        notes = _notes(folder, config, lora_dir, existing is not None)
        if manifest is None and existing is not None:
            manifest = _rebuilt_manifest(folder)
            notes += (f"{MANIFEST_FILE} of {folder.name} was damaged and has been rebuilt from the checkpoints.",)
        manifest = manifest or Manifest(
            fingerprint=fingerprint, state="running", step=0, total_steps=0, pid=os.getpid(), updated=time.time()
        )
        run = RunFolder(folder=folder, manifest=replace(manifest, total_steps=config.max_train_steps), notes=notes)
        run.note(run.manifest)
        yield run


def check_path_length(runs_dir: Path, name: str, limit: float = LONGEST_PATH) -> None:
    """Refuses a run whose files would get longer paths than the system takes.

    Raises:
        ConfigError: naming the length and the remedy.
    """
    length = len(os.path.abspath(runs_dir / name)) + max(LONGEST_INSIDE, len(f"/{name}.safetensors"))
    if length > limit:
        raise ConfigError(
            f"run_name is {name!r}; in {runs_dir} the run's files would get paths of up to {length} characters, and"
            f" this system takes {limit:.0f}. Choose a name that is at least {length - limit:.0f} characters shorter,"
            " or an output folder with a shorter path."
        )


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
    """Copies the run's LoRA into the run folder and the LoRA folder; returns the latter's path.

    A file of another origin under that name is left alone, and the next free name taken.

    Raises:
        CheckpointError: a copy could not be written; the adapter is safe in the checkpoint.
    """
    found = sound_lora(run)
    if found is None:
        raise CheckpointError(
            f"No copy of the LoRA in {run.folder} is as it was written. Put the files back from a backup, or switch"
            " restart on to train again."
        )
    source, digest = found
    try:
        if source != run.lora_copy:
            _copy(source, run.lora_copy, digest)
        wanted = lora_dir / f"{run.manifest.lora or run.name}.safetensors"
        path = _own_or_free(wanted, digest)
        if not path.exists():
            _copy(source, path, digest)
    except OSError as error:
        raise CheckpointError(
            f"The finished LoRA could not be copied to {lora_dir}: {error}. It is safe in {source}. Free some space or"
            " make the folder writable, then queue again."
        ) from error
    if path != wanted:
        callbacks.on_event(
            WarningRaised(message=f"{wanted.name} is another LoRA and was left as it is; this one is {path.name}.")
        )
    run.manifest = replace(run.manifest, lora_sha256=digest)
    return path


def sound_lora(run: RunFolder) -> tuple[Path, str] | None:
    """A file that holds the LoRA of the newest checkpoint, unchanged since it was written, and its SHA-256."""
    newest = next(reversed(list_checkpoints(run.checkpoints)), None)
    known = run.manifest.lora_sha256 if run.manifest.state == FINISHED else None
    if known is None and newest is not None:
        known = adapter_digest(newest)
    files = [run.lora_copy, *([newest / ADAPTER_FILE] if newest is not None else [])]
    for path in files:
        with contextlib.suppress(OSError):
            digest = sha256_of_file(path)
            if digest == known or (known is None and newest is None and _is_lora(path)):
                return path, digest
    return None


def _existing_run(runs_dir: Path, config: TrainConfig, fingerprint: str) -> Path | None:
    numbers = {}
    for folder in runs_dir.glob("*/") if runs_dir.is_dir() else ():
        match = re.fullmatch(rf"{re.escape(config.run_name)}(?:-(\d+))?", folder.name)
        manifest = read_manifest(folder) or _rebuilt_manifest(folder) if match else None
        if manifest is None or manifest.fingerprint != fingerprint:
            continue
        if _steps_done(folder, manifest) <= config.max_train_steps:
            numbers[folder] = int(match[1] or 1)
    return max(numbers, key=numbers.__getitem__, default=None)


def _steps_done(folder: Path, manifest: Manifest) -> int:
    """The manifest is written after a checkpoint: a crash between the two leaves it behind."""
    return max(manifest.step, *map(step_of, list_checkpoints(folder / CHECKPOINTS)), 0)


def _new_folder(runs_dir: Path, lora_dir: Path, name: str) -> Path:
    """The first of `name`, `name-2`, ... that no run and no LoRA file has.

    Raises:
        OSError: `runs_dir` cannot be written.
    """
    for number in itertools.count(1):
        candidate = runs_dir / (name if number == 1 else f"{name}-{number}")
        if (lora_dir / f"{candidate.name}.safetensors").exists():
            continue
        try:
            candidate.mkdir(parents=True)
        except FileExistsError:
            if not _is_abandoned(candidate):
                continue
        return candidate


def _is_abandoned(folder: Path) -> bool:
    """Whether a process was killed between making `folder` and writing anything of a run into it."""
    if not folder.is_dir() or not {path.name for path in folder.iterdir() if path.suffix != TEMPORARY} <= {LOCK_FILE}:
        return False
    try:
        with exclusive(folder / LOCK_FILE):
            return True
    except BlockingIOError:
        return False


def _remove_leftovers(folder: Path, lora_dir: Path) -> None:
    """What killed processes left behind: this process holds the run; others may be writing into `lora_dir`."""
    for place in (folder, folder / CHECKPOINTS, folder / "samples", folder / "debug"):
        remove_leftovers(place)
    remove_leftovers(lora_dir, older_than=A_DAY)


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    lock = contextlib.ExitStack()
    try:
        lock.enter_context(exclusive(folder / LOCK_FILE))
    except BlockingIOError as error:
        manifest = read_manifest(folder)
        holder = f"process {manifest.pid}, step {manifest.step}" if manifest else "another process"
        raise CheckpointError(
            f"The run {folder} is being trained right now ({holder}). Wait until it ends or stop it there,"
            " or choose another run_name."
        ) from error
    with lock:
        yield


def _notes(folder: Path, config: TrainConfig, lora_dir: Path, resumed: bool) -> tuple[str, ...]:
    if folder.name == config.run_name:
        return ()
    if resumed:
        reason = "it is the newest run with these settings"
    elif config.restart:
        reason = "restart is on"
    elif read_manifest(folder.with_name(config.run_name)) is not None:
        reason = f"the run {config.run_name} has other settings, data or weights"
    elif (lora_dir / f"{config.run_name}.safetensors").exists():
        reason = f"there is a LoRA file {config.run_name}.safetensors"
    else:
        reason = f"the folder {config.run_name} holds something else"
    return (f"This run is {folder.name}, not {config.run_name}: {reason}.",)


def read_manifest(folder: Path) -> Manifest | None:
    """What manifest.json of a run's folder says; None: missing or damaged."""
    try:
        values = read_json(folder / MANIFEST_FILE, CheckpointError, "")
        # Versions before 0.2 called it heartbeat.
        values = {"updated": values.get("heartbeat", 0.0), **values}
        names = {field.name for field in dataclasses.fields(Manifest)}
        manifest = Manifest(**{name: value for name, value in values.items() if name in names})
    except (CheckpointError, TypeError):
        return None
    kinds = {"fingerprint": str, "state": str, "step": int, "total_steps": int, "preview_failures": dict}
    return manifest if all(isinstance(getattr(manifest, name), kind) for name, kind in kinds.items()) else None


def _rebuilt_manifest(folder: Path) -> Manifest | None:
    """What the newest readable checkpoint says about the run; None without one."""
    for checkpoint in reversed(list_checkpoints(folder / CHECKPOINTS)):
        fingerprint = fingerprint_of(checkpoint)
        if fingerprint is not None:
            step = step_of(checkpoint)
            return Manifest(
                fingerprint=fingerprint,
                state="stopped",
                step=step,
                total_steps=step,
                pid=os.getpid(),
                updated=time.time(),
            )
    return None


def _is_lora(path: Path) -> bool:
    try:
        read_lora(path)
    except LoraFileError:
        return False
    return True


def _own_or_free(wanted: Path, digest: str) -> Path:
    path, number = wanted, 1
    while path.exists() and sha256_of_file(path) != digest:
        number += 1
        path = wanted.with_name(f"{wanted.stem}-{number}.safetensors")
    return path


def _copy(source: Path, target: Path, digest: str) -> None:
    """
    Raises:
        OSError: the disk is full, or what was written is not what was read.
    """
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary)
        if sha256_of_file(temporary) != digest:
            raise OSError(f"the copy of {source} differs from it; the disk may be failing")
