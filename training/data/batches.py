"""Which records make up batch number n, and their tensors.

Legend of shapes: B batch, C channels, h w latent height and width, L text tokens, D embedding.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..caches.handle import Cache, CachedRecord
from ..caches.latents import load_latents
from ..caches.text import load_prompt_embeds
from ..errors import CacheError, DataError
from ..files import sha256_of_json

if TYPE_CHECKING:
    from torch import Tensor

KEPT_BYTES = 2**30
"""What a `BatchLoader` keeps in memory: some 80 samples of the released model at 768 px (latents 0.6 MB each,
embeddings 6 MB each); beyond that the system's own file cache serves."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Samples of one bucket, on the CPU."""

    latents: Tensor
    """[B, C, h, w], float32, normalised"""
    ref_latents: tuple[Tensor, ...]
    """Each [B, C, h, w], float32, normalised; empty without references."""
    prompt_embeds: Tensor
    """[B, L, D], in the text encoder's dtype"""
    empty_prompt_embeds: Tensor
    """[B, L, D], in the text encoder's dtype; the empty instruction with the same reference"""
    bucket: tuple[int, int]
    """(width, height) px"""
    names: tuple[str, ...]


class BatchOrder:
    """The endless sequence of batches, as a pure function of seed and number: resuming needs only the number.

    Every epoch holds each record once, and `repeats` times more; it is shuffled by its own generator, cut into
    batches of one bucket (the last one of a bucket may be smaller), and the batches are shuffled again.
    """

    def __init__(self, cache: Cache, batch_size: int, seed: int) -> None:
        """
        Raises:
            DataError: the cache holds no record.
        """
        if not cache.records:
            raise DataError("The cache holds no record; there is nothing to train on. Check the folders of the data.")
        self._records = cache.records * (1 + cache.dataset.targets.repeats)
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = 0
        self._batches = self._batches_of(0)

    @property
    def batches_per_epoch(self) -> int:
        return len(self._batches)

    def batch(self, number: int) -> tuple[CachedRecord, ...]:
        """Records of batch `number`, from 0 on, without end; 1 to `batch_size` records of one bucket."""
        epoch, place = divmod(number, self.batches_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._batches_of(epoch)
        return self._batches[place]

    def _batches_of(self, epoch: int) -> list[tuple[CachedRecord, ...]]:
        import torch

        state = int(sha256_of_json({"seed": self._seed, "epoch": epoch})[:15], 16)
        generator = torch.Generator().manual_seed(state)
        groups: dict[tuple, list[CachedRecord]] = {}
        for place in torch.randperm(len(self._records), generator=generator).tolist():
            record = self._records[place]
            groups.setdefault((record.record.bucket, len(record.ref_latents)), []).append(record)
        batches = [
            tuple(group[start : start + self._batch_size])
            for group in groups.values()
            for start in range(0, len(group), self._batch_size)
        ]
        return [batches[place] for place in torch.randperm(len(batches), generator=generator).tolist()]


class BatchLoader:
    """Loads batches and keeps the tensors read last in memory, up to `kept_bytes`."""

    def __init__(self, kept_bytes: int = KEPT_BYTES) -> None:
        self._kept_bytes = kept_bytes
        self._used_bytes = 0
        self._tensors: OrderedDict[Path, Tensor] = OrderedDict()

    def load(self, records: Sequence[CachedRecord]) -> Batch:
        """See `load_batch`."""
        references = zip(*(record.ref_latents for record in records), strict=True)
        return Batch(
            latents=self._stack([record.latents for record in records], load_latents),
            ref_latents=tuple(self._stack(paths, load_latents) for paths in references),
            prompt_embeds=self._stack(_text_paths(records, "prompt_embeds"), load_prompt_embeds),
            empty_prompt_embeds=self._stack(_text_paths(records, "empty_prompt_embeds"), load_prompt_embeds),
            bucket=records[0].record.bucket,
            names=tuple(record.record.name for record in records),
        )

    def _stack(self, paths: Sequence[Path], load: Callable[[Path], Tensor]) -> Tensor:
        """[1, ...] of each file -> [B, ...]; never pads, because padding would be seen by the model."""
        import torch

        tensors = [self._tensor(path, load) for path in paths]
        for path, tensor in zip(paths, tensors, strict=True):
            if (tensor.shape, tensor.dtype) != (tensors[0].shape, tensors[0].dtype):
                raise CacheError(
                    f"Two cache files of one batch do not fit together: {paths[0]} is {_described(tensors[0])},"
                    f" {path} is {_described(tensor)}. Run CacheVAELatents and LongCatCacheText again with one model"
                    " for all of them, or train with train_batch_size 1."
                )
        return torch.cat(tensors)

    def _tensor(self, path: Path, load: Callable[[Path], Tensor]) -> Tensor:
        tensor = self._tensors.pop(path, None)
        if tensor is None:
            # The clone is memory of our own: what the file's mapping holds could go with the file.
            tensor = load(path).clone()
            self._used_bytes += tensor.nbytes
        self._tensors[path] = tensor
        while self._used_bytes > self._kept_bytes and self._tensors:
            self._used_bytes -= self._tensors.popitem(last=False)[1].nbytes
        return tensor


def load_batch(records: Sequence[CachedRecord]) -> Batch:
    """Reads the tensors of `records`, one or more of one bucket, from their cache files.

    Raises:
        CacheError: a file is missing or damaged, tensors of unequal shape, or the text stage has not run.
    """
    return BatchLoader(kept_bytes=0).load(records)


def _text_paths(records: Sequence[CachedRecord], field: str) -> list[Path]:
    paths = [getattr(record, field) for record in records]
    if None in paths:
        name = records[paths.index(None)].record.name
        raise CacheError(
            f"{name} has no cached instruction: put LongCatCacheText between CacheVAELatents and TrainLoRA."
        )
    return paths


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
