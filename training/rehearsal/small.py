"""The user's data as the twin learns them: few of them, small, with short captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from ..caches.store import tracked
from ..data.buckets import buckets, nearest_bucket
from ..data.clips import iterate_pictures
from ..data.media import read_image
from ..data.records import ClipRecord, Record, TrainingSet
from ..data.sets import without_files
from ..errors import ConfigError, DataError
from ..events import Callbacks
from ..models.training_data import check_training_data
from ..settings.geometry import PIXELS_PER_TOKEN
from ..settings.model import ModelConfig
from .scale import FRAMES, LONGEST_PROMPT, SIDE

PICTURES = 32
"""So many records run through the twin, some of every bucket; all are looked at."""

CLIPS = 6
"""The same of clips; and so many are decoded from their first frame to their last."""

T = TypeVar("T")


def only_readable(found: TrainingSet, callbacks: Callbacks) -> TrainingSet:
    """`found` without the records of pictures and clips that cannot be decoded; these become faults.

    Scanning a folder reads the heads of its files only. Here every picture is read as the VAE stage will read it, and
    the first `CLIPS` clips.

    Raises:
        StoppedByUserError: `callbacks.should_stop()`.
    """
    reasons: dict[Path, str] = {}
    pictures = [path for record in found.records for path in _pictures_of(record)]
    for path in tracked(list(dict.fromkeys(pictures)), "reading pictures", callbacks):
        try:
            read_image(path)
        except DataError as error:
            reasons[path] = str(error)
    clips = [record for record in found.records if isinstance(record, ClipRecord)]
    for record in tracked(clips[:CLIPS], "reading clips", callbacks):
        try:
            _read_clip(record)
        except DataError as error:
            reasons[record.target] = str(error)
    return without_files(found, reasons)


def small_set(real: TrainingSet, model: ModelConfig) -> TrainingSet:
    """Records of `real` for the twin `model`: those of its kind, some of every bucket, each at the twin's size.

    Buckets of different aspects stay different ones, as far as so small sizes can.
    """
    fitting = [record for record in real.records if _fits(model, record)]
    limit = CLIPS if any(isinstance(record, ClipRecord) for record in fitting) else PICTURES
    chosen = _some_of_each(fitting, [_shape(record) for record in fitting])[:limit]
    # Several resolutions of one picture become one.
    small = tuple(dict.fromkeys(_small(record) for record in chosen))
    return replace(real, records=small, warnings=(), faults=())


def _fits(model: ModelConfig, record: Record) -> bool:
    try:
        check_training_data(model, [record])
    except ConfigError:
        return False
    return True


def _some_of_each(items: Sequence[T], kinds: Sequence[object]) -> list[T]:
    """All items; first one of each kind, then a second one of each, and so on."""
    places: dict[object, int] = {}
    rounds = []
    for kind in kinds:
        places[kind] = places.get(kind, -1) + 1
        rounds.append(places[kind])
    return [items[index] for index in sorted(range(len(items)), key=lambda index: rounds[index])]


def _small(record: Record) -> Record:
    bucket = nearest_bucket(*record.bucket, buckets(SIDE, PIXELS_PER_TOKEN))
    caption, *more = (caption[:LONGEST_PROMPT].strip() for caption in record.captions)
    small = replace(record, bucket=bucket, caption=caption, more_captions=tuple(more))
    if isinstance(small, ClipRecord):
        return replace(small, clip=replace(small.clip, frames=min(small.clip.frames, FRAMES)))
    return small


def _shape(record: Record) -> object:
    return record.shape if isinstance(record, ClipRecord) else record.bucket


def _pictures_of(record: Record) -> tuple[Path, ...]:
    return record.references if isinstance(record, ClipRecord) else (record.target, *record.references)


def _read_clip(record: ClipRecord) -> None:
    clip = record.clip
    for _ in iterate_pictures(record.target, clip.start, clip.frames, clip.fps):
        pass
