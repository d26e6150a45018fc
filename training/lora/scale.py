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
from .families import DOTTED_PREFIXES, PEFT_PREFIX

PEFT_WEIGHTS = "adapter_model.safetensors"
PEFT_CONFIG = "adapter_config.json"
"""Names of the two files in a folder that peft saves."""
DIFFUSERS_METADATA = "lora_adapter_metadata"
REMEDY = "Copy the file again."


@dataclass(frozen=True, kw_only=True)
class AdapterSettings:
    """A peft LoraConfig, as far as it says what the adapter computes."""

    origin: str
    """Where it stands, for messages."""
    rank: int
    alpha: float
    rank_pattern: Mapping[str, float]
    alpha_pattern: Mapping[str, float]
    rank_stabilised: bool
    """use_rslora: the scale is alpha / sqrt(rank)."""

    def scale(self, module: str, rank: int) -> float:
        """The factor of the product B A of `module`, named as in the file.

        Raises:
            LoraFileError: the settings are of another file, or a pattern of theirs is no regular expression.
        """
        from peft.utils.other import get_pattern_key

        name = module.removeprefix(next((prefix for prefix in DOTTED_PREFIXES if module.startswith(prefix)), ""))
        try:
            given = self.rank_pattern.get(get_pattern_key(list(self.rank_pattern), name), self.rank)
            alpha = self.alpha_pattern.get(get_pattern_key(list(self.alpha_pattern), name), self.alpha)
        except re.error as error:
            raise LoraFileError(f"{self.origin} holds a faulty pattern ({error}). Copy it again.") from error
        if given != rank:
            raise LoraFileError(
                f"{self.origin} gives {module} the rank {given}, but its tensors have {rank}: it belongs to another"
                " LoRA. Put the two files of a LoRA into a folder of their own."
            )
        return alpha / (math.sqrt(rank) if self.rank_stabilised else rank)


def find_settings(path: Path, keys: Iterable[str], metadata: Mapping[str, str]) -> AdapterSettings | None:
    """The settings of the LoRA file `path` that are not in its tensors; None if there are none.

    Raises:
        LoraFileError: they are unreadable, or of an adapter that is no plain LoRA.
    """
    beside = path.parent / PEFT_CONFIG
    if any(key.startswith(PEFT_PREFIX) for key in keys) and beside.is_file():
        return _settings(read_json(beside, LoraFileError, REMEDY), str(beside))
    text = metadata.get(DIFFUSERS_METADATA)
    origin = f"{DIFFUSERS_METADATA} of {path}"
    return _settings(parse_json(text, origin, LoraFileError, REMEDY), origin) if text else None


def _settings(values: Mapping[str, Any], origin: str) -> AdapterSettings:
    # SimpleTuner and diffusers' pipelines write `transformer.r`, diffusers' models `r`.
    values = {key.removeprefix("transformer."): value for key, value in values.items()}
    kind = values.get("peft_type") or "LORA"
    if kind != "LORA" or values.get("use_dora"):
        name = "DoRA" if kind == "LORA" else kind
        raise LoraFileError(f"{origin} says that this is a {name} adapter; only plain LoRA is read. Train one.")
    rank, alpha = values.get("r"), values.get("lora_alpha")
    if not (_is_number(rank) and _is_number(alpha)):
        raise LoraFileError(
            f"{origin} has r {rank!r} and lora_alpha {alpha!r}; both must be numbers, as the strength of the LoRA"
            " depends on them. Copy the file again, or add what the LoRA was trained with."
        )
    return AdapterSettings(
        origin=origin,
        rank=int(rank),
        alpha=float(alpha),
        rank_pattern=_pattern(values, "rank_pattern", origin),
        alpha_pattern=_pattern(values, "alpha_pattern", origin),
        rank_stabilised=bool(values.get("use_rslora")),
    )


def _pattern(values: Mapping[str, Any], name: str, origin: str) -> dict[str, float]:
    pattern = values.get(name) or {}
    if not isinstance(pattern, dict) or not all(_is_number(value) for value in pattern.values()):
        raise LoraFileError(
            f"{origin} has the {name} {pattern!r}; it must give numbers by module. Copy the file again."
        )
    return pattern


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
