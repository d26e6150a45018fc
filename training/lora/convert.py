"""A LoRA from any layout into one of its family's, with the same effect."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import ConfigError, LoraFileError
from ..files import read_json, replacing_folder, write_json, write_safetensors
from .families import LAYOUTS, PEFT
from .file import METADATA_KEY, read_lora, read_metadata
from .layouts import check_modules, tensors_in
from .regroup import LoraWeights
from .scale import PEFT_CONFIG, PEFT_WEIGHTS

ENDING = ".safetensors"


def convert_lora(path: Path, layout: str, destination: Path) -> Path:
    """Writes the LoRA `path` in `layout`; every module's change of weight stays the same.

    Args:
        path: a file or a folder that `read_lora` can read.
        layout: one of LAYOUTS that exists for the LoRA's family, which follows from its keys.
        destination: without ending; `.safetensors` is added, and "peft" makes a folder. What is there already is
            returned if it is this very conversion, else left alone, and `-2`, `-3`, ... added to the name.

    Returns:
        The safetensors file.

    Raises:
        ConfigError: no such layout, or not for this family.
        LoraFileError: the LoRA cannot be read, is of no family that is known here, or came back changed from the disk.
        OSError: the disk is full or the folder cannot be written.
    """
    if layout not in LAYOUTS:
        raise ConfigError(f"The layout is {layout!r}; it must be one of {', '.join(LAYOUTS)}.")
    weights = read_lora(path)
    family = check_modules(path, weights)
    if layout not in family.layouts:
        raise ConfigError(
            f"{path} is a LoRA of {family.title}, for which there is no layout {layout!r};"
            f" choose one of {', '.join(family.layouts)}."
        )
    try:
        tensors = tensors_in(family, layout, weights)
    except ValueError as error:
        raise LoraFileError(f"{path}: {error}. The LoRA was made for another model.") from error
    config = peft_config(weights) if layout == PEFT else None
    file = next(
        file
        for file in _places(layout, destination)
        if not _top(layout, file).exists() or _holds(file, tensors, config)
    )
    if file.exists():
        return file
    kept = read_metadata(path)
    metadata = {METADATA_KEY: json.dumps(kept, sort_keys=True, ensure_ascii=False)} if kept else {}
    if config is not None:
        with replacing_folder(file.parent) as folder:
            write_safetensors(folder / file.name, tensors, metadata)
            write_json(folder / PEFT_CONFIG, config)
    else:
        write_safetensors(file, tensors, metadata)
    if not _holds(file, tensors, config):
        raise LoraFileError(f"{file} was read back with other weights. The disk may be failing; choose another folder.")
    return file


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


def _places(layout: str, destination: Path) -> Iterator[Path]:
    for number in itertools.count(1):
        name = destination.name if number == 1 else f"{destination.name}-{number}"
        yield destination.with_name(name) / PEFT_WEIGHTS if layout == PEFT else destination.with_name(f"{name}{ENDING}")


def _top(layout: str, file: Path) -> Path:
    return file.parent if layout == PEFT else file


def _holds(file: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> bool:
    try:
        found = load_file(file)
        same = config is None or read_json(file.parent / PEFT_CONFIG, LoraFileError, "") == config
    except (OSError, SafetensorError, LoraFileError):
        return False
    return same and found.keys() == tensors.keys() and all(torch.equal(found[key], tensors[key]) for key in tensors)
