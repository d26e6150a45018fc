"""What long stages report to the outside, as typed events, and how the outside asks them to stop."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, kw_only=True)
class StageProgress:
    """Item `done` of `total` of a stage such as "caching latents", "downloading", "sampling"."""

    stage: str
    done: int
    total: int
    preview: Image | None = None


@dataclass(frozen=True, kw_only=True)
class RunStarted:
    run: str
    folder: Path
    first_step: int
    total_steps: int
    resumed: bool


@dataclass(frozen=True, kw_only=True)
class StepReport:
    step: int
    """From 1."""
    total_steps: int
    loss: float
    grad_norm: float
    learning_rate: float
    seconds: float
    bucket: tuple[int, int]
    """(width, height) px"""


@dataclass(frozen=True, kw_only=True)
class SamplesReady:
    step: int
    images: tuple[Image, ...]
    paths: tuple[Path, ...]
    """PNG files; of a clip its frames side by side, and the clip beside it as .mp4."""


@dataclass(frozen=True, kw_only=True)
class CheckpointSaved:
    step: int
    folder: Path


@dataclass(frozen=True, kw_only=True)
class WarningRaised:
    message: str


@dataclass(frozen=True, kw_only=True)
class RunFinished:
    step: int
    lora: Path


@dataclass(frozen=True, kw_only=True)
class ReportReady:
    report: str
    """Several lines, for people."""


Event = (
    StageProgress | RunStarted | StepReport | SamplesReady | CheckpointSaved | WarningRaised | RunFinished | ReportReady
)


def phase_after(event: Event, before: str) -> str:
    """What goes on after `event`, in words such as "caching latents 3/12"; `before` where it says nothing of it."""
    if isinstance(event, StageProgress):
        return f"{event.stage} {event.done}/{event.total}"
    if isinstance(event, RunStarted):
        return f"training, step {event.first_step}/{event.total_steps}"
    if isinstance(event, StepReport):
        return f"training, after step {event.step}/{event.total_steps}"
    return before


class Callbacks(Protocol):
    """The outside of a long stage. Exceptions raised in `on_event` propagate and end the stage."""

    def on_event(self, event: Event) -> None: ...

    def should_stop(self) -> bool:
        """Asked between steps; True lets the stage save and raise `StoppedByUserError`."""
        ...


class NoCallbacks:
    """Reports to nobody and never stops."""

    def on_event(self, event: Event) -> None:
        pass

    def should_stop(self) -> bool:
        return False
