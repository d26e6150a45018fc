"""Key names of LoRA files: every layout in the wild is read into diffusers' module names, four are written.

A key is `<prefix><module>.<part>`. Dots and underscores in prefix and module mean the same here, because no two
modules of LongCat-Image differ in them alone; so one table reads them all:

    prefix                                  module names      written by
    `transformer.` or none                  diffusers         this trainer, SimpleTuner, diffusers
    `base_model.model.`                     diffusers         peft, the official trainers
    `diffusion_model.`                      diffusers         SimpleTuner (comfyui format)
    `lora_transformer_`                     diffusers         OneTrainer
    `lycoris_`                              diffusers         LyCORIS (plain LoRA only)
    `lora_unet_`, `unet.`                   diffusers         rare
    `diffusion_model.` or none, `lora_unet_`  native (fused)  ComfyUI's own names, kohya's scripts

Where a file leaves room for doubt:
- Prefixes do not decide between diffusers and native names: the module's name does, as no module has the same in both.
- A fused module (query, key, value and more on dim 0) becomes one adapter a part: rows of B, the same A.
- A module that is not LongCat-Image's keeps its dotted name, so that `apply_lora` can name it beside the model's.
- Two adapters for one module (bare and prefixed, or fused and split) are an error, as neither can be left out.
- Scales: see scale.py.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import LoraFileError
from ..models.native_keys import BLOCKS, DIFFUSERS, DOUBLE, NATIVE, SINGLE, SWAPPED, TOP

if TYPE_CHECKING:
    from torch import Tensor

PORTABLE, PEFT, FUSED, KOHYA = "portable", "peft", "native", "kohya"
LAYOUTS = (PORTABLE, PEFT, FUSED, KOHYA)
"""What can be written."""

PEFT_PREFIX = "base_model.model."
DOTTED_PREFIXES = (PEFT_PREFIX, "model.diffusion_model.", "diffusion_model.", "transformer.", "unet.")
FLAT_PREFIXES = ("lora_transformer_", "lora_unet_", "lycoris_")

PARTS = {
    "lora_A.weight": "a",
    "lora_down.weight": "a",
    "lora_B.weight": "b",
    "lora_up.weight": "b",
    "alpha": "alpha",
}
"""End of a key -> what it holds: a [r, in], b [out, r], alpha []."""

OTHER_ADAPTERS = {
    ".hada_": "a LoHa",
    ".lokr_": "a LoKr",
    ".oft_": "an OFT",
    ".dora_scale": "a DoRA",
    ".lora_magnitude_vector": "a DoRA",
}
"""Part of a key -> the kind of adapter it gives away; none of them is the product of two matrices."""

TIME_EMBEDDING = ("time_text_embed_", "time_embed_")
"""Flux's name, which files made for ComfyUI use, and LongCat-Image's."""

MLP_RATIO = 4
"""Rows of `proj_mlp` per row of `attn.to_q` (diffusers: transformer_longcat_image.py)."""


SOME_MODULES = ("transformer_blocks.0.attn.to_q", "single_transformer_blocks.0.proj_mlp", "x_embedder")
"""For messages."""


@dataclass(frozen=True, kw_only=True)
class LoraWeights:
    """The adapter of one linear, float32 on the CPU, without any further scale."""

    a: Tensor
    """[r, in]"""
    b: Tensor
    """[out, r]"""


@dataclass(frozen=True)
class Layer:
    """A linear as both layouts know it."""

    native: str
    parts: tuple[str, ...]
    """All diffusers modules that the native one joins, in order."""
    module: str | None
    """The one of `parts` that was named; None if the native one was."""


def split_key(key: str) -> tuple[str, str] | None:
    """Module and entry of `PARTS` of a key; None if it ends like no LoRA's."""
    found = re.fullmatch(rf"(.+)\.({'|'.join(map(re.escape, PARTS))})", key)
    return (found[1], PARTS[found[2]]) if found else None


def find_layer(name: str) -> Layer | None:
    """The linear that `name`, in any spelling and with any prefix, stands for; None if LongCat-Image has none such."""
    flat = name.replace(".", "_")
    for prefix in ("", *FLAT_PREFIXES, *(prefix.replace(".", "_") for prefix in DOTTED_PREFIXES)):
        layer = _look_up(flat.removeprefix(prefix)) if flat.startswith(prefix) else None
        if layer is not None:
            return layer
    return None


def without_prefix(name: str) -> str | None:
    """A foreign module's dotted name; None if the layout has underscores, from which it cannot be told."""
    if name.startswith(("lora_", "lycoris_")):
        return None
    return name.removeprefix(next((prefix for prefix in DOTTED_PREFIXES if name.startswith(prefix)), ""))


def check_modules(path: Path, names: Collection[str]) -> None:
    """Refuses a LoRA of another model.

    Raises:
        LoraFileError: some of its modules are not LongCat-Image's.
    """
    unknown = [name for name in names if find_layer(name) is None]
    if unknown:
        raise LoraFileError(
            f"{len(unknown)} of {len(names)} modules of {path} are not LongCat-Image's."
            f" In the file: {examples(unknown)}; in the model: {', '.join(SOME_MODULES)}, ..."
            " The LoRA was made for another model."
        )


def to_diffusers(layer: Layer, weights: LoraWeights) -> dict[str, LoraWeights]:
    """The adapter of a linear, as those of the diffusers modules it holds.

    Raises:
        ValueError: B has other rows than the fused module.
    """
    import torch

    if layer.module is not None:
        return {layer.module: weights}
    if layer.native == SWAPPED:
        return {layer.parts[0]: LoraWeights(a=weights.a, b=torch.cat(weights.b.chunk(2)[::-1]))}
    sizes = [_rows(part, weights) for part in layer.parts] if len(layer.parts) > 1 else [weights.b.shape[0]]
    if sum(sizes) != weights.b.shape[0]:
        raise ValueError(f"{layer.native} has {weights.b.shape[0]} rows, not {' + '.join(map(str, sizes))}")
    return {
        part: LoraWeights(a=weights.a.clone(), b=b.clone())
        for part, b in zip(layer.parts, weights.b.split(sizes), strict=True)
    }


def to_native(weights: Mapping[str, LoraWeights]) -> dict[str, LoraWeights]:
    """Adapters by native name, those of fused modules joined exactly, whatever their ranks.

    Args:
        weights: by diffusers module; all of LongCat-Image (`check_modules`).
    """
    import torch

    fused = {}
    layers = [layer for layer in map(find_layer, weights) if layer is not None]
    for native, parts in sorted({layer.native: layer.parts for layer in layers}.items()):
        if len(parts) > 1:
            fused[native] = _join(parts, weights)
        elif native == SWAPPED:
            only = weights[parts[0]]
            fused[native] = LoraWeights(a=only.a, b=torch.cat(only.b.chunk(2)[::-1]))
        else:
            fused[native] = weights[parts[0]]
    return fused


def tensors_in(layout: str, weights: Mapping[str, LoraWeights]) -> dict[str, Tensor]:
    """The tensors of a file in one of `LAYOUTS`; those of `KOHYA` have an alpha equal to their rank, so scale 1.

    Args:
        weights: by diffusers module; all of LongCat-Image (`check_modules`) unless the layout has diffusers' names.
    """
    import torch

    if layout in (PORTABLE, PEFT):
        prefix = "transformer." if layout == PORTABLE else PEFT_PREFIX
        return _keyed(prefix, weights, ("lora_A", "lora_B"))
    if layout == FUSED:
        return _keyed("diffusion_model.", to_native(weights), ("lora_A", "lora_B"))
    if layout == KOHYA:
        flat = {name.replace(".", "_"): pair for name, pair in to_native(weights).items()}
        alphas = {f"lora_unet_{name}.alpha": torch.tensor(float(pair.a.shape[0])) for name, pair in flat.items()}
        return _keyed("lora_unet_", flat, ("lora_down", "lora_up")) | alphas
    raise ValueError(f"{layout!r} is none of {', '.join(LAYOUTS)}.")


def examples(names: Iterable[str], limit: int = 3) -> str:
    """The first few of `names`, for a message."""
    found = sorted(names)
    return ", ".join(found[:limit]) + (", ..." if len(found) > limit else "")


@functools.cache
def _tables() -> dict[str, dict[str, tuple[str, tuple[str, ...], str | None]]]:
    """Kind of block ("" outside of blocks) -> flat name within -> native name, its parts, the part that was named."""
    tables: dict[str, dict[str, tuple[str, tuple[str, ...], str | None]]] = {}
    kinds = (("", ""), *zip(BLOCKS[NATIVE], BLOCKS[DIFFUSERS], strict=True))
    for (native_blocks, blocks), rows in zip(kinds, (TOP, DOUBLE, SINGLE), strict=True):
        for native, parts in rows:
            tables.setdefault(native_blocks, {})[native.replace(".", "_")] = (native, parts, None)
            for part in parts:
                tables.setdefault(blocks, {})[part.replace(".", "_")] = (native, parts, part)
    return tables


def _look_up(flat: str) -> Layer | None:
    tables = _tables()
    found = re.fullmatch(rf"({'|'.join(filter(None, tables))})_(\d+)_(.+)", flat)
    kind, number, rest = (found[1], found[2], found[3]) if found else ("", "", flat.replace(*TIME_EMBEDDING))
    entry = tables[kind].get(rest)
    if entry is None:
        return None
    native, parts, module = entry
    if not kind:
        return Layer(*entry)
    side = BLOCKS[NATIVE if module is None else DIFFUSERS].index(kind)
    native_at, at = (f"{BLOCKS[layout][side]}.{int(number)}." for layout in (NATIVE, DIFFUSERS))
    return Layer(native_at + native, tuple(at + part for part in parts), None if module is None else at + module)


def _rows(part: str, weights: LoraWeights) -> int:
    # Attention is as wide as its input in this model, and every fused module reads that input.
    width = weights.a.shape[1]
    return MLP_RATIO * width if part.endswith(".proj_mlp") else width


def _join(parts: tuple[str, ...], weights: Mapping[str, LoraWeights]) -> LoraWeights:
    """One adapter for a fused module: A shared if all parts have the same, else stacked and B block-diagonal.

    The rank of the stacked one is the sum of the parts' ranks. Parts without adapter get rows of zeros.
    """
    import torch

    present = [weights[part] for part in parts if part in weights]
    first = present[0].a
    shared = all(torch.equal(pair.a, first) for pair in present)
    a = first if shared else torch.cat([pair.a for pair in present])
    rows, column = [], 0
    for part in parts:
        pair = weights.get(part)
        row = torch.zeros(_rows(part, present[0]) if pair is None else pair.b.shape[0], a.shape[0], dtype=a.dtype)
        if pair is not None:
            row[:, column : column + pair.b.shape[1]] = pair.b
            column += 0 if shared else pair.b.shape[1]
        rows.append(row)
    return LoraWeights(a=a, b=torch.cat(rows))


def _keyed(prefix: str, weights: Mapping[str, LoraWeights], ends: tuple[str, str]) -> dict[str, Tensor]:
    tensors = {}
    for name, pair in weights.items():
        tensors[f"{prefix}{name}.{ends[0]}.weight"] = pair.a
        tensors[f"{prefix}{name}.{ends[1]}.weight"] = pair.b
    return tensors
