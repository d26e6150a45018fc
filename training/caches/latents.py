"""The VAE pass: each target and reference picture, and each clip and start frame, becomes one file of latents."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.clips import Clip, read_clip
from ..data.media import read_image, to_pixels
from ..data.records import ClipRecord, Record, TrainingSet
from ..events import Callbacks, WarningRaised
from ..models.contract import Family
from ..models.registry import family_of
from ..models.training_data import check_training_data
from ..weights.components import open_vae
from ..weights.source import identity_of
from ..weights.spec import ModelSpec
from .cache import Cache, CachedRecord, CacheFolders, CacheReport
from .keys import clip_parts, hash_pictures, latents_parts
from .store import Item, check_folders, fill, load_tensor


def cache_latents(
    dataset: TrainingSet, spec: ModelSpec, folders: CacheFolders, device: torch.device, callbacks: Callbacks
) -> tuple[Cache, CacheReport]:
    """Makes sure that every picture or clip of `dataset` has its latents on disk; the VAE loads only if one is missing.

    Target and reference are each cover-resized and cropped into the record's bucket, by the same share. Encoding
    takes the mode of the VAE's distribution, so it draws no random numbers. A start frame's latents are those of a clip
    of one frame.

    Raises:
        ConfigError: the two folders are one, or one lies among the data, or the records are not of the model's kind.
        DataError: a picture cannot be read.
        ModelError: the model's folder is missing or of another family.
        CacheError: a file cannot be written.
        StoppedByUserError: asked to stop; finished files stay.
    """

    check_training_data(spec.config, dataset.records)
    check_folders(dataset, {"cache_dir_vae": folders.targets, "reference_cache_dir_vae": folders.references})
    for warning in dataset.warnings:
        callbacks.on_event(WarningRaised(message=warning))
    vae = identity_of(spec, "vae", callbacks)
    pictures = [path for record in dataset.records for path in (record.target, *record.references)]
    videos = {record.target for record in dataset.records if isinstance(record, ClipRecord)}
    hashes = hash_pictures(pictures, callbacks, videos)
    family = family_of(spec.config.model_family)

    def item(kind: str, record: Record, folder: Path, picture: Path) -> Item:
        clip = record.clip if isinstance(record, ClipRecord) and picture == record.target else None
        place = f", from frame {clip.start} on" if clip else ""
        return Item(
            label=f"{record.name} {kind}{place}",
            source=f"{picture}{place}",
            folder=folder,
            tensor="latents",
            parts=latents_parts(family.name, vae, hashes[picture], record.bucket, record.crop) | clip_parts(clip),
            encode=functools.partial(_encode, family, picture, record, clip),
        )

    targets = [item("target", r, folders.targets, r.target) for r in dataset.records]
    references = [
        [item("reference", r, folders.references, picture) for picture in r.references] for r in dataset.records
    ]
    items = [each for target, refs in zip(targets, references, strict=True) for each in (target, *refs)]
    report = fill("latents", items, lambda: open_vae(spec, device, callbacks), callbacks)
    records = tuple(
        CachedRecord(record=record, latents=target.path, cond_latents=tuple(ref.path for ref in refs))
        for record, target, refs in zip(dataset.records, targets, references, strict=True)
    )
    return Cache(model_family=family.name, dataset=dataset, folders=folders, records=records), replace(
        report, warnings=dataset.warnings
    )


def load_latents(path: Path) -> Tensor:
    """latents: [1, C, h, w] or [1, C, T, h, w], float32, of a file made by `cache_latents`.

    Raises:
        CacheError: missing, truncated, or no such file.
    """
    return load_tensor(path, "latents", "Cache VAE Latents")


def _encode(family: Family, picture: Path, record: Record, clip: Clip | None, vae: Any) -> Tensor:
    """latents: [1, C, h, w] or [1, C, T, h, w], float32, of a picture or a clip cropped as `record` says."""

    if clip is not None:
        pixels = read_clip(picture, clip.start, clip.frames, clip.fps, record.bucket, record.crop)
        return family.encode_pixels(vae, pixels)
    return family.encode_pixels(vae, to_pixels(read_image(picture), record.bucket, record.crop))
