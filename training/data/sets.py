"""Datasets become training sets: one folder, two that are paired, and several sets in one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import DataError
from ..settings.dataset import DatasetConfig
from ..settings.geometry import Size
from .buckets import VideoBucket
from .folder import listed, refuse
from .picture_sets import survey_picture_pairs, survey_pictures
from .records import ClipRecord, Record, TrainingSet
from .video_files import VideoInfo
from .video_sets import survey_videos


def survey_dataset(config: DatasetConfig) -> TrainingSet:
    """One captioned folder, of pictures for text-to-image or of videos.

    Args:
        config: dataset_type "image" or "video", any caption_strategy but none; instance_data_dir is an absolute path.

    Returns:
        what is sound, and what is wrong with the other files in `faults`.
    """
    return survey_videos(config) if config.dataset_type == "video" else survey_pictures(config)


def survey_pairs(targets: DatasetConfig, references: DatasetConfig) -> TrainingSet:
    """Targets and references matched by name: pictures with pictures, videos with their start frames.

    Args:
        targets: dataset_type "image" or "video"; instance_data_dir is an absolute path.
        references: dataset_type "conditioning"; instance_data_dir is an absolute path.

    Returns:
        the pairs that are sound, and what is wrong with the others in `faults`.
    """
    return (
        survey_videos(targets, references)
        if targets.dataset_type == "video"
        else survey_picture_pairs(targets, references)
    )


def scan_dataset(config: DatasetConfig) -> TrainingSet:
    """As `survey_dataset`.

    Raises:
        DataError: lists everything that is wrong, with counts, names and remedies.
    """
    found = survey_dataset(config)
    refuse("The videos cannot be used" if config.dataset_type == "video" else "The folder cannot be used", found.faults)
    return found


def pair_datasets(targets: DatasetConfig, references: DatasetConfig) -> TrainingSet:
    """As `survey_pairs`.

    Raises:
        DataError: lists everything that is wrong, with counts, names and remedies.
    """
    found = survey_pairs(targets, references)
    videos = targets.dataset_type == "video"
    refuse("The videos cannot be used" if videos else "The two folders cannot be paired", found.faults)
    return found


def training_set_of(given: TrainingSet | DatasetConfig) -> TrainingSet:
    """What Pair Datasets or LongCat Dataset gave, as a training set: with its faults."""
    return given if isinstance(given, TrainingSet) else survey_dataset(given)


def refuse_faults(found: TrainingSet) -> None:
    """
    Raises:
        DataError: `found` has faults; lists all of them, and who found them.
    """
    refuse("The data cannot be used", found.faults, found.found_by)


def without_files(found: TrainingSet, reasons: Mapping[Path, str]) -> TrainingSet:
    """`found` without the records of files that cannot be decoded; these become a fault.

    Args:
        reasons: why, by file.
    """
    files = {path for record in found.records for path in (record.target, *record.references)}
    faults = listed(f"{len(reasons)} of {len(files)} files cannot be decoded", list(reasons.values()))
    sound = [record for record in found.records if not reasons.keys() & {record.target, *record.references}]
    return replace(found, records=tuple(sound), faults=(*found.faults, *faults))


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
        found_by=", ".join(dict.fromkeys(each.found_by for each in sets if each.found_by)),
    )
    counts = Counter(source.targets.id for source in joined.sources)
    twice = [repr(name) for name, count in counts.items() if count > 1]
    if twice:
        raise DataError(
            f"{len(twice)} dataset ids occur more than once: {', '.join(twice)}. Give every LongCat Dataset an id"
            " of its own; to see pictures more often, raise repeats."
        )
    return joined


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
        lines.append(f"Image-to-video: {from_set} clips continue a start frame of the other folder.")
    if from_own:
        lines.append(f"Image-to-video: {from_own} clips continue their own first frame.")
    return lines


def _rate_text(video: VideoInfo) -> str:
    return "of single pictures" if video.fps is None else f"at {float(round(video.fps, 2)):g} frames per second"
