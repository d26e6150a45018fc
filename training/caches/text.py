"""The text-encoder pass: each instruction, and the empty one, together with the reference it speaks of.

For text-to-image and for clips the same without a reference: all captions then share one empty one.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.media import read_image, to_pixels
from ..data.records import Record
from ..errors import ConfigError
from ..events import Callbacks
from ..models.contract import Family
from ..models.registry import family_of
from ..models.training_data import check_training_data
from ..weights.components import compute_dtype, open_text_encoder
from ..weights.devices import choose_dtype
from ..weights.source import identity_of
from ..weights.spec import ModelSpec
from .cache import Cache, CacheReport
from .keys import hash_pictures, text_parts
from .store import Item, check_folders, fill, load_tensor


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A text to be encoded, with the pictures it speaks of."""

    name: str
    kind: str
    """With the name for reports, e.g. "017" and "instruction"."""
    origin: str
    """Where it comes from; with the kind it names a text, so that a changed one is no new one."""
    caption: str
    """May be empty."""
    references: tuple[Path, ...] = ()
    bucket: tuple[int, int]
    """(width, height) in px of the picture, which references are cropped to."""
    crop: tuple[float, float] = (0.5, 0.5)
    """`Record.crop`"""


def prompt_of(record: Record, kind: str, caption: str) -> Prompt:
    """`caption` about the references of `record`."""
    return Prompt(
        name=record.name,
        kind=kind,
        origin=str(record.target),
        caption=caption,
        references=record.references,
        bucket=record.bucket,
        crop=record.crop,
    )


def cache_text(
    cache: Cache, spec: ModelSpec, folder: Path, device: torch.device, callbacks: Callbacks
) -> tuple[Cache, CacheReport]:
    """Makes sure that every record's instructions, and the empty one with the same reference, have their embeddings
    on disk; the text encoder loads only if one is missing.

    Raises:
        ConfigError: `folder` is one of the latents' folders or lies among the data, or the cache is another family's,
            or its records are not of the model's kind.
        DataError: a reference cannot be read.
        ModelError: the model's folder is missing or of another family.
        CacheError: a file cannot be written.
        StoppedByUserError: asked to stop; finished files stay.
    """
    _check(cache, spec, folder)
    # An instruction and its empty twin follow each other: their reference is read once.
    prompts = [_prompts_of(cached.record) for cached in cache.records]
    paths, report = cache_prompts([prompt for each in prompts for prompt in each], spec, folder, device, callbacks)
    made = iter(paths)
    records = []
    for record, each in zip(cache.records, prompts, strict=True):
        prompt, empty, *more = itertools.islice(made, len(each))
        records.append(replace(record, prompt_embeds=prompt, empty_prompt_embeds=empty, more_prompt_embeds=tuple(more)))
    return replace(cache, folders=replace(cache.folders, text=folder), records=tuple(records)), report


def cache_prompts(
    prompts: Sequence[Prompt], spec: ModelSpec, folder: Path, device: torch.device, callbacks: Callbacks
) -> tuple[list[Path], CacheReport]:
    """The file of each prompt's embeddings; equal prompts share one, and only missing ones are encoded.

    Raises:
        DataError, ModelError, CacheError, StoppedByUserError: as `cache_text`.
    """

    if not family_of(spec.config.model_family).reads_references:
        prompts = [replace(prompt, references=()) for prompt in prompts]
    items = _items(prompts, spec, folder, device, callbacks)
    report = fill("text", items, lambda: open_text_encoder(spec, device, callbacks), callbacks)
    return [item.path for item in items], report


def load_prompt_embeds(path: Path) -> Tensor:
    """prompt_embeds: [1, L, D], in the text encoder's dtype, of a file made by `cache_text`.

    Raises:
        CacheError: missing, truncated, or no such file.
    """
    return load_tensor(path, "prompt_embeds", "Cache Text")


def _check(cache: Cache, spec: ModelSpec, folder: Path) -> None:
    if cache.model_family != spec.config.model_family:
        raise ConfigError(
            f"The cache holds latents of {cache.model_family}, the model is {spec.config.model_family}."
            " Wire the same model into Cache VAE Latents and Cache Text."
        )
    check_training_data(spec.config, [cached.record for cached in cache.records])
    check_folders(
        cache.dataset,
        {
            "cache_dir_vae": cache.folders.targets,
            "reference_cache_dir_vae": cache.folders.references,
            "cache_dir_text": folder,
        },
    )


def _prompts_of(record: Record) -> list[Prompt]:
    """The first caption, the empty one, and the others."""
    kind = "instruction" if record.references else "caption"
    prompts = [prompt_of(record, kind, record.caption), prompt_of(record, f"empty {kind}", "")]
    more = enumerate(record.more_captions, 2)
    return prompts + [prompt_of(record, f"{kind} {number}", caption) for number, caption in more]


def _items(
    prompts: Sequence[Prompt], spec: ModelSpec, folder: Path, device: torch.device, callbacks: Callbacks
) -> list[Item]:
    text_encoder = identity_of(spec, "text_encoder", callbacks)
    dtypes = compute_dtype(spec), choose_dtype(device, spec.config.base_model_precision)[0]
    hashes = hash_pictures([path for prompt in prompts for path in prompt.references], callbacks)
    family = family_of(spec.config.model_family)
    pixels_of = functools.lru_cache(maxsize=1)(_read_pixels)

    def item(prompt: Prompt) -> Item:
        references = [hashes[picture] for picture in prompt.references]
        return Item(
            label=f"{prompt.name} {prompt.kind}",
            source=f"{prompt.kind} of {prompt.origin}",
            folder=folder,
            tensor="prompt_embeds",
            parts=text_parts(spec.config, text_encoder, dtypes, prompt.caption, references, prompt.bucket, prompt.crop),
            encode=functools.partial(_encode, family, prompt, pixels_of),
        )

    return [item(prompt) for prompt in prompts]


def _read_pixels(picture: Path, bucket: tuple[int, int], crop: tuple[float, float]) -> Tensor:
    """pixels: [1, 3, H, W], -1..1, of a picture file cropped to `bucket`."""

    return to_pixels(read_image(picture), bucket, crop)


def _encode(family: Family, prompt: Prompt, pixels_of: Callable[..., Tensor], text_encoder: Any) -> Tensor:
    """prompt_embeds: [1, L, D], in the text encoder's dtype."""
    references = [pixels_of(picture, prompt.bucket, prompt.crop) for picture in prompt.references]
    return family.encode_prompt(text_encoder, prompt.caption, references)
