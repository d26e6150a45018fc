"""Checkpoints: everything that a run needs to continue as if it had never stopped, bit for bit.

`step-000100/` holds `adapter.safetensors` (a LoRA file, usable as it is), `optimizer.safetensors` (the exact
parameters, the optimiser's state, the moving average, the random state) and `state.json`. A folder of that name is
complete or does not exist.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, as_tensor

from ..errors import CheckpointError, LoraFileError
from ..events import Callbacks, CheckpointSaved, WarningRaised
from ..files import (
    TEMPORARY,
    read_json,
    remove,
    rename,
    replacing_folder,
    sha256_of_file,
    write_json,
    write_safetensors,
)
from ..lora.file import check_lora, read_metadata, save_lora
from .state import TrainState

logger = logging.getLogger(__name__)

T = TypeVar("T")

FORMAT_VERSION = 1
FINGERPRINT = "run_fingerprint"
"""Key in the metadata of a run's LoRA files."""
FINGERPRINT_KEY = "fingerprint"
"""Key in state.json."""
ADAPTER_FILE, OPTIMIZER_FILE, STATE_FILE = "adapter.safetensors", "optimizer.safetensors", "state.json"
GENERATOR = "generator"
PARAMETER, AVERAGE = "parameter", "ema"
"""Parts of one parameter in the file; the others are the optimiser's state of it, by the optimiser's own names."""


def save_checkpoint(state: TrainState, folder: Path, callbacks: Callbacks) -> None:
    """Writes the checkpoint of `state.step` below `folder` and removes those beyond `checkpoints_total_limit`.

    Raises:
        CheckpointError: it could not be written; the older ones are intact.
    """
    target = folder / checkpoint_name(state.step)
    try:
        with replacing_folder(target) as temporary:
            with state.averaged():
                save_lora(temporary / ADAPTER_FILE, state.transformer, state.lora_metadata())
            write_safetensors(temporary / OPTIMIZER_FILE, _tensors(state), {})
            digests = {name: sha256_of_file(temporary / name) for name in (ADAPTER_FILE, OPTIMIZER_FILE)}
            write_json(temporary / STATE_FILE, {**_numbers(state), "sha256": digests})
    except (OSError, LoraFileError) as error:
        raise CheckpointError(
            f"The checkpoint of step {state.step} could not be written to {target}: {error}."
            f" {_what_is_left(folder)} Free some space or choose another output folder, then queue again to continue."
        ) from error
    state.saved_step = state.step
    _prune(folder, state.config.options.checkpoints_total_limit)
    callbacks.on_event(CheckpointSaved(step=state.step, folder=target))


def restore_newest(state: TrainState, folder: Path, callbacks: Callbacks) -> None:
    """Puts `state` where the newest readable checkpoint below `folder` was; without one it stays as it is.

    Damaged ones are passed over with a warning, and renamed to `damaged-step-...`.

    Raises:
        CheckpointError: there are checkpoints, but none can be read.
    """
    damaged: dict[Path, CheckpointError] = {}
    for checkpoint in reversed(list_checkpoints(folder)):
        try:
            restore(state, checkpoint)
        except CheckpointError as error:
            damaged[checkpoint] = error
            continue
        for path, error in damaged.items():
            # Out of the way of pruning, which would take it for the newest and remove good ones.
            rename(path, _unused(folder / f"damaged-{path.name}"))
            callbacks.on_event(WarningRaised(message=f"{error} Continuing from {checkpoint.name}."))
        return
    if damaged:
        newest = next(iter(damaged.values()))
        raise CheckpointError(
            f"None of the {len(damaged)} checkpoints in {folder} can be read. The newest: {newest}"
            " Remove that folder to train this run from the beginning, or switch restart on."
        )


def list_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoint folders, oldest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if re.fullmatch(r"step-\d{6,}", path.name) and path.is_dir()]
    return sorted(found, key=step_of)


def checkpoint_name(step: int) -> str:
    return f"step-{step:06d}"


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def adapter_digest(checkpoint: Path) -> str | None:
    """SHA-256 that the checkpoint's LoRA file had when it was written; None if that cannot be read."""
    return _noted(checkpoint, lambda numbers: str(numbers["sha256"][ADAPTER_FILE]))


def losses_of(checkpoint: Path) -> tuple[float, ...]:
    """The loss of each step up to the checkpoint; empty if they cannot be read."""
    return _noted(checkpoint, lambda numbers: tuple(map(float, numbers["losses"]))) or ()


def fingerprint_of(checkpoint: Path) -> str | None:
    """Fingerprint of the run that wrote the checkpoint; None if it cannot be read."""
    found = _noted(checkpoint, lambda numbers: str(numbers[FINGERPRINT_KEY])) or None
    if found is None:  # versions before 0.2 wrote it into the LoRA file only
        with contextlib.suppress(LoraFileError):
            found = read_metadata(checkpoint / ADAPTER_FILE).get(FINGERPRINT)
    return found


def check_writable(state: TrainState, folder: Path) -> None:
    """A LoRA that could not be saved or read back must not show after a night of training.

    Raises:
        CheckpointError: `folder` cannot be written.
        LoraFileError: the file that was written does not hold what the model holds.
    """
    path = folder / "adapter-check.safetensors"
    try:
        save_lora(path, state.transformer, state.lora_metadata())
    except OSError as error:
        raise CheckpointError(
            f"The run folder {folder} cannot be written: {error}. Free some space or choose another output folder."
        ) from error
    finally:
        remove(path)


def _noted(checkpoint: Path, get: Callable[[dict[str, Any]], T]) -> T | None:
    """What `get` finds in state.json; None if it is damaged, missing or without that."""
    try:
        return get(read_json(checkpoint / STATE_FILE, CheckpointError, ""))
    except (CheckpointError, ValueError, KeyError, TypeError):
        return None


def _tensors(state: TrainState) -> dict[str, Tensor]:
    tensors = {GENERATOR: state.generator.get_state()}
    for name, parameter in state.parameters.items():
        # The LoRA file has alpha / rank multiplied into B, which cannot be undone to the last bit.
        tensors[f"{name}/{PARAMETER}"] = parameter
        for part, value in state.optimizer.state[parameter].items():
            tensors[f"{name}/{part}"] = as_tensor(value)
    if state.ema is not None:
        for name, average in zip(state.parameters, state.ema.shadow_params, strict=True):
            tensors[f"{name}/{AVERAGE}"] = average
    return tensors


def _numbers(state: TrainState) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        FINGERPRINT_KEY: state.metadata.get(FINGERPRINT, ""),
        "step": state.step,
        "batches_done": state.batches_done,
        "losses": state.losses,
        "scheduler": state.scheduler.state_dict(),
        "config": dataclasses.asdict(state.config),
    }


def restore(state: TrainState, checkpoint: Path) -> None:
    """Puts `state` where `checkpoint` was.

    Raises:
        CheckpointError: it is damaged.
    """
    try:
        numbers = read_json(checkpoint / STATE_FILE, CheckpointError, f"The checkpoint {checkpoint.name} is damaged.")
        if numbers["format_version"] != FORMAT_VERSION:
            raise CheckpointError(
                f"{checkpoint} has format {numbers['format_version']}, this version reads {FORMAT_VERSION}."
            )
        _check_digests(checkpoint, numbers["sha256"])
        tensors = load_file(checkpoint / OPTIMIZER_FILE)
        _check_complete(state, tensors, numbers)
        _load_tensors(state, tensors)
        _load_numbers(state, numbers)
        with state.averaged():
            check_lora(checkpoint / ADAPTER_FILE, state.transformer)
    except LoraFileError as error:
        raise CheckpointError(f"The checkpoint {checkpoint} is damaged ({error}).") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"The checkpoint {checkpoint} is damaged ({type(error).__name__}: {error}).") from error


def _check_digests(checkpoint: Path, digests: dict[str, str]) -> None:
    for name, digest in digests.items():
        if sha256_of_file(checkpoint / name) != digest:
            raise ValueError(f"{name} is not as it was written")


def _check_complete(state: TrainState, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
    found = _by_parameter(tensors)
    if found.keys() != state.parameters.keys():
        raise ValueError(f"{len(found.keys() ^ state.parameters.keys())} parameters are missing or unknown")
    if len(numbers["losses"]) != numbers["step"]:
        raise ValueError(f"{len(numbers['losses'])} losses for {numbers['step']} steps")


def _load_tensors(state: TrainState, tensors: dict[str, Tensor]) -> None:
    parts = _by_parameter(tensors)
    for name, parameter in state.parameters.items():
        # In place: the optimiser and the transformer both hold these very parameters.
        parameter.data.copy_(parts[name].pop(PARAMETER))
    if state.ema is not None:
        for name, average in zip(state.parameters, state.ema.shadow_params, strict=True):
            average.copy_(parts[name].pop(AVERAGE))
    moments = {
        index: {part: value.clone() for part, value in parts[name].items()}
        for index, name in enumerate(state.parameters)
    }
    groups = state.optimizer.state_dict()["param_groups"]
    state.optimizer.load_state_dict({"state": moments, "param_groups": groups})
    state.generator.set_state(tensors[GENERATOR])


def _by_parameter(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """`{"name/part": tensor}` -> `{"name": {"part": tensor}}`."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key != GENERATOR:
            name, part = key.rsplit("/", 1)
            found.setdefault(name, {})[part] = tensor
    return found


def _load_numbers(state: TrainState, numbers: dict[str, Any]) -> None:
    state.scheduler.load_state_dict(numbers["scheduler"])
    for group, rate in zip(state.optimizer.param_groups, state.scheduler.get_last_lr(), strict=True):
        group["lr"] = rate
    state.step, state.losses = numbers["step"], list(numbers["losses"])
    state.saved_step = state.step
    if state.ema is not None:
        state.ema.optimization_step = state.step


def _prune(folder: Path, limit: int) -> None:
    """Best effort: an old checkpoint that the system holds on to stays, and is tried again at the next one."""
    for checkpoint in list_checkpoints(folder)[:-limit] if limit > 0 else ():
        # Renamed first, so that a crash while deleting leaves no half checkpoint under a real name.
        unfinished = folder / f".{checkpoint.name}{TEMPORARY}"
        try:
            rename(checkpoint, unfinished)
        except OSError as error:
            logger.warning("The old checkpoint %s could not be removed: %s", checkpoint, error)
            continue
        remove(unfinished)


def _unused(path: Path) -> Path:
    number = 1
    while path.exists():
        number += 1
        path = path.with_name(f"{path.name.split('~')[0]}~{number}")
    return path


def _what_is_left(folder: Path) -> str:
    checkpoints = list_checkpoints(folder)
    return f"{checkpoints[-1]} is intact." if checkpoints else "There is no older checkpoint."
