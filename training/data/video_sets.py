"""A folder of videos, with or without start frames, becomes a training set. Faults are reported all at once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from ..errors import DataError
from ..settings.dataset import DatasetConfig
from .captions import missing_faults, nameless_warnings, read_captions, several_warnings
from .clips import Clip, choose_clips, exact_rate
from .folder import (
    PictureFolder,
    duplicate_faults,
    folder_faults,
    listed,
    only_sound,
    read_pictures,
    reading_warnings,
    scan,
    scan_folder,
    shown,
    without_partner,
)
from .leftovers import empty_faults, leftover_warnings
from .records import ClipRecord, Record, Source, TrainingSet, records_of
from .video_files import VideoInfo, is_video, probe_video

LARGEST_ASPECT_ERROR = 1.02
"""Between the aspects of a clip and its start frame; more than that, and the crop shows another part."""


def survey_videos(config: DatasetConfig, start_frames: DatasetConfig | None = None) -> TrainingSet:
    """The clips of a captioned folder of videos, each with the start frame of its stem.

    Without `start_frames` a clip's own first frame starts it, which its latents hold already: the VAE is causal, so
    that the first latent frame is that of the first frame alone.

    Args:
        config: dataset_type "video"; instance_data_dir is an absolute path and holds video files, and folders of
            pictures as videos.
        start_frames: dataset_type "conditioning"; a folder of pictures, which get bucket and crop of their clips.

    Returns:
        the clips that are sound, and what is wrong with the other files in `faults`.
    """
    sources = (Source(targets=config, references=start_frames),)
    faults = _setting_faults(config, start_frames)
    if faults:
        return TrainingSet(sources=sources, records=(), faults=tuple(faults))
    folder = scan_video_folder(config)
    if not folder.pictures:
        faults = empty_faults(folder, "videos, and no sub-folders of pictures")
        return TrainingSet(sources=sources, records=(), faults=tuple(faults))
    captions = read_captions(folder)
    infos, chosen, faults = _read_clips(folder)
    missing = [name for name in folder.names if name not in captions.by_name]
    faults = [
        *duplicate_faults(folder.role, folder.path, folder.duplicates),
        *captions.faults,
        *missing_faults(folder, captions, missing),
        *faults,
    ]
    starts, start_faults, warnings = _read_start_frames(folder, infos, start_frames)
    faults = [*faults, *start_faults]
    sizes = {name: info.size for name, info in infos.items()}
    known = (sizes,) if start_frames is None else (sizes, starts or {})
    usable = only_sound(folder, captions.by_name, *known) if faults else folder
    records = records_of(usable, sizes, captions.by_name, starts)
    return TrainingSet(
        sources=sources,
        records=tuple(
            _with_clip(record, clip, infos[record.name], config.is_i2v)
            for record in records
            for clip in chosen[record.name]
        ),
        warnings=(
            *nameless_warnings(folder),
            *several_warnings(folder, captions),
            *_rate_warnings(folder, infos),
            *reading_warnings(folder, {name: info.reading for name, info in infos.items()}),
            *leftover_warnings(folder, captions.files, config.caption_strategy),
            *warnings,
        ),
        faults=tuple(faults),
    )


def scan_video_folder(config: DatasetConfig) -> PictureFolder:
    """Lists the folder; opens no file. Its `pictures` are videos: files, and sub-folders that hold pictures.

    Raises:
        OSError: there is no such folder, or it cannot be read.
    """
    return scan("videos", config, is_video)


def _setting_faults(config: DatasetConfig, start_frames: DatasetConfig | None) -> list[str]:
    faults = folder_faults("videos", config, "video")
    if start_frames is not None:
        faults += folder_faults("start frames", start_frames, "conditioning")
    if config.caption_strategy == "none":
        faults.append(
            f"Dataset {config.id!r} has caption_strategy 'none'; videos to learn need captions. Choose textfile,"
            " filename, instanceprompt, json or csv."
        )
    if start_frames is None or faults:
        return faults
    if config.clip_extraction != "first":
        faults.append(
            f"There are start frames (dataset {start_frames.id!r}), and the clips are taken with clip_extraction"
            f" {config.clip_extraction!r}; a start frame shows where its video begins. Choose first, or connect no"
            " start frames: then each clip starts with its own first frame."
        )
    if os.path.samefile(config.instance_data_dir, start_frames.instance_data_dir):
        faults.append(
            f"Videos and start frames are the same folder, {config.instance_data_dir}. Put the start frames into a"
            " folder of their own, under the same names."
        )
    return faults


def _read_clips(folder: PictureFolder) -> tuple[dict[str, VideoInfo], dict[str, tuple[Clip, ...]], list[str]]:
    """By stem what each video is and its clips, and the faults."""
    config = folder.config
    infos, clips, broken, short = {}, {}, [], []
    for name in folder.names:
        path = folder.pictures[name]
        try:
            infos[name] = info = probe_video(path)
        except DataError as error:
            broken.append(str(error))
            continue
        clips[name] = choose_clips(info, config, f"{config.id} {name}")
        if not clips[name]:
            short.append(f"{path.name} ({info.frames_at(exact_rate(config.fps))} of {config.least_frames})")
    faults = listed(f"{len(broken)} of {len(folder.pictures)} videos cannot be read", broken)
    if short:
        fewer = "; or choose bucket_strategy resolution_frames with fewer min_frames"
        faults.append(
            f"{len(short)} of {len(folder.pictures)} videos are too short, in frames at {config.fps:g} per"
            f" second: {shown(short)}. Remove them, or lower num_frames{fewer}."
        )
    return infos, clips, faults


def _read_start_frames(
    folder: PictureFolder, infos: Mapping[str, VideoInfo], config: DatasetConfig | None
) -> tuple[dict[str, Path] | None, list[str], list[str]]:
    """(start frame by stem or None without a set, faults, warnings)"""
    if config is None:
        return None, [], []
    frames = scan_folder("start frames", config)
    faults = empty_faults(frames, "pictures")
    if faults:
        return None, faults, []
    faults = duplicate_faults(frames.role, frames.path, frames.duplicates)
    unmatched = [*without_partner(folder, frames), *without_partner(frames, folder)]
    if unmatched:
        unmatched[-1] += (
            f"\n    Looked in {folder.path} for videos and in {frames.path} for pictures. Rename, add or remove files"
            " until each video has its start frame."
        )
    pictures, size_faults = read_pictures(frames)
    sizes = {name: info.size for name, info in pictures.items()}
    odd = [
        f"{frames.pictures[name].name} ({size[0]}x{size[1]}, video {infos[name].size[0]}x{infos[name].size[1]})"
        for name, size in sizes.items()
        if name in infos and _aspect_error(size, infos[name].size) > LARGEST_ASPECT_ERROR
    ]
    warning = (
        f"{len(odd)} of {len(sizes)} start frames have another aspect than their videos, so that the crop shows another"
        f" part: {shown(odd)}. Cut them from the videos' first frames."
    )
    readable = {name: path for name, path in frames.pictures.items() if name in sizes}
    warnings = [
        *([warning] if odd else []),
        *reading_warnings(frames, {name: info.reading for name, info in pictures.items()}),
        *leftover_warnings(frames, (), "none"),
    ]
    return readable, [*faults, *unmatched, *size_faults], warnings


def _aspect_error(size: tuple[int, int], other: tuple[int, int]) -> float:
    ratio = size[0] * other[1] / (size[1] * other[0])
    return max(ratio, 1 / ratio)


def _rate_warnings(folder: PictureFolder, infos: Mapping[str, VideoInfo]) -> list[str]:
    slow = [
        f"{folder.pictures[name].name} ({float(info.fps):.2f})"
        for name, info in infos.items()
        # A rate that is rounded in the container is no slower one.
        if info.fps is not None and info.fps < 0.95 * folder.config.fps
    ]
    if not slow:
        return []
    return [
        f"{len(slow)} of {len(infos)} videos have fewer frames per second than the {folder.config.fps:g} that are"
        f" trained, so frames of theirs occur twice in a clip: {shown(slow)}. Remove them, or lower fps."
    ]


def _with_clip(record: Record, clip: Clip, video: VideoInfo, is_i2v: bool) -> ClipRecord:
    return ClipRecord(
        name=record.name,
        target=record.target,
        references=record.references,
        caption=record.caption,
        bucket=record.bucket,
        crop=record.crop,
        more_captions=record.more_captions,
        repeats=record.repeats,
        clip=clip,
        video=video,
        is_i2v=is_i2v or bool(record.references),
    )
