"""How strongly an adapter of a file acts: alpha / rank, and where files of other programs keep alpha.

For each module the first of these counts; they are never multiplied:
1. its `.alpha` entry (kohya, LyCORIS, OneTrainer, SimpleTuner's comfyui format; FastVideo calls it `.lora_alpha`), or
   meituan-longcat's `.alpha_scale`, which is the scale itself;
2. `adapter_config.json` beside a file with peft's keys: peft cannot load such a file without it, and the official
   trainers' alpha (8 of rank 32) stands nowhere else, so its absence is an error, not a scale of 1;
3. the safetensors metadata `lora_adapter_metadata` (diffusers, SimpleTuner);
4. none: the scale is 1, as in our own files.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import LoraFileError
from ..files import parse_json, read_json
from .families import PEFT_MARK, without_wrappers

PEFT_WEIGHTS = "adapter_model.safetensors"
PEFT_CONFIG = "adapter_config.json"
"""Names of the two files in a folder that peft saves."""
DIFFUSERS_METADATA = "lora_adapter_metadata"
REMEDY = "Copy the file again."

_PLAIN_PATTERN = re.compile(r"(?P<start>\^?)(?P<name>(?:[A-Za-z0-9_-]|\\?\.|\\-)+)\$?")
"""A module's name or its end, as peft, diffusers and this pack write it; it may be escaped, or have `^` before it."""

LONGEST_PATTERN = 300
MOST_PATTERNS = 10_000
"""More than any model has linears."""


@dataclass(frozen=True)
class Pattern:
    """Numbers by module: peft's rank_pattern or alpha_pattern.

    peft runs its keys as regular expressions, of which one may take for ever; here they are names, compared as such.
    """

    whole: Mapping[str, tuple[int, float]]
    """Module -> place in the file, number."""
    ends: Mapping[str, tuple[int, float]]
    """End of a module's name, from one of its dots on -> the same."""

    def get(self, name: str, default: float) -> float:
        """The number of `name`: of several keys that fit the first counts, as peft has it."""
        parts = name.split(".")
        found = [self.whole[name]] if name in self.whole else []
        ends = (".".join(parts[start:]) for start in range(len(parts)))
        found += [self.ends[end] for end in ends if end in self.ends]
        return min(found)[1] if found else default


@dataclass(frozen=True, kw_only=True)
class AdapterSettings:
    """A peft LoraConfig, as far as it says what the adapter computes."""

    origin: str
    """Where it stands, for messages."""
    rank: float
    alpha: float
    rank_pattern: Pattern
    alpha_pattern: Pattern
    rank_stabilised: bool
    """use_rslora: the scale is alpha / sqrt(rank)."""

    def scale(self, module: str, rank: int) -> float:
        """The factor of the product B A of `module`, named as in the file.

        Raises:
            LoraFileError: the settings are of another file.
        """
        name = without_wrappers(module)
        given = self.rank_pattern.get(name, self.rank)
        if given != rank:
            raise LoraFileError(
                f"{self.origin} gives {module[:100]} the rank {given}, but its tensors have {rank}: it belongs to"
                " another LoRA. Put the two files of a LoRA into a folder of their own."
            )
        return self.alpha_pattern.get(name, self.alpha) / (math.sqrt(rank) if self.rank_stabilised else rank)


def find_settings(path: Path, keys: Iterable[str], metadata: Mapping[str, str]) -> AdapterSettings | None:
    """The settings of the LoRA file `path` that are not in its tensors; None if there are none.

    Raises:
        LoraFileError: they are unreadable, or of an adapter that is no plain LoRA.
    """
    beside = path.parent / PEFT_CONFIG
    # peft's own file name is enough: some programs save it without peft's prefix.
    if (path.name == PEFT_WEIGHTS or any(map(is_pefts, keys))) and beside.is_file():
        return _settings(read_json(beside, LoraFileError, REMEDY), str(beside))
    text = metadata.get(DIFFUSERS_METADATA)
    origin = f"{DIFFUSERS_METADATA} of {path}"
    return _settings(parse_json(text, origin, LoraFileError, REMEDY), origin) if text else None


def is_pefts(key: str) -> bool:
    """Whether a key of a file is of a model that peft has wrapped."""
    return PEFT_MARK in key.split(".")


def _settings(values: Mapping[str, Any], origin: str) -> AdapterSettings:
    # SimpleTuner and diffusers' pipelines write `transformer.r`, diffusers' models `r`.
    values = {key.removeprefix("transformer."): value for key, value in values.items()}
    kind = values.get("peft_type") or "LORA"
    if kind != "LORA" or values.get("use_dora"):
        name = "DoRA" if kind == "LORA" else str(kind)[:40]
        raise LoraFileError(f"{origin} says that this is a {name} adapter; only plain LoRA is read. Train one.")
    rank, alpha = values.get("r"), values.get("lora_alpha")
    if not (_is_number(rank) and _is_number(alpha)):
        raise LoraFileError(
            f"{origin} has r {str(rank)[:40]} and lora_alpha {str(alpha)[:40]}; both must be numbers, as the strength"
            " of the LoRA depends on them. Copy the file again, or add what the LoRA was trained with."
        )
    if type(values.get("use_rslora") or False) is not bool:
        raise LoraFileError(f"{origin} has use_rslora {str(values['use_rslora'])[:40]}; it must be true or false.")
    return AdapterSettings(
        origin=origin,
        rank=rank,
        alpha=float(alpha),
        rank_pattern=_pattern(values, "rank_pattern", origin),
        alpha_pattern=_pattern(values, "alpha_pattern", origin),
        rank_stabilised=bool(values.get("use_rslora")),
    )


def _pattern(values: Mapping[str, Any], key: str, origin: str) -> Pattern:
    given = values.get(key) or {}
    if not isinstance(given, dict) or not all(_is_number(value) for value in given.values()):
        raise LoraFileError(
            f"{origin} has the {key} {str(given)[:100]}; it must give numbers by module. Copy the file again."
        )
    if len(given) > MOST_PATTERNS:
        raise LoraFileError(f"{origin} has {len(given)} entries in {key}, more than a model has modules. {REMEDY}")
    whole: dict[str, tuple[int, float]] = {}
    ends: dict[str, tuple[int, float]] = {}
    for place, (pattern, number) in enumerate(given.items()):
        found = _PLAIN_PATTERN.fullmatch(pattern) if len(pattern) <= LONGEST_PATTERN else None
        if found is None:
            raise LoraFileError(
                f"{origin} has {pattern[:80]!r} in {key}, which is no module's name. Other regular expressions than"
                " names are not run, as one alone can stop the program. Write the modules' names there."
            )
        name = without_wrappers(found["name"].replace("\\", ""))
        (whole if found["start"] else ends).setdefault(name, (place, number))
    return Pattern(whole=whole, ends=ends)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
