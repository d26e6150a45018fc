"""The rehearsal itself: the twin is trained, interrupted, taken up again, and its LoRA read back."""

from __future__ import annotations

import contextlib
import logging
import shutil
from dataclasses import dataclass, replace

from ..caches.cache import Cache
from ..errors import LongCatError, StoppedByUserError
from ..events import Callbacks, Event, ReportReady, StepReport
from ..loop.train import RunPlaces, TrainResult, train
from ..lora.file import read_lora
from ..settings.run import TrainConfig
from ..weights.spec import ModelSpec
from .checks import Findings, RealRun, kind_of, look_at
from .report import RehearsalError, RehearsalReport

logger = logging.getLogger(__name__)

FOLDER = "rehearsal"
"""Below the folder of runs, and of the caches: nothing of a rehearsal lies among the real ones."""

REPORT_FILE = "rehearsal.txt"
"""In the rehearsed run's folder."""

FAILURES = (LongCatError, OSError, RuntimeError, ValueError, TypeError)
"""What the twin's run may die of; each is a finding."""


@dataclass(frozen=True, kw_only=True)
class SmallRun:
    """What stands for the real run."""

    config: TrainConfig
    spec: ModelSpec
    """The twin's."""
    cache: Cache
    validation_cache: Cache | None


def rehearse(real: RealRun, small: SmallRun, callbacks: Callbacks) -> TrainResult:
    """Trains the twin for a few steps and looks at the real run meanwhile.

    An earlier rehearsal of this name is removed; the real run's folder and LoRA are only looked at.

    Raises:
        RehearsalError: the twin could not be trained; the report says why, and what else was found.
        StoppedByUserError: asked to stop.
    """
    found = look_at(real)
    places = _places(real.places)
    result = None
    if small.cache.records:
        _remove_earlier(small.config.run_name, places)
        result = _trained(small, places, found, callbacks)
    report = RehearsalReport(
        title=_title(real, small),
        folder=result.folder if result else None,
        works=_works(real, small, result),
        needs=tuple(found.needs),
        faults=tuple(found.faults),
        surprises=tuple(found.surprises),
    )
    if result is None:
        raise RehearsalError(report)
    (result.folder / REPORT_FILE).write_text(report.text() + "\n", encoding="utf-8")
    logger.info(report.text())
    callbacks.on_event(ReportReady(report=report.text()))
    return replace(result, report=report)


class _StopsHalfway:
    """Asks to stop after step `step`, as a user would."""

    def __init__(self, callbacks: Callbacks, step: int) -> None:
        self.callbacks = callbacks
        self.step = step
        self.reached = False

    def on_event(self, event: Event) -> None:
        if isinstance(event, StepReport):
            self.reached = event.step >= self.step
        self.callbacks.on_event(event)

    def should_stop(self) -> bool:
        return self.reached or self.callbacks.should_stop()


def _trained(small: SmallRun, places: RunPlaces, found: Findings, callbacks: Callbacks) -> TrainResult | None:
    """The result of the twin's run; None, and a finding, if it fails."""
    places = replace(places, validation_cache=small.validation_cache)
    config = _fitting(small.config, small.cache)
    try:
        if config.max_train_steps > 1:
            halfway = _StopsHalfway(callbacks, config.max_train_steps // 2)
            with contextlib.suppress(StoppedByUserError):
                train(config, small.spec, small.cache, places, halfway)
            if callbacks.should_stop():
                raise StoppedByUserError("The rehearsal was stopped.")
        result = train(config, small.spec, small.cache, places, callbacks)
        read_lora(result.lora)
    except StoppedByUserError:
        raise
    except FAILURES as error:
        known = any(str(error) in fault for fault in found.faults)
        if not known:
            name = "" if isinstance(error, LongCatError) else f"{type(error).__name__}: "
            found.faults.append(f"The tiny twin could not be trained: {name}{error}")
        return None
    return result


def _fitting(config: TrainConfig, cache: Cache) -> TrainConfig:
    """Settings that go together although each was made smaller by itself."""
    samples = sum(1 + cached.record.repeats for cached in cache.records)
    warmup = min(config.options.lr_warmup_steps, config.max_train_steps - 1)
    return replace(
        config,
        train_batch_size=min(config.train_batch_size, samples),
        options=replace(config.options, lr_warmup_steps=warmup),
    )


def _places(real: RunPlaces) -> RunPlaces:
    folder = real.runs_dir / FOLDER
    return RunPlaces(runs_dir=folder, lora_dir=folder / "loras", device=real.device)


def _remove_earlier(name: str, places: RunPlaces) -> None:
    shutil.rmtree(places.runs_dir / name, ignore_errors=True)
    (places.lora_dir / f"{name}.safetensors").unlink(missing_ok=True)


def _title(real: RealRun, small: SmallRun) -> str:
    model = real.model.config
    return (
        f"Rehearsal of {real.config.run_name} ({model.model_family}, {model.model_flavour}) on the twin"
        f" {small.spec.config.model_flavour}"
    )


def _works(real: RealRun, small: SmallRun, result: TrainResult | None) -> tuple[str, ...]:
    if result is None:
        return ()
    records, tried = real.data.dataset.records, len(small.cache.records)
    share = f"{tried} of {len(records)} " if tried < len(records) else f"{tried} "
    done = [f"{share}{kind_of(records)}", "captions", "caches", f"training ({result.step} steps)"]
    if small.config.validation is not None:
        done.append("validation")
    if small.config.max_train_steps > 1:
        done.append("checkpoints (one was gone on from)")
    return (*done, "LoRA file")
