"""The nodes' host on a terminal: folders below one home folder, progress as text, Ctrl-C to stop."""

from __future__ import annotations

import contextlib
import gc
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...training.events import (
    Callbacks,
    CheckpointSaved,
    Event,
    ReportReady,
    RunFinished,
    RunStarted,
    SamplesReady,
    StageProgress,
    StepReport,
    WarningRaised,
    phase_after,
)
from ...training.paths import AllowedRoots
from ...training.resources import machine_faults_named
from ..graph.runner import NodeEvent, NodeReported

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import Tensor

    from ...training.weights.choice import SingleFileDirs

DEFAULT_HOME = "longcat-home"

STEP_LINES = 50
"""About this many step lines are written per run; the bar shows every step."""

SECONDS_BETWEEN_LOG_LINES = 10.0
"""Of progress, where stderr is no terminal."""

REPORT_LINES = 6
"""Longer texts of nodes are cut: a cache report has a line per picture."""


class StopFlag:
    """Set by the first Ctrl-C (or SIGTERM); the second one ends the program at once."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def is_set(self) -> bool:
        return self._event.is_set()

    def set(self) -> None:
        self._event.set()

    @contextlib.contextmanager
    def on_signals(self) -> Iterator[None]:
        """Listens to SIGINT and SIGTERM inside the block. Only the main thread may; elsewhere nothing is changed."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def stop(number: int, frame: Any) -> None:
            self.set()
            for kind in before:
                signal.signal(kind, signal.SIG_DFL)
            say("Stopping: the running step is finished and saved. Press Ctrl-C again to stop at once.")

        for number in before:
            signal.signal(number, stop)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class TerminalHost:
    """Implements `nodes.host.Host`, and the `Folders` that the core nodes need.

    Args:
        home: input/, output/ and models/ lie below it; created when something is written.
        device: a torch device name; None: cuda, else mps, else cpu.
        stop: asked between steps and nodes.
        runs_dir: where runs lie; None: below `home`.
    """

    def __init__(
        self, home: Path, device: str | None = None, stop: StopFlag | None = None, runs_dir: Path | None = None
    ) -> None:
        self.home = home.expanduser().resolve()
        self.stop = stop or StopFlag()
        self.files: list[Path] = []
        """What was written for the user, in order."""
        self.bar = Bar()
        self._device = device
        self._runs_dir = runs_dir.expanduser().resolve() if runs_dir is not None else None

    def device(self) -> torch.device:
        import torch

        if self._device is not None:
            return torch.device(self._device)
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")

    def input_dir(self) -> Path:
        return self.home / "input"

    def output_dir(self) -> Path:
        return self.home / "output"

    def data_roots(self) -> AllowedRoots:
        # The working folder comes second: on a terminal a relative path usually means that.
        return AllowedRoots(bases=(self.input_dir(), Path.cwd()))

    def model_roots(self) -> AllowedRoots:
        return AllowedRoots(bases=(*self.models_dirs(), *self.single_file_dirs().transformer, Path.cwd()))

    def models_dirs(self) -> tuple[Path, ...]:
        return (self.home / "models" / "longcat",)

    def single_file_dirs(self) -> SingleFileDirs:
        from ...training.weights.choice import SingleFileDirs
        from ...training.weights.single_file import TOKENIZER_IN_COMFYUI

        models = self.home / "models"
        text_encoders = models / "text_encoders"
        return SingleFileDirs(
            transformer=(models / "diffusion_models",),
            vae=(models / "vae",),
            text_encoder=(text_encoders,),
            tokenizer=(text_encoders / TOKENIZER_IN_COMFYUI.name,),
        )

    def lora_dirs(self) -> tuple[Path, ...]:
        return (self.home / "models" / "loras",)

    def lora_names(self) -> list[str]:
        folder = self.lora_dirs()[0]
        return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors"))

    def runs_dir(self) -> Path:
        return self._runs_dir or self.output_dir() / "longcat"

    def cache_dir(self) -> Path:
        return self.output_dir() / "longcat-cache"

    def cache_roots(self) -> AllowedRoots:
        return AllowedRoots(bases=(self.cache_dir(),))

    def wrote(self, path: Path) -> None:
        """Remembers a file for the list at the end."""
        if path not in self.files:
            self.files.append(path)

    def callbacks(self, node_id: str | None) -> Callbacks:
        return TerminalCallbacks(self)

    def preview(self, latents: Tensor) -> Image | None:
        """A terminal shows no pictures."""
        return None

    @contextlib.contextmanager
    def work(self, node_id: str | None) -> Iterator[Callbacks]:
        """Normal tensors, no gradients (the trainer switches them on); memory is freed at the end."""
        import torch

        callbacks = TerminalCallbacks(self)
        try:
            with torch.inference_mode(False), torch.no_grad(), machine_faults_named(lambda: callbacks.phase):
                yield callbacks
        finally:
            self.bar.close()
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            elif torch.backends.mps.is_available():
                torch.mps.empty_cache()


class Bar:
    """One progress bar at a time on stderr. In a log file: a line now and then."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._stage = ""
        self._last_line = 0.0

    def show(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Item `done` of `total`; the bar closes itself at the last one."""
        if not sys.stderr.isatty():
            self._log(stage, done, total)
            return
        if self._bar is None or (self._stage, self._bar.total) != (stage, total):
            self._open(stage, done, total)
        if note:
            self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(done - self._bar.n)
        if done >= total:
            self.close()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar = None

    def _open(self, stage: str, done: int, total: int) -> None:
        from tqdm import tqdm

        self.close()
        self._stage = stage
        # A stage of one item, such as loading, leaves no line behind. A resumed one begins where it was.
        begun = max(0, done - 1)
        self._bar = tqdm(desc=stage, total=total, initial=begun, file=sys.stderr, dynamic_ncols=True, leave=total > 1)

    def _log(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if done >= total > 1 or now - self._last_line > SECONDS_BETWEEN_LOG_LINES:
            self._last_line = now
            say(f"{stage} {done}/{total}")


class TerminalCallbacks:
    """Events as a progress bar and lines above it."""

    def __init__(self, host: TerminalHost) -> None:
        self.host = host
        self.bar = host.bar
        self.phase = "at the start"

    def should_stop(self) -> bool:
        return self.host.stop.is_set()

    def on_event(self, event: Event) -> None:
        self.phase = phase_after(event, self.phase)
        if isinstance(event, StageProgress):
            self.bar.show(event.stage, event.done, event.total)
        elif isinstance(event, StepReport):
            if event.step % max(1, event.total_steps // STEP_LINES) == 0 or event.step == 1:
                say(step_line(event))
            self.bar.show("training", event.step, event.total_steps, f"loss {event.loss:.4f}")
        elif isinstance(event, SamplesReady):
            for path in event.paths:
                self.host.wrote(path)
            say(f"samples at step {event.step}: {', '.join(str(path) for path in event.paths)}")
        elif isinstance(event, RunFinished):
            self.host.wrote(event.lora)
            say(f"finished at step {event.step}: {event.lora}")
        elif not isinstance(event, ReportReady):
            # Reports are printed when everything has ended.
            say(_other_line(event))


def step_line(report: StepReport) -> str:
    """One training step in fixed order and widths, with units."""
    width, height = report.bucket
    return (
        f"step {report.step:05d}/{report.total_steps:05d} | loss {report.loss:.4f} | grad {report.grad_norm:.2f}"
        f" | lr {report.learning_rate:.1e} | {report.seconds:.2f} s | bucket {width}x{height}"
    )


def show_node(event: NodeEvent) -> None:
    """One line when a node begins, and the text outputs of a node."""
    if isinstance(event, NodeReported):
        show_text(event.text)
    else:
        say(f"[{event.number}/{event.total}] {event.label}")


def show_text(text: str) -> None:
    """The first lines of a report."""
    lines = text.splitlines()
    cut = [f"... and {len(lines) - REPORT_LINES} more lines"] if len(lines) > REPORT_LINES else []
    for line in (*lines[:REPORT_LINES], *cut):
        say(f"    {line}")


def say(line: str) -> None:
    """A line on stderr, above any progress bar."""
    from tqdm import tqdm

    tqdm.write(line, file=sys.stderr)


def _other_line(event: RunStarted | CheckpointSaved | WarningRaised) -> str:
    if isinstance(event, RunStarted):
        how = f"resumes at step {event.first_step}" if event.resumed else f"starts at step {event.first_step}"
        return f"run {event.run} {how} of {event.total_steps}: {event.folder}"
    if isinstance(event, CheckpointSaved):
        return f"checkpoint at step {event.step}: {event.folder}"
    if isinstance(event, WarningRaised):
        return f"warning: {event.message}"
    raise TypeError(f"unknown event {event!r}")
