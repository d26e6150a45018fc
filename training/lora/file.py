"""LoRA files: one writer for checkpoints and results, and the reader that puts any layout on a model.

What the trainer writes: `transformer.<diffusers module>.lora_A.weight` [r, in] and `.lora_B.weight` [out, r], with the
scale alpha / rank multiplied into B. It is the one layout that ComfyUI, diffusers and SimpleTuner all load with the
same result. The tensors stay float32, as trained: the file is small beside the model, and what is sampled with it
equals the trainer's own previews to the bit.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import LoraFileError
from ..files import write_safetensors
from .inject import TRAINED_ADAPTER, add_adapter, lora_layers
from .layouts import (
    OTHER_ADAPTERS,
    PEFT_PREFIX,
    PORTABLE,
    SOME_MODULES,
    LoraWeights,
    examples,
    find_layer,
    split_key,
    tensors_in,
    to_diffusers,
    without_prefix,
)
from .scale import PEFT_CONFIG, PEFT_WEIGHTS, AdapterSettings, find_settings

METADATA_KEY = "longcat"
"""One entry for all settings: safetensors writes several in random order, and equal LoRAs shall be equal files."""


def save_lora(path: Path, transformer: nn.Module, metadata: Mapping[str, str]) -> None:
    """Writes the trained adapter of `transformer`, reads the file back and compares it with the model.

    Args:
        metadata: settings worth keeping with the file; without time stamps and machine paths, so that equal runs
            write equal files.

    Raises:
        LoraFileError: the file does not hold what the model holds.
        OSError: the disk is full or the folder cannot be written.
    """
    tensors = tensors_in(PORTABLE, _trained_weights(transformer))
    write_safetensors(path, tensors, {METADATA_KEY: json.dumps(dict(metadata), sort_keys=True, ensure_ascii=False)})
    check_lora(path, transformer)


def check_lora(path: Path, transformer: nn.Module) -> None:
    """Compares a LoRA file with the trained adapter of `transformer`, bit for bit.

    Raises:
        LoraFileError: they differ, or the file cannot be read.
    """
    expected = _trained_weights(transformer)
    found = read_lora(path)
    if found.keys() != expected.keys():
        raise LoraFileError(
            f"{path} was read back with other modules than the model has: {examples(found.keys() ^ expected.keys())}."
            " Report this: the trainer and the file format disagree."
        )
    unequal = [n for n, e in expected.items() if not (torch.equal(found[n].a, e.a) and torch.equal(found[n].b, e.b))]
    if unequal:
        raise LoraFileError(
            f"{path} was read back with other weights than the model has, in {len(unequal)} of {len(expected)} modules:"
            f" {examples(unequal)}. The disk may be failing; choose another output folder."
        )


def read_lora(path: Path) -> dict[str, LoraWeights]:
    """The adapters of a LoRA by diffusers module name, from any layout of layouts.py, scales multiplied into B.

    Args:
        path: a safetensors file, or a folder that peft has saved.

    Raises:
        LoraFileError: missing, truncated, no plain LoRA, of an unknown layout, or its scale cannot be known.
    """
    file = path / PEFT_WEIGHTS if path.is_dir() else path
    tensors, metadata = _load(file)
    settings = find_settings(file, tensors, metadata)
    weights: dict[str, LoraWeights] = {}
    for module, part in _parts(file, tensors).items():
        found = _by_diffusers_name(file, module, _scaled(file, module, part, settings))
        twice = weights.keys() & found.keys()
        if twice:
            raise LoraFileError(
                f"{file} holds {examples(twice)} twice, the second time as {module}; which one is meant cannot be told."
                " Remove one of them, or train the LoRA again."
            )
        weights.update(found)
    return weights


def read_metadata(path: Path) -> dict[str, str]:
    """The settings that `save_lora` wrote; empty for files of other programs.

    Raises:
        LoraFileError: missing or truncated.
    """
    _, metadata = _load(path / PEFT_WEIGHTS if path.is_dir() else path, only_metadata=True)
    try:
        return json.loads(metadata.get(METADATA_KEY, "{}"))
    except ValueError as error:
        raise LoraFileError(f"{path} cannot be read as a LoRA: {error}. Download or train it again.") from error


def apply_lora(transformer: nn.Module, path: Path, strength: float, adapter_name: str) -> None:
    """Puts a LoRA file on `transformer` as the frozen adapter `adapter_name`, beside those already there.

    Nothing is merged into the weights, so the base may be quantised. Ranks may differ between modules.

    Raises:
        LoraFileError: the file cannot be read, or any of its modules has no linear of the same name and shape.
    """
    from peft import LoraConfig

    weights = read_lora(path)
    _check_fits(transformer, weights, path)
    # Anchored: peft would take the rank of `proj_out` for every name that ends like it.
    ranks = {f"^{re.escape(name)}": pair.a.shape[0] for name, pair in weights.items()}
    config = LoraConfig(
        target_modules="|".join(ranks),  # peft takes one string as a regular expression for the full name
        rank_pattern=ranks,
        alpha_pattern=dict(ranks),
    )
    add_adapter(transformer, config, adapter_name)
    for name, layer in lora_layers(transformer, adapter_name).items():
        layer.set_scale(adapter_name, strength)
        _set_frozen(layer.lora_A[adapter_name], weights[name].a)
        _set_frozen(layer.lora_B[adapter_name], weights[name].b)


def _trained_weights(transformer: nn.Module) -> dict[str, LoraWeights]:
    return {
        name: LoraWeights(
            a=layer.lora_A[TRAINED_ADAPTER].weight.detach().cpu(),
            b=(layer.lora_B[TRAINED_ADAPTER].weight.detach() * layer.scaling[TRAINED_ADAPTER]).cpu(),
        )
        for name, layer in lora_layers(transformer, TRAINED_ADAPTER).items()
    }


def _load(path: Path, only_metadata: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            names = () if only_metadata else file.keys()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise LoraFileError(f"{path} cannot be read as a LoRA: {error}. Download or train it again.") from error


def _parts(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Module as named in the file -> its tensors by the names a, b and alpha."""
    for mark, kind in OTHER_ADAPTERS.items():
        marked = [key for key in tensors if mark in key]
        if marked:
            raise LoraFileError(
                f"{path} is {kind}, not a plain LoRA: it has {examples(marked)}. Only plain LoRAs are read; train one"
                " (LyCORIS calls it algo lora)."
            )
    parts: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for key, tensor in tensors.items():
        split = split_key(key)
        if split is None or not _has_name(split[0]) or split[1] in parts.get(split[0], {}):
            unknown.append(key)
        else:
            parts.setdefault(split[0], {})[split[1]] = tensor
    if unknown:
        raise LoraFileError(
            f"{path} has {len(unknown)} keys of a layout that is not read here. In the file: {examples(unknown)};"
            f" expected, for example: transformer.{SOME_MODULES[0]}.lora_A.weight."
            " The LoRA was made for another model or by a program that is not known here."
        )
    incomplete = [name for name, part in parts.items() if not {"a", "b"} <= part.keys()]
    if incomplete or not parts:
        raise LoraFileError(
            f"{path} is no complete LoRA: {examples(incomplete) or 'no module'} has both lora_A and lora_B missing or"
            " alone. Download or train it again."
        )
    return parts


def _has_name(module: str) -> bool:
    return find_layer(module) is not None or without_prefix(module) is not None


def _scaled(path: Path, module: str, part: Mapping[str, Tensor], settings: AdapterSettings | None) -> LoraWeights:
    a, b = part["a"].float(), part["b"].float()
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or not a.shape[0]:
        raise LoraFileError(
            f"{path}: lora_A {list(a.shape)} and lora_B {list(b.shape)} of {module} do not fit each other."
            " They must be [rank, in] and [out, rank]. Download or train it again."
        )
    rank = a.shape[0]
    if "alpha" in part:
        scale = part["alpha"].item() / rank if part["alpha"].numel() == 1 else math.nan
    elif settings is not None:
        scale = settings.scale(module, rank)
    elif module.startswith(PEFT_PREFIX):
        raise LoraFileError(
            f"{path} has peft's names but no {PEFT_CONFIG} beside it, so its strength (lora_alpha / r) is unknown."
            f" Put {PEFT_CONFIG} of the same training into the same folder."
        )
    else:
        scale = 1.0
    if not math.isfinite(scale):
        raise LoraFileError(f"{path}: alpha of {module} is {part['alpha']}; it must be one number. Train it again.")
    return LoraWeights(a=a, b=b if scale == 1 else b * scale)


def _by_diffusers_name(path: Path, module: str, weights: LoraWeights) -> dict[str, LoraWeights]:
    layer = find_layer(module)
    if layer is None:
        return {without_prefix(module) or module: weights}
    try:
        return to_diffusers(layer, weights)
    except ValueError as error:
        raise LoraFileError(
            f"{path}: {error}, for an input of {weights.a.shape[1]}. The LoRA was made for another model."
        ) from error


def _check_fits(transformer: nn.Module, weights: Mapping[str, LoraWeights], path: Path) -> None:
    linears = {name: module for name, module in transformer.named_modules() if hasattr(module, "in_features") and name}
    unmatched = [name for name in weights if name not in linears]
    if unmatched:
        near = difflib.get_close_matches(unmatched[0], _without_adapters(linears), n=3, cutoff=0.0)
        raise LoraFileError(
            f"{len(unmatched)} of {len(weights)} modules of {path} match nothing in the model."
            f" In the file: {examples(unmatched)}; in the model: {examples(near)}."
            " The LoRA was made for another model, or its keys must be converted first."
        )
    for name, pair in weights.items():
        shape = (pair.b.shape[0], pair.a.shape[1])
        wanted = (linears[name].out_features, linears[name].in_features)
        if shape != wanted:
            raise LoraFileError(
                f"{path} was made for another model: {name} is {shape[1]} -> {shape[0]} there and"
                f" {wanted[1]} -> {wanted[0]} in the model. Choose a LoRA of this model family."
            )


def _without_adapters(names: Iterable[str]) -> list[str]:
    return [name for name in names if ".lora_" not in name and not name.endswith(".base_layer")]


def _set_frozen(linear: nn.Module, weight: Tensor) -> None:
    # A clone: tensors that safetensors has read may share memory with the file.
    linear.weight = nn.Parameter(weight.to(linear.weight.device, copy=True), requires_grad=False)
