"""Which records make up batch number n, and their tensors.

Legend of shapes: B batch, C channels, T latent frames, h w latent height and width, L text tokens, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..caches.cache import Cache, CachedRecord
from ..caches.latents import load_latents
from ..caches.store import tensor_shape
from ..caches.text import load_prompt_embeds
from ..data.records import ClipRecord
from ..errors import CacheError, DataError
from ..files import sha256_of_json
from ..settings.geometry import Size

Kind = tuple[Size, int, int, int, bool]
"""Bucket, number of references, length L of prompt_embeds, frames (0 for a picture), whether the first one is given:
what the records of a batch have in common."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Samples of one bucket, on the CPU."""

    latents: Tensor
    """[B, C, h, w], of clips [B, C, T, h, w]; float32, normalised"""
    cond_latents: tuple[Tensor, ...]
    """Each [B, C, h, w], a clip's start [B, C, 1, h, w]; float32, normalised; empty without references."""
    prompt_embeds: Tensor
    """[B, L, D], in the text encoder's dtype"""
    empty_prompt_embeds: Tensor
    """[B, L, D], in the text encoder's dtype; the empty instruction with the same reference"""
    bucket: tuple[int, int]
    """(width, height) px"""
    names: tuple[str, ...]


class BatchOrder:
    """The endless sequence of batches, as a pure function of seed and number: resuming needs only the number.

    Every epoch holds each record once, and its own `repeats` times more; it is shuffled by its own generator, cut into
    batches of one kind (the last one of a kind may be smaller), and the batches are shuffled again. Of one kind are
    records of equal bucket, number of references and length of prompt: an edit's prompt holds a token for every patch
    of its reference, and shorter ones are never padded. Clips also have equal numbers of frames. Of a record with
    several captions one is drawn each time.
    """

    def __init__(self, cache: Cache, batch_size: int, seed: int) -> None:
        """
        Raises:
            DataError: the cache holds no record.
            CacheError: `batch_size` is above 1, and a prompt's file is missing or damaged.
        """
        if not cache.records:
            raise DataError("The cache holds no record; there is nothing to train on. Check the folders of the data.")
        kinds = [(_kind_of(cached, batch_size), cached) for cached in cache.records]
        self._records = tuple(each for each in kinds for _ in range(1 + each[1].record.repeats))
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = 0
        self._batches = self._batches_of(0)

    @property
    def batches_per_epoch(self) -> int:
        return len(self._batches)

    def batch(self, number: int) -> tuple[CachedRecord, ...]:
        """Records of batch `number`, from 0 on, without end; 1 to `batch_size` records of one kind."""
        epoch, place = divmod(number, self.batches_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._batches_of(epoch)
        return self._batches[place]

    def _batches_of(self, epoch: int) -> list[tuple[CachedRecord, ...]]:
        state = int(sha256_of_json({"seed": self._seed, "epoch": epoch})[:15], 16)
        generator = torch.Generator().manual_seed(state)
        groups: dict[Kind, list[CachedRecord]] = {}
        for place in torch.randperm(len(self._records), generator=generator).tolist():
            kind, cached = self._records[place]
            groups.setdefault(kind, []).append(self._with_one_caption(cached, epoch, place))
        batches = [
            tuple(group[start : start + self._batch_size])
            for group in groups.values()
            for start in range(0, len(group), self._batch_size)
        ]
        return [batches[place] for place in torch.randperm(len(batches), generator=generator).tolist()]

    def _with_one_caption(self, cached: CachedRecord, epoch: int, place: int) -> CachedRecord:
        if not cached.more_prompt_embeds:
            return cached
        choices = (cached.prompt_embeds, *cached.more_prompt_embeds)
        drawn = int(sha256_of_json({"seed": self._seed, "epoch": epoch, "caption of": place}), 16) % len(choices)
        return replace(cached, prompt_embeds=choices[drawn])


def load_batch(records: Sequence[CachedRecord]) -> Batch:
    """Reads the tensors of `records`, one or more of one kind, from their cache files.

    Raises:
        CacheError: a file is missing or damaged, tensors of unequal shape, or the text stage has not run.
    """
    latents = _stack([record.latents for record in records], load_latents)
    return Batch(
        latents=latents,
        cond_latents=_cond_latents_of(records, latents),
        prompt_embeds=_stack(_text_paths(records, "prompt_embeds"), load_prompt_embeds),
        empty_prompt_embeds=_stack(_text_paths(records, "empty_prompt_embeds"), load_prompt_embeds),
        bucket=records[0].record.bucket,
        names=tuple(record.record.name for record in records),
    )


def _kind_of(cached: CachedRecord, batch_size: int) -> Kind:
    # A batch of one fits itself: its file need not be opened.
    alone = batch_size == 1 or cached.prompt_embeds is None
    length = 0 if alone else tensor_shape(cached.prompt_embeds, "prompt_embeds", "Cache Text")[1]
    frames, start = (
        (cached.record.clip.frames, cached.record.is_i2v) if isinstance(cached.record, ClipRecord) else (0, False)
    )
    return cached.record.bucket, len(cached.cond_latents), length, frames, start


def _cond_latents_of(records: Sequence[CachedRecord], latents: Tensor) -> tuple[Tensor, ...]:
    files = zip(*(record.cond_latents for record in records), strict=True)
    loaded = tuple(_stack(paths, load_latents) for paths in files)
    if not loaded and isinstance(records[0].record, ClipRecord) and records[0].record.is_i2v:
        # The VAE is causal: a clip's first latent frame is that of its first frame alone.
        return (latents[:, :, :1].clone(),)
    return loaded


def _stack(paths: Sequence[Path], load: Callable[[Path], Tensor]) -> Tensor:
    """[1, ...] of each file -> [B, ...]; never pads, because the model would see the padding."""
    tensors = [load(path) for path in paths]
    for path, tensor in zip(paths, tensors, strict=True):
        if (tensor.shape, tensor.dtype) != (tensors[0].shape, tensors[0].dtype):
            raise CacheError(
                f"Two cache files of one batch do not fit together: {paths[0]} is {_described(tensors[0])},"
                f" {path} is {_described(tensor)}. Run Cache VAE Latents and Cache Text again with one model"
                " for all of them, or train with train_batch_size 1."
            )
    # Copies even a single tensor: the files' mappings may change or go, the batch does not.
    return torch.cat(tensors)


def _text_paths(records: Sequence[CachedRecord], field: str) -> list[Path]:
    paths = [getattr(record, field) for record in records]
    if None in paths:
        name = records[paths.index(None)].record.name
        raise CacheError(f"{name} has no cached instruction: put Cache Text between Cache VAE Latents and Train LoRA.")
    return paths


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
