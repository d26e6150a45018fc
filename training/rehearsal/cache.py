"""The twin's cache, and the real data that it stands for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..caches.cache import Cache, CacheFolders
from ..data.records import TrainingSet


@dataclass(frozen=True, kw_only=True)
class RealData:
    """What the real run would cache, and where."""

    dataset: TrainingSet
    """All of it at full size; its `faults` are those of files, captions and cache folders."""
    folders: CacheFolders


@dataclass(frozen=True, kw_only=True)
class RehearsedCache(Cache):
    """Some of the user's data, small, encoded by the twin."""

    PURPOSE: ClassVar[str] = "a rehearsal"

    real: RealData
