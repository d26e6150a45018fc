"""LoRA files: one writer for checkpoints and results, and the reader that puts them on a model.

Layout: `transformer.<diffusers module>.lora_A.weight` [r, in] and `.lora_B.weight` [out, r], with the scale
alpha / rank multiplied into B. It is the one layout that ComfyUI, diffusers and SimpleTuner all load with the same
result. The tensors stay float32, as trained: the file is small beside the model, and what is sampled with it equals
the trainer's own previews to the bit.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import LoraFileError
from ..files import write_safetensors
from .inject import TRAINED_ADAPTER, add_adapter, lora_layers

PREFIX = "transformer."
METADATA_KEY = "longcat"
"""One entry for all settings: safetensors writes several in random order, and equal LoRAs shall be equal files."""


@dataclass(frozen=True, kw_only=True)
class LoraWeights:
    """The adapter of one linear, float32 on the CPU, without any further scale."""

    a: Tensor
    """[r, in]"""
    b: Tensor
    """[out, r]"""


def save_lora(path: Path, transformer: nn.Module, metadata: Mapping[str, str]) -> None:
    """Writes the trained adapter of `transformer`, reads the file back and compares it with the model.

    Args:
        metadata: settings worth keeping with the file; without time stamps and machine paths, so that equal runs
            write equal files.

    Raises:
        LoraFileError: the file does not hold what the model holds.
        OSError: the disk is full or the folder cannot be written.
    """
    weights = _trained_weights(transformer)
    tensors = {}
    for name, pair in weights.items():
        tensors[f"{PREFIX}{name}.lora_A.weight"] = pair.a
        tensors[f"{PREFIX}{name}.lora_B.weight"] = pair.b
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
            f"{path} was read back with other modules than the model has: {_examples(found.keys() ^ expected.keys())}."
            " Report this: the trainer and the file format disagree."
        )
    unequal = [n for n, e in expected.items() if not (torch.equal(found[n].a, e.a) and torch.equal(found[n].b, e.b))]
    if unequal:
        raise LoraFileError(
            f"{path} was read back with other weights than the model has, in {len(unequal)} of {len(expected)} modules:"
            f" {_examples(unequal)}. The disk may be failing; choose another output folder."
        )


def read_lora(path: Path) -> dict[str, LoraWeights]:
    """The adapters of a LoRA file by diffusers module name.

    Keys may begin with `transformer.` or not; `.alpha` entries are multiplied into B.

    Raises:
        LoraFileError: missing, truncated, or of another layout.
    """
    parts = _read_parts(path)
    incomplete = [name for name, part in parts.items() if not {"lora_A.weight", "lora_B.weight"} <= part.keys()]
    if incomplete or not parts:
        raise LoraFileError(
            f"{path} is no complete LoRA: {_examples(incomplete) or 'no module'} has both lora_A and lora_B missing or"
            " alone. Download or train it again."
        )
    return {name: _weights(path, name, part) for name, part in parts.items()}


def read_metadata(path: Path) -> dict[str, str]:
    """The settings that `save_lora` wrote; empty for files of other programs.

    Raises:
        LoraFileError: missing or truncated.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return json.loads((file.metadata() or {}).get(METADATA_KEY, "{}"))
    except (OSError, SafetensorError, ValueError) as error:
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
    ranks = {re.escape(name): pair.a.shape[0] for name, pair in weights.items()}
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


def _read_parts(path: Path) -> dict[str, dict[str, Tensor]]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise LoraFileError(f"{path} cannot be read as a LoRA: {error}. Download or train it again.") from error
    parts: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for key, tensor in tensors.items():
        match = re.fullmatch(rf"(?:{re.escape(PREFIX)})?(.+)\.(lora_A\.weight|lora_B\.weight|alpha)", key)
        if match:
            parts.setdefault(match[1], {})[match[2]] = tensor
        else:
            unknown.append(key)
    if unknown:
        raise LoraFileError(
            f"{path} has {len(unknown)} keys of a layout that is not read here: {_examples(unknown)}."
            f" Expected {PREFIX}<module>.lora_A.weight and .lora_B.weight; convert the file first."
        )
    return parts


def _weights(path: Path, name: str, part: Mapping[str, Tensor]) -> LoraWeights:
    a, b = part["lora_A.weight"].float(), part["lora_B.weight"].float()
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
        raise LoraFileError(
            f"{path}: lora_A {list(a.shape)} and lora_B {list(b.shape)} of {name} do not fit each other."
            " They must be [rank, in] and [out, rank]. Download or train it again."
        )
    if "alpha" in part:
        b = b * (part["alpha"].item() / a.shape[0])
    return LoraWeights(a=a, b=b)


def _check_fits(transformer: nn.Module, weights: Mapping[str, LoraWeights], path: Path) -> None:
    linears = {name: module for name, module in transformer.named_modules() if hasattr(module, "in_features") and name}
    unmatched = [name for name in weights if name not in linears]
    if unmatched:
        near = difflib.get_close_matches(unmatched[0], _without_adapters(linears), n=3, cutoff=0.0)
        raise LoraFileError(
            f"{len(unmatched)} of {len(weights)} modules of {path} match nothing in the model."
            f" In the file: {_examples(unmatched)}; in the model: {_examples(near)}."
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


def _examples(names: Iterable[str], limit: int = 3) -> str:
    found = sorted(names)
    return ", ".join(found[:limit]) + (", ..." if len(found) > limit else "")
