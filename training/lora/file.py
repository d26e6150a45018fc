"""LoRA files: one writer for checkpoints and results, and the reader that puts any layout on a model.

What the trainer writes is the family's `portable` layout: `<prefix><module>.lora_A.weight` [r, in] and `.lora_B.weight`
[out, r], with the scale alpha / rank multiplied into B. For LongCat-Image the prefix is `transformer.`, which ComfyUI,
diffusers and SimpleTuner all load with the same result; for LongCat-Video it is `diffusion_model.`, with an `.alpha`
that equals the rank, as programs disagree about files without one. The tensors stay float32, as trained: the file is
small beside the model, and what is sampled with it equals the trainer's own previews to the bit.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import LoraFileError, NonFiniteError
from ..files import parse_json, write_safetensors
from ..weights.checkpoint_files import FLOATS, open_weights, read_header
from .families import IMAGE, PORTABLE, dotted_name, family_of_modules, find_layer
from .inject import TRAINED_ADAPTER, add_adapter, lora_layers
from .layouts import LONGEST_NAME, OTHER_ADAPTERS, examples, own_names, some_modules, split_key, tensors_in
from .regroup import LoraWeights
from .scale import PEFT_CONFIG, PEFT_WEIGHTS, AdapterSettings, find_settings, is_pefts

METADATA_KEY = "longcat"
"""One entry for all settings: safetensors writes several in random order, and equal LoRAs must be equal files."""


def save_lora(path: Path, transformer: nn.Module, metadata: Mapping[str, str]) -> None:
    """Writes the trained adapter of `transformer`, reads the file back and compares it with the model.

    Args:
        metadata: settings worth keeping with the file; without time stamps and machine paths, so that equal runs
            write equal files.

    Raises:
        NonFiniteError: the adapter holds NaN or infinity; nothing is written.
        LoraFileError: the file does not hold what the model holds.
        OSError: the disk is full or the folder cannot be written.
    """
    weights = _trained_weights(transformer)
    faulty = _not_finite(weights)
    if faulty:
        raise NonFiniteError(
            f"The LoRA in training holds NaN or infinity in {len(faulty)} of {len(weights)} modules:"
            f" {examples(faulty)}. It was not written to {path}; what was saved before is intact. Lower learning_rate"
            " (Train LoRA), or train longer with warmup, and queue again."
        )
    family = family_of_modules(weights) or IMAGE
    facts = {**_facts(transformer, family.sign), **metadata} if family.sign else dict(metadata)
    text = json.dumps(facts, sort_keys=True, ensure_ascii=False)
    write_safetensors(path, tensors_in(family, PORTABLE, weights), {METADATA_KEY: text})
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
    """The adapters of a LoRA by the model's own module names, from any layout of layouts.py, scales multiplied into B.

    Args:
        path: a safetensors file, or a folder that peft has saved.

    Raises:
        LoraFileError: missing, damaged, no plain LoRA, of an unknown layout, its scale cannot be known, or it holds
            NaN or infinity.
    """
    file = path / PEFT_WEIGHTS if path.is_dir() else path
    tensors, metadata = _load(file)
    settings = find_settings(file, tensors, metadata)
    parts = _parts(file, tensors)
    weights = {module: _scaled(file, module, part, settings) for module, part in parts.items()}
    faulty = _not_finite(weights)
    if faulty:
        raise LoraFileError(
            f"{file} holds NaN or infinity in {len(faulty)} of {len(weights)} modules: {examples(faulty)}. Every"
            " picture would be black with it. Its training went wrong: use an earlier checkpoint of it, or train it"
            " again with a lower learning rate."
        )
    family = family_of_modules(weights)
    unknown = [name for name in weights if family is None or find_layer(family, name) is None]
    found = own_names(file, weights, family) if family is not None else {}
    foreign = {dotted_name(name) or name: weights[name] for name in unknown}
    if len(foreign) < len(unknown):
        raise LoraFileError(f"{file} holds one module under two names, among {examples(unknown)}. Remove one of them.")
    return found | foreign


def read_metadata(path: Path) -> dict[str, str]:
    """The settings that `save_lora` wrote; empty for files of other programs.

    Raises:
        LoraFileError: missing or damaged.
    """
    with open_weights(path / PEFT_WEIGHTS if path.is_dir() else path, LoraFileError) as file:
        metadata = file.metadata() or {}
    text = metadata.get(METADATA_KEY, "{}")
    return parse_json(text, f"The metadata of {path}", LoraFileError, "Download or train it again.")


def apply_lora(transformer: nn.Module, path: Path, strength: float, adapter_name: str) -> None:
    """Reads a LoRA file and puts it on `transformer`; see `put_on`.

    Raises:
        LoraFileError: the file cannot be read, or does not fit.
    """
    put_on(transformer, read_lora(path), path, strength, adapter_name)


def put_on(
    transformer: nn.Module, weights: Mapping[str, LoraWeights], path: Path, strength: float, adapter_name: str
) -> None:
    """Puts adapters on `transformer` as the frozen adapter `adapter_name`, beside those already there.

    Nothing is merged into the weights, so the base may be quantised. Ranks may differ between modules.

    Args:
        weights: as `read_lora` gives them.
        path: where they come from, for messages.

    Raises:
        LoraFileError: any of the modules has no linear of the same name and shape.
    """
    from peft import LoraConfig

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


def _facts(transformer: nn.Module, sign: str) -> dict[str, str]:
    """What a reader of the file may want to know of the adapter, as it was trained."""
    layers = lora_layers(transformer, TRAINED_ADAPTER)
    targets = {re.sub(r"^blocks\.\d+\.", "", name) for name in layers}
    ranks = {layer.r[TRAINED_ADAPTER] for layer in layers.values()}
    alphas = {layer.lora_alpha[TRAINED_ADAPTER] for layer in layers.values()}
    return {
        "lora_rank": ", ".join(f"{rank:g}" for rank in sorted(ranks)),
        "lora_alpha": ", ".join(f"{alpha:g}" for alpha in sorted(alphas)),
        "lora_targets": ", ".join(sorted(targets)),
        "sign_convention": sign,
    }


def _not_finite(weights: Mapping[str, LoraWeights]) -> list[str]:
    """The modules with NaN or infinity."""
    return [name for name, pair in weights.items() if not (pair.a.isfinite().all() and pair.b.isfinite().all())]


def _load(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    header = read_header(path, LoraFileError)
    unread = [name for name, entry in header.items() if entry["dtype"] not in FLOATS]
    if unread:
        raise LoraFileError(
            f"{path} holds {header[unread[0]]['dtype'][:20]} in {len(unread)} of {len(header)} tensors:"
            f" {examples(unread)}. LoRAs are read as {', '.join(FLOATS)}. Save it as one of these."
        )
    with open_weights(path, LoraFileError) as file:
        return {name: file.get_tensor(name) for name in header}, file.metadata() or {}


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
    adapters = set()
    for key, tensor in tensors.items():
        found = split_key(key)
        if found is not None and found.adapter:
            adapters.add(found.adapter)
        if len(adapters) > 1:
            raise LoraFileError(
                f"{path} holds several LoRAs, called {examples(adapters)}; it is unknown which one is meant. Save each"
                " in a file of its own."
            )
        if found is None or not _has_name(found.module) or found.part in parts.get(found.module, {}):
            unknown.append(key)
        else:
            parts.setdefault(found.module, {})[found.part] = tensor
    if unknown:
        raise LoraFileError(
            f"{path} has {len(unknown)} keys of a layout that is not read here. In the file: {examples(unknown)};"
            f" expected, for example: transformer.<module>.lora_A.weight, with modules such as {some_modules()}"
            " The LoRA was made for another model or by a program that is not known here."
        )
    incomplete = [name for name, part in parts.items() if "a" not in part or not _is_whole(part)]
    if incomplete or not parts:
        raise LoraFileError(
            f"{path} is no complete LoRA: {examples(incomplete) or 'no module'} has both lora_A and lora_B missing or"
            " alone. Download or train it again."
        )
    return parts


def _has_name(module: str) -> bool:
    return family_of_modules([module]) is not None or dotted_name(module) is not None


def _is_whole(part: Mapping[str, Tensor]) -> bool:
    """Whether b is there: as one, or as the blocks 0, 1, 2 and so on of a block-diagonal one."""
    blocks = {name for name in part if name.startswith("b.")}
    return blocks == {f"b.{number}" for number in range(len(blocks))} and ("b" in part) != bool(blocks)


def _up(part: Mapping[str, Tensor]) -> Tensor:
    """b, put together where the file has blocks: [out, r]."""
    if "b" in part:
        return part["b"].float()
    blocks = [part[f"b.{number}"].float() for number in range(sum(name.startswith("b.") for name in part))]
    return torch.block_diag(*blocks)


def _scaled(path: Path, module: str, part: Mapping[str, Tensor], settings: AdapterSettings | None) -> LoraWeights:
    if part["a"].ndim > 2:
        raise LoraFileError(
            f"{path} adapts a convolution, {module[:LONGEST_NAME]}, which is not read. SimpleTuner's LongCat-Video"
            " LoRAs do so, and were trained towards the wrong sign: train it again here."
        )
    a, b = part["a"].float(), _up(part)
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or not a.shape[0]:
        raise LoraFileError(
            f"{path}: lora_A {list(a.shape)} and lora_B {list(b.shape)} of {module[:LONGEST_NAME]} do not fit each"
            " other. They must be [rank, in] and [out, rank]. Download or train it again."
        )
    rank = a.shape[0]
    given = part.get("scale", part.get("alpha"))
    if given is not None:
        if given.numel() != 1:
            raise LoraFileError(
                f"{path}: alpha of {module[:LONGEST_NAME]} has the shape {list(given.shape)}; it must be one number."
                " Train it again."
            )
        scale = given.float().item() / (1 if "scale" in part else rank)
    elif settings is not None:
        scale = settings.scale(module, rank)
    elif is_pefts(module):
        raise LoraFileError(
            f"{path} has peft's names but no {PEFT_CONFIG} beside it, so its strength (lora_alpha / r) is unknown."
            f" Put {PEFT_CONFIG} of the same training into the same folder."
        )
    else:
        scale = 1.0
    return LoraWeights(a=a, b=b if scale == 1 else b * scale)


def _check_fits(transformer: nn.Module, weights: Mapping[str, LoraWeights], path: Path) -> None:
    linears = {name: module for name, module in transformer.named_modules() if hasattr(module, "in_features") and name}
    unmatched = [name for name in weights if name not in linears]
    if unmatched:
        family = family_of_modules(weights)
        of_another = family is not None and family is not family_of_modules(linears)
        made_for = family.title if of_another else "another model or another version of it"
        near = difflib.get_close_matches(unmatched[0][:LONGEST_NAME], _without_adapters(linears), n=3, cutoff=0.0)
        raise LoraFileError(
            f"{len(unmatched)} of {len(weights)} modules of {path} match nothing in the model."
            f" In the file: {examples(unmatched)}; in the model: {examples(near)}."
            f" The LoRA was made for {made_for}."
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
