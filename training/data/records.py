"""What the stages pass on about the data: names and paths, never pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DataError
from ..files import sha256_of_json
from ..settings.dataset import DatasetConfig
from ..settings.geometry import Size
from .buckets import VideoBucket, bucket_choices, nearest_bucket

if TYPE_CHECKING:
    from .clips import Clip
    from .folder import PictureFolder
    from .video_files import VideoInfo

CROP_STEPS = 1000
"""A random crop's place is one of this many, so that it has a short exact name."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One training sample: for an edit the target, its reference and the instruction."""

    name: str
    """What target, reference and caption file share: the stem, after the sub-folders on the way to it."""
    target: Path
    references: tuple[Path, ...] = ()
    """At most one is used by the released models."""
    caption: str
    more_captions: tuple[str, ...] = ()
    """Others of the same picture: each time that it is seen, one of all is drawn."""
    bucket: tuple[int, int]
    """(width, height) in px that target and reference are each resized to cover, and cropped to."""
    crop: tuple[float, float] = (0.5, 0.5)
    """Shares of what is cropped off that fall to the left and to the top, of target and reference alike."""
    repeats: int = 0
    """How many more times it is seen per epoch."""

    @property
    def captions(self) -> tuple[str, ...]:
        return self.caption, *self.more_captions


@dataclass(frozen=True, kw_only=True)
class ClipRecord(Record):
    """A clip: `target` is its video, `references` its start frame if there is a set of them."""

    clip: Clip
    video: VideoInfo
    """What it is taken from."""
    is_i2v: bool
    """Learns to continue its first frame: that of `references`, or its own."""

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


def records_of(
    folder: PictureFolder,
    sizes: Mapping[str, Size],
    captions: Mapping[str, Sequence[str]],
    references: Mapping[str, Path] | None = None,
) -> tuple[Record, ...]:
    """A record for each picture of `folder` and each of its resolutions; all mappings are by name."""
    config = folder.config
    records = []
    for choices in bucket_choices(config):
        for name in folder.names:
            record = Record(
                name=name,
                target=folder.pictures[name],
                references=(references[name],) if references else (),
                caption=captions[name][0],
                more_captions=tuple(captions[name][1:]),
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
