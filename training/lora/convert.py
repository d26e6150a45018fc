"""A LoRA from any layout into one of four, with the same effect."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, LoraFileError
from ..files import replacing_folder, write_json, write_safetensors
from .layouts import LAYOUTS, PEFT, LoraWeights, check_modules, tensors_in
from .scale import PEFT_CONFIG

if TYPE_CHECKING:
    from torch import Tensor


def convert_lora(path: Path, layout: str, destination: Path) -> Path:
    """Writes the LoRA `path` in `layout`; every module's change of weight stays the same.

    Args:
        path: a file or a folder that `read_lora` can read.
        layout: one of LAYOUTS.
        destination: a safetensors file, for the layout "peft" a folder; it must not exist.

    Returns:
        The safetensors file.

    Raises:
        ConfigError: no such layout, or there is something at `destination`.
        LoraFileError: the LoRA cannot be read, is not LongCat-Image's, or came back changed from the disk.
        OSError: the disk is full or the folder cannot be written.
    """
    from .file import METADATA_KEY, PEFT_WEIGHTS, read_lora, read_metadata

    if layout not in LAYOUTS:
        raise ConfigError(f"The layout is {layout!r}; it must be one of {', '.join(LAYOUTS)}.")
    if destination.exists():
        raise ConfigError(f"{destination} exists already and is left as it is. Choose another name.")
    weights = read_lora(path)
    check_modules(path, weights)
    tensors = tensors_in(layout, weights)
    kept = read_metadata(path)
    metadata = {METADATA_KEY: json.dumps(kept, sort_keys=True, ensure_ascii=False)} if kept else {}
    if layout != PEFT:
        write_safetensors(destination, tensors, metadata)
        _check_written(destination, tensors)
        return destination
    with replacing_folder(destination) as folder:
        write_safetensors(folder / PEFT_WEIGHTS, tensors, metadata)
        write_json(folder / PEFT_CONFIG, peft_config(weights))
        _check_written(folder / PEFT_WEIGHTS, tensors)
    return destination / PEFT_WEIGHTS


def free_destination(folder: Path, name: str, layout: str) -> Path:
    """The first of `name`, `name-2`, `name-3`, ... in `folder` that `convert_lora` may write to."""
    suffix = "" if layout == PEFT else ".safetensors"
    number, path = 1, folder / f"{name}{suffix}"
    while path.exists():
        number += 1
        path = folder / f"{name}-{number}{suffix}"
    return path


def peft_config(weights: Mapping[str, LoraWeights]) -> dict[str, Any]:
    """adapter_config.json for adapters without any further scale, so alpha is the rank.

    peft fills in what is missing with its own defaults.
    """
    ranks = {name: pair.a.shape[0] for name, pair in weights.items()}
    usual = Counter(ranks.values()).most_common(1)[0][0]
    # Anchored: peft takes the end of a name for the name, and `proj_out` ends several.
    others = {f"^{re.escape(name)}": rank for name, rank in sorted(ranks.items()) if rank != usual}
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": "|".join(re.escape(name) for name in sorted(ranks)),
        "bias": "none",
    }


def _check_written(path: Path, tensors: Mapping[str, Tensor]) -> None:
    import torch
    from safetensors.torch import load_file

    found = load_file(path)
    if found.keys() != tensors.keys() or any(not torch.equal(found[key], tensors[key]) for key in tensors):
        raise LoraFileError(
            f"{path} was read back with other weights than were written. The disk may be failing; choose another"
            " folder."
        )
