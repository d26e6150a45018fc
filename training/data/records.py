"""What the stages hand on about the data: names and paths, never pixels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..config import DatasetConfig


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
    """(width, height) in px that target and reference are each cropped to."""


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """The outcome of PairDatasets: what will be trained, in the order of the names."""

    targets: DatasetConfig
    references: DatasetConfig | None = None
    records: tuple[Record, ...]
