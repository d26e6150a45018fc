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
from typing import Any

from ..errors import CheckpointError, PreviewError, StoppedByUserError
from ..events import Callbacks, CheckpointSaved, Event, RunStarted, StageProgress, StepReport
from ..files import parse_json
from .run_folder import RunFolder

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 10.0
"""Between two writes of the manifest; each is flushed to disk, which takes longer than a small step."""


class Recorder:
    """Writes events to events.jsonl and the manifest, then hands them on."""

    def __init__(self, run: RunFolder, callbacks: Callbacks) -> None:
        self.run = run
        self.callbacks = callbacks
        self._step = run.manifest.step
        path = run.folder / "events.jsonl"
        _end_last_line(path)
        self._file = path.open("a", encoding="utf-8")

    def on_event(self, event: Event) -> None:
        if not isinstance(event, StageProgress):
            self._file.write(json.dumps(_as_json(event), ensure_ascii=False) + "\n")
            self._file.flush()
        if isinstance(event, (StepReport, CheckpointSaved)):
            self._step = event.step
        elif isinstance(event, RunStarted):
            self._step = event.first_step - 1
        if isinstance(event, CheckpointSaved) or time.time() - self.run.manifest.heartbeat > HEARTBEAT_SECONDS:
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
        self._file.close()


@contextlib.contextmanager
def recording(run: RunFolder, callbacks: Callbacks) -> Iterator[Recorder]:
    """A recorder whose manifest says `running` inside the block, and why it ended if that was an exception."""
    recorder = Recorder(run, callbacks)
    try:
        recorder.note("running")
        yield recorder
    except BaseException as error:
        state = "stopped" if isinstance(error, StoppedByUserError) else "failed"
        _note_if_possible(recorder, state, f"{type(error).__name__}: {error}")
        raise
    finally:
        recorder.close()


def read_losses(folder: Path) -> tuple[float, ...]:
    """Loss of each step from events.jsonl of a run folder; a step that was done twice counts as it was last."""
    losses: dict[int, float] = {}
    path = folder / "events.jsonl"
    for line in path.read_bytes().splitlines():
        try:
            event = parse_json(line, str(path), CheckpointError, "")
        except CheckpointError:  # torn by a power cut; the steps after the last checkpoint were done again
            continue
        step, loss = event.get("step"), event.get("loss")
        if event.get("event") == StepReport.__name__ and isinstance(step, int) and isinstance(loss, (int, float)):
            losses[step] = loss
    return tuple(losses[step] for step in sorted(losses))


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
            " to take the LoRA as it is."
        )


def _note_if_possible(recorder: Recorder, state: str, message: str) -> None:
    try:
        recorder.note(state, message)
    except OSError as error:  # e.g. the full disk that ended the run; its own error must get through
        logger.warning("%s could not be updated: %s", recorder.run.folder / "manifest.json", error)


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
