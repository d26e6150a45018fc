"""The text-encoder pass: each instruction, and the empty one, together with the reference it speaks of."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.records import Record
from ..errors import ConfigError
from ..loop.events import Callbacks
from ..models.family import Family, family_of
from ..models.handle import ModelHandle
from .handle import Cache, CacheReport
from .keys import hash_pictures, text_parts
from .store import Item, check_folders, fill, load_tensor

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def cache_text(
    cache: Cache, handle: ModelHandle, folder: Path, device: torch.device, callbacks: Callbacks
) -> tuple[Cache, CacheReport]:
    """Makes sure that every record's instruction, and the empty one with the same reference, have their embeddings
    on disk; the text encoder loads only if one is missing.

    Raises:
        ConfigError: `folder` is one of the latents' folders or lies among the data, or the cache is another family's.
        DataError: a reference cannot be read.
        ModelError: the model's folder is missing or of another family.
        CacheError: a file cannot be written.
        StoppedByUserError: asked to stop; finished files stay.
    """
    from ..models.components import open_text_encoder

    _check(cache, handle, folder)
    prompts, empty_prompts = _items(cache, handle, folder, callbacks)
    items = [item for pair in zip(prompts, empty_prompts, strict=True) for item in pair]
    report = fill("text", items, lambda: open_text_encoder(handle, device, callbacks), callbacks)
    records = tuple(
        replace(record, prompt_embeds=prompt.path, empty_prompt_embeds=empty.path)
        for record, prompt, empty in zip(cache.records, prompts, empty_prompts, strict=True)
    )
    return replace(cache, folders=replace(cache.folders, text=folder), records=records), report


def load_prompt_embeds(path: Path) -> Tensor:
    """prompt_embeds: [1, L, D], in the text encoder's dtype, of a file made by `cache_text`.

    Raises:
        CacheError: missing, truncated, or no such file.
    """
    return load_tensor(path, "prompt_embeds", "LongCatCacheText")


def _check(cache: Cache, handle: ModelHandle, folder: Path) -> None:
    if cache.model_family != handle.config.model_family:
        raise ConfigError(
            f"The cache holds latents of {cache.model_family}, the model is {handle.config.model_family}."
            " Wire the same model into CacheVAELatents and LongCatCacheText."
        )
    check_folders(
        cache.dataset,
        {
            "cache_dir_vae": cache.folders.targets,
            "reference_cache_dir_vae": cache.folders.references,
            "cache_dir_text": folder,
        },
    )


def _items(cache: Cache, handle: ModelHandle, folder: Path, callbacks: Callbacks) -> tuple[list[Item], list[Item]]:
    """Each record's instruction, and its empty instruction."""
    from ..models.components import compute_dtype
    from ..models.source import identity_of

    records = [cached.record for cached in cache.records]
    text_encoder = identity_of(handle, "text_encoder", callbacks)
    dtype = compute_dtype(handle)
    hashes = hash_pictures([path for record in records for path in record.references], callbacks)
    family = family_of(handle.config.model_family)
    # An instruction and its empty twin follow each other: their reference is read once.
    pixels_of = functools.lru_cache(maxsize=1)(_read_pixels)

    def item(record: Record, caption: str, label: str, source: str) -> Item:
        references = [hashes[picture] for picture in record.references]
        return Item(
            label=f"{record.name} {label}",
            source=source,
            folder=folder,
            tensor="prompt_embeds",
            parts=text_parts(handle.config, text_encoder, dtype, caption, references, record.bucket),
            encode=functools.partial(_encode, family, caption, record, pixels_of),
        )

    prompts = [item(r, r.caption, "instruction", f"instruction of {r.target}") for r in records]
    empty_prompts = [item(r, "", "empty instruction", f"empty instruction of {r.target}") for r in records]
    return prompts, empty_prompts


def _read_pixels(picture: Path, bucket: tuple[int, int]) -> Tensor:
    """pixels: [1, 3, H, W], -1..1, of a picture file cropped to `bucket`."""
    from ..data.media import read_image, to_pixels

    return to_pixels(read_image(picture), bucket)


def _encode(
    family: Family, caption: str, record: Record, pixels_of: Callable[..., Tensor], text_encoder: Any
) -> Tensor:
    """prompt_embeds: [1, L, D], in the text encoder's dtype."""
    references = [pixels_of(picture, record.bucket) for picture in record.references]
    return family.encode_prompt(text_encoder, caption, references)
