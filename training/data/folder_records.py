"""From the files of a folder to records: bucket, crop and repeats of each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..errors import DataError
from ..files import sha256_of_json
from ..settings.dataset import DatasetConfig
from ..settings.geometry import Size
from .buckets import bucket_choices, nearest_bucket
from .folder import PictureFolder
from .records import Record

CROP_STEPS = 1000
"""A random crop's place is one of this many, so that it has a short exact name."""


def records_of(
    folder: PictureFolder,
    sizes: Mapping[str, Size],
    captions: Mapping[str, str],
    references: Mapping[str, Path] | None = None,
) -> tuple[Record, ...]:
    """A record for each picture of `folder` and each of its resolutions; all mappings are by stem."""
    config = folder.config
    records = []
    for choices in bucket_choices(config):
        for name in folder.names:
            record = Record(
                name=name,
                target=folder.pictures[name],
                references=(references[name],) if references else (),
                caption=captions[name],
                bucket=nearest_bucket(*sizes[name], choices),
                crop=_crop_of(config, name),
                repeats=config.repeats,
            )
            records.append(record)
    # Small resolutions may share a bucket: the same record twice would be a hidden repeat.
    return tuple(dict.fromkeys(records))


def _crop_of(config: DatasetConfig, name: str) -> tuple[float, float]:
    if config.crop_style == "center":
        return (0.5, 0.5)
    if config.crop_style == "corner":
        return (0.0, 0.0)
    if config.crop_style == "random":
        digest = int(sha256_of_json({"dataset": config.id, "name": name}), 16)
        return (digest % CROP_STEPS / CROP_STEPS, digest // CROP_STEPS % CROP_STEPS / CROP_STEPS)
    raise DataError(f"crop_style is {config.crop_style!r}; it must be center, corner or random.")
