"""The recorder of a run: between the trainer and the outside, it writes every event down and keeps the manifest."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from ..errors import CheckpointError, PreviewError, StoppedByUserError
from ..events import Callbacks, CheckpointSaved, Event, RunStarted, StageProgress, StepReport
from ..files import parse_json
from .checkpoint import list_checkpoints, losses_of
from .run_folder import RunFolder

logger = logging.getLogger(__name__)

EVENTS_FILE = "events.jsonl"


class Recorder:
    """Writes events to events.jsonl and the manifest, then hands them on.

    Neither file is needed to go on with the run: where they cannot be written there is one warning.
    """

    def __init__(self, run: RunFolder, callbacks: Callbacks) -> None:
        self.run = run
        self.callbacks = callbacks
        self._step = run.manifest.step
        self._file: TextIO | None = None
        path = run.folder / EVENTS_FILE
        try:
            _end_last_line(path)
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            self._without_file(error)

    def on_event(self, event: Event) -> None:
        if not isinstance(event, StageProgress):
            self._write(json.dumps(_as_json(event), ensure_ascii=False) + "\n")
        if isinstance(event, (StepReport, CheckpointSaved)):
            self._step = event.step
        elif isinstance(event, RunStarted):
            self._step = event.first_step - 1
        if isinstance(event, CheckpointSaved):
            self.note(self.run.manifest.state)
        self.callbacks.on_event(event)

    def should_stop(self) -> bool:
        return self.callbacks.should_stop()

    def note(self, state: str, message: str = "") -> None:
        """Writes the manifest."""
        self.run.note(replace(self.run.manifest, state=state, step=self._step, message=message))

    def note_previews(self, step: int, failure: str | None) -> None:
        """Writes down how the previews of `step` went; done again after a resume, they count as they went last."""
        failures = {key: text for key, text in self.run.manifest.preview_failures.items() if key != str(step)}
        if failure is not None:
            failures[str(step)] = failure
        self.run.manifest = replace(self.run.manifest, preview_failures=failures)
        self.note(self.run.manifest.state)

    def close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # what could not be flushed was told when it was written
                self._file.close()

    def _write(self, line: str) -> None:
        if self._file is None:
            return
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            self.close()
            self._file = None
            self._without_file(error)

    def _without_file(self, error: OSError) -> None:
        logger.warning("%s cannot be written: %s", self.run.folder / EVENTS_FILE, error)


@contextlib.contextmanager
def recording(run: RunFolder, callbacks: Callbacks) -> Iterator[Recorder]:
    """A recorder whose manifest says `running` inside the block, and why it ended if that was an exception."""
    recorder = Recorder(run, callbacks)
    try:
        recorder.note("running")
        yield recorder
    except BaseException as error:
        state = "stopped" if isinstance(error, StoppedByUserError) else "failed"
        recorder.note(state, f"{type(error).__name__}: {error}")
        raise
    finally:
        recorder.close()


def read_losses(run: RunFolder) -> tuple[float, ...]:
    """Loss of each step of a run: from its newest checkpoint, else from events.jsonl as far as that can be read."""
    for checkpoint in reversed(list_checkpoints(run.checkpoints)):
        losses = losses_of(checkpoint)
        if losses:
            return losses
    return _losses_of_events(run.folder / EVENTS_FILE)


def raise_if_previews_failed(run: RunFolder, lora: Path) -> None:
    """
    Raises:
        PreviewError: naming the steps whose previews failed, and the finished `lora`.
    """
    failures = run.manifest.preview_failures
    if failures:
        raise PreviewError(
            f"The LoRA is finished and saved as {lora}, but {len(failures)} previews failed (steps"
            f" {', '.join(failures)}). The first: {next(iter(failures.values()))} Queue again"
            " to try these previews again; the LoRA is complete without them."
        )


def _losses_of_events(path: Path) -> tuple[float, ...]:
    """A step that was done twice counts as it was last; lines that are damaged are left out."""
    losses: dict[int, float] = {}
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        with contextlib.suppress(CheckpointError):
            event = parse_json(line, str(path), CheckpointError, "")
            step, loss = event.get("step"), event.get("loss")
            if event.get("event") == StepReport.__name__ and isinstance(step, int) and isinstance(loss, (int, float)):
                losses[step] = loss
    return tuple(losses[step] for step in sorted(losses))


def _as_json(event: Event) -> dict[str, Any]:
    values: dict[str, Any] = {"event": type(event).__name__, "time": time.time()}
    for field in dataclasses.fields(event):
        value = getattr(event, field.name)
        if field.name == "images":  # they are in the files of `paths`
            continue
        values[field.name] = [str(path) for path in value] if field.name == "paths" else value
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


def _end_last_line(path: Path) -> None:
    """A power cut may have torn the last line off; the next event must not be glued to it."""
    if path.is_file() and path.stat().st_size:
        with path.open("rb+") as file:
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                file.write(b"\n")
