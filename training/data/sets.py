"""Datasets become training sets: a captioned folder, the records of one folder, and several sets in one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..config import DatasetConfig
from ..errors import DataError
from ..files import sha256_of_json
from ..sizes import Size
from .buckets import bucket_choices, nearest_bucket
from .captions import missing_faults, nameless_warnings, read_captions
from .folder import (
    PictureFolder,
    duplicate_faults,
    empty_faults,
    folder_faults,
    only_sound,
    read_sizes,
    refuse,
    scan_folder,
)
from .records import ClipRecord, Record, Source, TrainingSet
from .video_buckets import VideoBucket
from .video_files import VideoInfo

HEADLINE = "The folder cannot be used"

CROP_STEPS = 1000
"""A random crop's place is one of this many, so that it has a short exact name."""


def scan_dataset(config: DatasetConfig) -> TrainingSet:
    """One captioned folder, of pictures for text-to-image or of videos.

    Args:
        config: dataset_type "image" or "video", any caption_strategy but none; instance_data_dir is an absolute path.

    Raises:
        DataError: lists everything that is wrong, with counts, names and remedies.
    """
    if config.dataset_type == "video":
        # Here, as it makes use of this module.
        from .video_sets import scan_videos

        return scan_videos(config)
    found = survey_dataset(config)
    refuse(HEADLINE, found.faults)
    return found


def survey_dataset(config: DatasetConfig) -> TrainingSet:
    """As `scan_dataset`, but with the files that are sound, and what is wrong with the others in `faults`."""
    if config.dataset_type == "video":
        from .video_sets import survey_videos

        return survey_videos(config)
    sources = (Source(targets=config),)
    faults = folder_faults("pictures", config, "image")
    if config.caption_strategy == "none":
        faults.append(
            f"Dataset {config.id!r} has caption_strategy 'none'; pictures to learn need captions. Choose textfile,"
            " filename, instanceprompt, json or csv."
        )
    if faults:
        return TrainingSet(sources=sources, records=(), faults=tuple(faults))
    folder = scan_folder("pictures", config)
    if not folder.pictures:
        return TrainingSet(sources=sources, records=(), faults=tuple(empty_faults(folder)))
    captions = read_captions(folder)
    sizes, size_faults = read_sizes(folder)
    faults = duplicate_faults(folder.role, folder.path, folder.duplicates)
    missing = [name for name in folder.names if name not in captions.by_name]
    faults += [*captions.faults, *missing_faults(folder, captions, missing), *size_faults]
    usable = only_sound(folder, captions.by_name, sizes) if faults else folder
    return TrainingSet(
        sources=sources,
        records=records_of(usable, sizes, captions.by_name),
        warnings=tuple(nameless_warnings(folder)),
        faults=tuple(faults),
    )


def training_set_of(given: TrainingSet | DatasetConfig) -> TrainingSet:
    """What PairDatasets or LongCatDataset gave, as a training set.

    Raises:
        DataError: as `scan_dataset`; or it was made in a rehearsal, which goes on with faults.
    """
    if not isinstance(given, TrainingSet):
        return scan_dataset(given)
    refuse("The data cannot be used", given.faults)
    return given


def join_sets(sets: Sequence[TrainingSet]) -> TrainingSet:
    """All records of `sets`, in their order.

    Raises:
        DataError: two datasets have one id.
    """
    joined = TrainingSet(
        sources=tuple(source for each in sets for source in each.sources),
        records=tuple(record for each in sets for record in each.records),
        warnings=tuple(warning for each in sets for warning in each.warnings),
        faults=tuple(fault for each in sets for fault in each.faults),
    )
    counts = Counter(source.targets.id for source in joined.sources)
    twice = [repr(name) for name, count in counts.items() if count > 1]
    if twice:
        raise DataError(
            f"{len(twice)} dataset ids occur more than once: {', '.join(twice)}. Give every LongCatDataset an id of its"
            " own; to see pictures more often, raise repeats."
        )
    return joined


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


def describe(dataset: TrainingSet) -> str:
    """For reports: how many records, in which buckets, what videos they come from, and the warnings."""
    records = dataset.records
    clips = [record for record in records if isinstance(record, ClipRecord)]
    shapes = Counter(record.shape if isinstance(record, ClipRecord) else record.bucket for record in records)
    names = len({record.target for record in records})
    at = f" of {names} files" if names < len(records) else ""
    seen = sum(1 + record.repeats for record in records)
    often = f", {seen} samples an epoch with their repeats" if seen > len(records) else ""
    what = f"{len(records)} {_kind_of(records, clips)}{at}"
    lines = [f"{what} in {len(shapes)} bucket{'s' if len(shapes) > 1 else ''}{often}:"]
    lines += [f"  {_shape_text(shape)}: {count}" for shape, count in sorted(shapes.items())]
    lines += _about_videos(clips)
    lines += [f"Warning: {warning}" for warning in dataset.warnings]
    lines += [f"Fault: {fault}" for fault in dataset.faults]
    return "\n".join(lines)


def _shape_text(shape: Size | VideoBucket) -> str:
    return str(shape) if isinstance(shape, VideoBucket) else f"{shape[0]}x{shape[1]}"


def _kind_of(records: Sequence[Record], clips: Sequence[ClipRecord]) -> str:
    if clips:
        return "clips" if len(clips) == len(records) else "clips and pictures"
    return "pairs" if all(record.references for record in records) else "pictures"


def _about_videos(clips: Sequence[ClipRecord]) -> list[str]:
    """Their own rates and lengths, and what is made of them."""
    if not clips:
        return []
    videos = {clip.target: clip.video for clip in clips}
    rates = Counter(_rate_text(video) for video in videos.values())
    lengths = sorted(video.frames for video in videos.values())
    taken = ", ".join(f"{fps:g}" for fps in sorted({clip.clip.fps for clip in clips}))
    own = ", ".join(f"{count} {rate}" for rate, count in sorted(rates.items()))
    long = f"{lengths[0]} frames" if lengths[0] == lengths[-1] else f"{lengths[0]} to {lengths[-1]} frames"
    lines = [f"Videos: {own}; {long}. Clips are taken at {taken} per second."]
    from_set = sum(bool(clip.references) for clip in clips)
    from_own = sum(clip.is_i2v for clip in clips) - from_set
    if from_set:
        lines.append(f"Image-to-video: {from_set} clips go on from a start frame of the other folder.")
    if from_own:
        lines.append(f"Image-to-video: {from_own} clips go on from their own first frame.")
    return lines


def _rate_text(video: VideoInfo) -> str:
    return "of single pictures" if video.fps is None else f"at {float(round(video.fps, 2)):g} frames per second"


def _crop_of(config: DatasetConfig, name: str) -> tuple[float, float]:
    if config.crop_style == "center":
        return (0.5, 0.5)
    if config.crop_style == "corner":
        return (0.0, 0.0)
    if config.crop_style == "random":
        digest = int(sha256_of_json({"dataset": config.id, "name": name}), 16)
        return (digest % CROP_STEPS / CROP_STEPS, digest // CROP_STEPS % CROP_STEPS / CROP_STEPS)
    raise DataError(f"crop_style is {config.crop_style!r}; it must be center, corner or random.")
