"""What may surprise in the data: pictures that are enlarged or cropped otherwise than their partner, long captions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from ..data.folder import shown
from ..data.media import image_size
from ..data.records import ClipRecord, Record
from ..models.image.prompt import whole_prompt
from ..models.video.prompt import clean_prompt
from ..settings.flavours import IMAGE_FAMILY
from ..settings.geometry import BUCKET_ALIGNMENT, PROMPT_SLOTS, Size
from ..weights.spec import ModelSpec
from .cache import RealData

ENLARGED = 1.05
"""A picture that is stretched by more is named, and each that is smaller than the smallest bucket."""

OTHER_ASPECT = 1.02
"""Between the aspects of a target and its reference; more than that, and the crop shows another part."""

LETTERS_PER_TOKEN = 4
"""Of Latin text, about; a Chinese character is counted as a token."""


def data_surprises(data: RealData, model: ModelSpec, tokenizer_folder: Path | None) -> list[str]:
    """One sentence each, with counts and the first names.

    Args:
        tokenizer_folder: the real model's; None: lengths of captions are guessed.
    """
    records = data.dataset.records
    sizes = _sizes_of(records)
    return [
        *data.dataset.warnings,
        *_enlarged(records, sizes),
        *_other_aspects(records, sizes),
        *_long_captions(records, model, tokenizer_folder),
    ]


def small_buckets(data: RealData, batch_size: int) -> list[str]:
    """Buckets that hold fewer samples than a batch: their batches are smaller ones."""
    counts: Counter[str] = Counter()
    for record in data.dataset.records:
        counts[_bucket_text(record)] += 1 + record.repeats
    few = [f"{bucket} ({count})" for bucket, count in sorted(counts.items()) if count < batch_size]
    if not few:
        return []
    return [
        f"{len(few)} of {len(counts)} buckets hold fewer samples than train_batch_size {batch_size}: {shown(few)}."
        " Their batches are smaller, and count as much as full ones."
    ]


def _sizes_of(records: Sequence[Record]) -> dict[Path, Size]:
    """(width, height) px of every picture and video."""
    sizes: dict[Path, Size] = {}
    for record in records:
        sizes[record.target] = record.video.size if isinstance(record, ClipRecord) else image_size(record.target)
        sizes |= {path: image_size(path) for path in record.references}
    return sizes


def _enlarged(records: Sequence[Record], sizes: dict[Path, Size]) -> list[str]:
    """The smallest are named first."""
    stretched: dict[Path, tuple[float, str]] = {}
    for record in records:
        for path in (record.target, *record.references):
            (width, height), (wide, high) = sizes[path], record.bucket
            factor = max(wide / width, high / height)
            if factor > ENLARGED or min(width, height) < BUCKET_ALIGNMENT:
                stretched[path] = (-factor, f"{path.parent.name}/{path.name} ({width}x{height} to {wide}x{high})")
    if not stretched:
        return []
    names = [text for _, text in sorted(stretched.values())]
    return [
        f"{len(stretched)} of {len(sizes)} files are smaller than the size they are trained at, and get enlarged:"
        f" {shown(names)}. Lower the resolution, or leave them out: the LoRA learns the blur."
    ]


def _other_aspects(records: Sequence[Record], sizes: dict[Path, Size]) -> list[str]:
    odd: dict[str, str] = {}
    for record in records:
        for path in () if isinstance(record, ClipRecord) else record.references:
            (width, height), (other_width, other_height) = sizes[record.target], sizes[path]
            ratio = width * other_height / (height * other_width)
            if max(ratio, 1 / ratio) > OTHER_ASPECT:
                odd[record.name] = f"{path.name} ({other_width}x{other_height}, target {width}x{height})"
    if not odd:
        return []
    count = len({record.name for record in records})
    return [
        f"{len(odd)} of {count} references have another aspect than their targets, so that the crop shows another part:"
        f" {shown(list(odd.values()))}. Bring both to one aspect."
    ]


def _long_captions(records: Sequence[Record], model: ModelSpec, tokenizer_folder: Path | None) -> list[str]:
    count = _counter(model, tokenizer_folder)
    lengths = {record.name: max(map(count, record.captions)) for record in records}
    long = [f"{name} ({tokens})" for name, tokens in lengths.items() if tokens > PROMPT_SLOTS]
    if not long:
        return []
    how = "have" if tokenizer_folder else "may have (the tokenizer is not here to count)"
    return [
        f"{len(long)} of {len(lengths)} captions {how} more than {PROMPT_SLOTS} tokens: {shown(long)}. The model reads"
        f" the first {PROMPT_SLOTS}; the rest is cut off. Shorten them."
    ]


def _counter(model: ModelSpec, folder: Path | None) -> Callable[[str], int]:
    if folder is None:
        return _guessed_tokens
    from ..weights.loading import load_tokenizer

    tokenizer = load_tokenizer(folder)
    if model.config.model_family == IMAGE_FAMILY:
        return lambda caption: len(whole_prompt(tokenizer, caption))
    return lambda caption: len(tokenizer(clean_prompt(caption), verbose=False)["input_ids"])


def _guessed_tokens(caption: str) -> int:
    wide = sum(ord(character) > 0x2E7F for character in caption)
    return wide + (len(caption) - wide) // LETTERS_PER_TOKEN


def _bucket_text(record: Record) -> str:
    return str(record.shape) if isinstance(record, ClipRecord) else f"{record.bucket[0]}x{record.bucket[1]}"
