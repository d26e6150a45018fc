"""What the stages hand on about the data: names and paths, never pixels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..settings.dataset import DatasetConfig
from .clips import Clip
from .video_buckets import VideoBucket
from .video_files import VideoInfo


@dataclass(frozen=True, kw_only=True)
class Record:
    """One training sample: for an edit the target, its reference and the instruction."""

    name: str
    """The stem that target, reference and caption file share."""
    target: Path
    references: tuple[Path, ...] = ()
    """At most one is used by the released models."""
    caption: str
    bucket: tuple[int, int]
    """(width, height) in px that target and reference are each resized to cover, and cropped to."""
    crop: tuple[float, float] = (0.5, 0.5)
    """Shares of what is cropped off that fall to the left and to the top, of target and reference alike."""
    repeats: int = 0
    """How many more times it is seen per epoch."""


@dataclass(frozen=True, kw_only=True)
class ClipRecord(Record):
    """A clip: `target` is its video, `references` its start frame if there is a set of them."""

    clip: Clip
    video: VideoInfo
    """What it is taken from."""
    is_i2v: bool
    """Learns to go on from its first frame: that of `references`, or its own."""

    @property
    def shape(self) -> VideoBucket:
        """Clips of one shape can be batched."""
        return VideoBucket(*self.bucket, self.clip.frames)


@dataclass(frozen=True, kw_only=True)
class Source:
    """The folders that records came from."""

    targets: DatasetConfig
    references: DatasetConfig | None = None


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """What will be trained: of each source the records by resolution, then in the order of the names.

    Several resolutions make several records of one picture.
    """

    sources: tuple[Source, ...]
    records: tuple[Record, ...]
    warnings: tuple[str, ...] = ()
    """What is allowed but probably not meant."""
    faults: tuple[str, ...] = ()
    """What is wrong with files that are not among the records; nothing is trained before they are corrected."""
    found_by: str = ""
    """Who has shown the faults already, as people call it, such as a node; empty: nobody."""
