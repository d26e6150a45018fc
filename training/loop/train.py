"""The training loop, as an outline; each line is a function of a neighbouring module."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch

from ..caches.cache import Cache
from ..errors import CheckpointError, NonFiniteLossError, StoppedByUserError
from ..events import Callbacks, RunFinished, RunStarted, StepReport, WarningRaised
from ..files import write_json
from ..settings.run import TrainConfig
from ..weights.source import identity_of
from ..weights.spec import ModelSpec
from .batches import load_batch
from .check import check_run, training_hints
from .checkpoint import check_writable, checkpoint_name, restore, restore_newest, save_checkpoint
from .debug import write_debug_images
from .optimizer import clip_gradients
from .previews import Previews, newest_pictures, prepare_previews
from .record import Recorder, raise_if_previews_failed, read_losses, recording
from .run_folder import (
    FINISHED,
    RunFolder,
    check_path_length,
    claim_run,
    lora_metadata,
    publish_lora,
    run_fingerprint,
    settings_of,
)
from .state import TrainState, open_state
from .step import draw, forward_step

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunPlaces:
    """Where a run works and leaves things."""

    runs_dir: Path
    """One folder a run."""
    lora_dir: Path
    """Finished LoRA files."""
    device: torch.device
    validation_cache: Cache | None = None
    """Pairs to preview; None: the first pairs of the training data."""


class Report(Protocol):
    """Something for people to read."""

    def text(self) -> str:
        """All of it, on several lines."""
        ...


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    lora: Path
    losses: tuple[float, ...]
    """One per step."""
    folder: Path
    """The run's."""
    samples: tuple[Path, ...]
    """Previews of the last step that has some."""
    step: int
    report: Report | None = None
    """What else there is to say."""


def train(config: TrainConfig, spec: ModelSpec, cache: Cache, places: RunPlaces, callbacks: Callbacks) -> TrainResult:
    """Trains a LoRA, or continues its training, or returns it if it is finished.

    Raises:
        ConfigError, CacheError, ModelError, LoraFileError: settings, data and model do not fit; nothing is trained.
        NonFiniteLossError: the loss became NaN or infinite; the last checkpoint is intact.
        CheckpointError: nothing more can be saved, or another process works on this run.
        PreviewError: previews failed: at once before the first step, else when the LoRA is finished and saved.
        StoppedByUserError: asked to stop; everything is saved.
    """
    check_path_length(places.runs_dir, config.run_name)
    check_run(config, spec, cache, places.validation_cache)
    identity = identity_of(spec, "transformer", callbacks)
    fingerprint = run_fingerprint(config, spec, cache, identity)
    with claim_run(config, fingerprint, places.runs_dir, places.lora_dir) as run:
        if run.finished and not run.manifest.preview_failures:
            return _result_of_finished(run, places, callbacks)
        with recording(run, callbacks) as recorder, torch.inference_mode(False), torch.enable_grad():
            _prepare_folder(run, config, spec, cache, recorder)
            pairs = places.validation_cache or cache
            previews = prepare_previews(config.validation, spec, pairs, run.samples, places.device, recorder)
            metadata = lora_metadata(config, spec, cache, fingerprint)
            with open_state(config, spec, cache, places.device, metadata, recorder) as state:
                check_writable(state, run.folder)
                restore_newest(state, run.checkpoints, recorder)
                _announce(state, run, recorder)
                if config.options.debug_images:
                    write_debug_images(state, spec, run.folder / "debug", recorder)
                with _saving_when_it_ends_early(state, run, recorder):
                    _make_up_for_previews(state, run, previews, recorder)
                    _preview_if_due(state, run, previews, recorder)
                    while state.step < config.max_train_steps:
                        _raise_if_stopped(recorder)
                        recorder.on_event(train_one_step(state))
                        _save_if_due(state, run, recorder)
                        _preview_if_due(state, run, previews, recorder)
                losses = tuple(state.losses)
            lora = _finish(run, places, config.max_train_steps, recorder)
    raise_if_previews_failed(run, lora)
    return TrainResult(
        lora=lora, losses=losses, folder=run.folder, samples=newest_pictures(run.samples, callbacks), step=len(losses)
    )


def train_one_step(state: TrainState) -> StepReport:
    """Forward and backward over `gradient_accumulation_steps` batches, then one step of the optimiser.

    Whatever is raised before the optimiser's step leaves `state` as the step before left it.

    Raises:
        NonFiniteLossError: before the optimiser step; names the step and its samples.
    """
    started = time.perf_counter()
    with state.undone_on_error():
        loss, grad_norm, bucket = _accumulate_gradients(state)
    (learning_rate,) = state.scheduler.get_last_lr()
    state.update(loss)
    return StepReport(
        step=state.step,
        total_steps=state.config.max_train_steps,
        loss=loss,
        grad_norm=grad_norm,
        learning_rate=learning_rate,
        seconds=time.perf_counter() - started,
        bucket=bucket,
    )


def _accumulate_gradients(state: TrainState) -> tuple[float, float, tuple[int, int]]:
    """(loss, norm of the gradients before clipping, bucket of the last batch)"""
    options = state.config.options
    accumulation = options.gradient_accumulation_steps
    losses, names = [], []
    for number in range(state.batches_done, state.batches_done + accumulation):
        batch = load_batch(state.order.batch(number))
        draws = draw(state.family, options, batch.latents.shape, state.generator)
        loss = forward_step(state.family, state.transformer, batch, draws).loss / accumulation
        loss.backward()
        losses.append(loss.detach())
        names.extend(batch.names)
    norm = clip_gradients(state.parameters.values(), options.max_grad_norm)
    # Waits for the device (LongCat-Video also does in its forward pass, see `prompt_rows`).
    loss, grad_norm = torch.stack((torch.stack(losses).sum(), norm)).tolist()
    _check_finite(state.step + 1, loss, grad_norm, names)
    return loss, grad_norm, batch.bucket


def _result_of_finished(run: RunFolder, places: RunPlaces, callbacks: Callbacks) -> TrainResult:
    """Nothing is loaded; a LoRA file that was deleted is put back."""
    for note in (*run.notes, *run.manifest.preview_failures.values()):
        callbacks.on_event(WarningRaised(message=note))
    lora = publish_lora(run, places.lora_dir, callbacks)
    step = run.manifest.step
    callbacks.on_event(RunFinished(step=step, lora=lora))
    return TrainResult(
        lora=lora,
        losses=read_losses(run)[:step],
        folder=run.folder,
        samples=newest_pictures(run.samples, callbacks),
        step=step,
    )


def _prepare_folder(run: RunFolder, config: TrainConfig, spec: ModelSpec, cache: Cache, callbacks: Callbacks) -> None:
    try:
        write_json(run.folder / "config.json", settings_of(config, spec, cache))
    except OSError as error:
        raise CheckpointError(
            f"The run folder {run.folder} cannot be written: {error}. Free some space or choose another output folder."
        ) from error
    for note in run.notes if run.manifest.step else (*run.notes, *training_hints(spec)):
        callbacks.on_event(WarningRaised(message=note))


def _announce(state: TrainState, run: RunFolder, callbacks: Callbacks) -> None:
    callbacks.on_event(
        RunStarted(
            run=run.name,
            folder=run.folder,
            first_step=state.step + 1,
            total_steps=state.config.max_train_steps,
            resumed=state.step > 0,
        )
    )


@contextlib.contextmanager
def _saving_when_it_ends_early(state: TrainState, run: RunFolder, callbacks: Callbacks) -> Iterator[None]:
    """Writes a checkpoint of the steps done, whatever ends the run: a stop, too little memory, a damaged file."""
    try:
        yield
    except StoppedByUserError as stop:
        _save_if_newer(state, run, callbacks)
        raise StoppedByUserError(
            f"Stopped at step {state.step} of {state.config.max_train_steps}. Everything is saved in {run.folder};"
            " queue again to continue."
        ) from stop
    except CheckpointError:  # another one would fail as well
        raise
    except Exception as error:
        try:
            _save_if_newer(state, run, callbacks)
        except CheckpointError as unsaved:
            logger.warning("After %s: %s", type(error).__name__, unsaved)
        raise


def _save_if_newer(state: TrainState, run: RunFolder, callbacks: Callbacks) -> None:
    if state.consistent and state.step > state.saved_step:
        save_checkpoint(state, run.checkpoints, callbacks)


def _raise_if_stopped(callbacks: Callbacks) -> None:
    if callbacks.should_stop():
        raise StoppedByUserError("Asked to stop.")


def _save_if_due(state: TrainState, run: RunFolder, callbacks: Callbacks) -> None:
    last = state.step == state.config.max_train_steps
    if last or state.step % state.config.options.checkpoint_step_interval == 0:
        save_checkpoint(state, run.checkpoints, callbacks)


def _make_up_for_previews(state: TrainState, run: RunFolder, previews: Previews, recorder: Recorder) -> None:
    """Previews that failed earlier are sampled again, where a checkpoint of their step is still there."""
    newest = state.step
    for step in sorted(map(int, run.manifest.preview_failures)):
        checkpoint = run.checkpoints / checkpoint_name(step)
        if not previews.inputs or step != newest and not checkpoint.is_dir():
            recorder.note_previews(step, None)
        elif step != newest:
            restore(state, checkpoint)
            _preview_if_due(state, run, previews, recorder)
    if state.step != newest:
        restore(state, run.checkpoints / checkpoint_name(newest))


def _preview_if_due(state: TrainState, run: RunFolder, previews: Previews, recorder: Recorder) -> None:
    if not previews.due(state.step, state.config.max_train_steps):
        return
    with state.averaged():
        failure = previews.show(state.transformer, state.step, recorder)
    recorder.note_previews(state.step, failure)


def _check_finite(step: int, loss: float, grad_norm: float, names: list[str]) -> None:
    if math.isfinite(loss) and math.isfinite(grad_norm):
        return
    raise NonFiniteLossError(
        f"Step {step}: the loss is {loss} and the gradient norm {grad_norm}; the samples were {', '.join(names)}. The"
        " optimiser step was not taken and the last checkpoint is intact. Look at these pictures; else lower"
        " learning_rate, or use base_model_precision bf16 or fp32."
    )


def _finish(run: RunFolder, places: RunPlaces, step: int, recorder: Recorder) -> Path:
    lora = publish_lora(run, places.lora_dir, recorder)
    run.manifest = replace(run.manifest, lora=lora.stem)
    recorder.note(FINISHED)
    recorder.on_event(RunFinished(step=step, lora=lora))
    return lora
