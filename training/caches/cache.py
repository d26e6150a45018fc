"""The cache as nodes pass it on: which file holds what, never tensors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ..data.records import ClipRecord, Record, TrainingSet
from ..files import sha256_of_json


@dataclass(frozen=True, kw_only=True)
class CachedRecord:
    """One record and its cache files; file names are content hashes, so equal names mean equal contents."""

    record: Record
    latents: Path
    cond_latents: tuple[Path, ...] = ()
    prompt_embeds: Path | None = None
    """None until the text stage has run."""
    empty_prompt_embeds: Path | None = None
    """The empty instruction with the same reference: for caption dropout and guidance."""
    more_prompt_embeds: tuple[Path, ...] = ()
    """Of `Record.more_captions`."""


@dataclass(frozen=True, kw_only=True)
class CacheFolders:
    """Where the cache files live: never inside a dataset folder, targets and references apart."""

    targets: Path
    references: Path
    text: Path | None = None
    """None until the text stage has run."""


@dataclass(frozen=True, kw_only=True)
class Cache:
    """What CacheVAELatents and LongCatCacheText return; the trainer's data."""

    PURPOSE: ClassVar[str] = "the real run"
    """What it can be used for."""

    model_family: str
    dataset: TrainingSet
    folders: CacheFolders
    records: tuple[CachedRecord, ...]

    @property
    def has_text(self) -> bool:
        return all(r.prompt_embeds is not None and r.empty_prompt_embeds is not None for r in self.records)

    def fingerprint(self) -> str:
        """Hash of the contents (not of the paths) and of what decides their order and number."""
        return sha256_of_json(
            {
                "family": self.model_family,
                "records": [
                    {
                        "name": r.record.name,
                        "bucket": list(r.record.bucket),
                        "repeats": r.record.repeats,
                        # Only of clips, so that those of pictures stay what they were.
                        **({"is_i2v": r.record.is_i2v} if isinstance(r.record, ClipRecord) else {}),
                        # Only of several, for the same reason.
                        **({"more captions": [p.stem for p in r.more_prompt_embeds]} if r.more_prompt_embeds else {}),
                        "files": [
                            path.stem if path else None
                            for path in (r.latents, *r.cond_latents, r.prompt_embeds, r.empty_prompt_embeds)
                        ],
                    }
                    for r in self.records
                ],
            }
        )


@dataclass(frozen=True, kw_only=True)
class CacheReport:
    """What a cache stage did."""

    stage: str
    reused: int
    encoded: tuple[tuple[str, str], ...]
    """(name, why) of each item that was encoded, e.g. ("017 target", "new or changed picture")."""
    warnings: tuple[str, ...] = ()
    """Of the data."""

    def text(self) -> str:
        """For the node's report output: counts, one line per encoded item, and the warnings."""
        lines = [f"{self.stage}: {self.reused} reused, {len(self.encoded)} encoded."]
        lines += [f"  {name}: {why}" for name, why in self.encoded]
        lines += [f"Warning: {warning}" for warning in self.warnings]
        return "\n".join(lines)
