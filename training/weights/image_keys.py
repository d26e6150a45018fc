"""Tensor names of the LongCat-Image transformer in ComfyUI's files ("native", after Flux) and in diffusers.

Both layouts hold the same numbers: native ones join the query, key and value matrices (and in single blocks the
first of the feed-forward) on dim 0, and the last modulation has its halves swapped. Checked against
ComfyUI's own map (comfy/utils.py flux_to_diffusers), whose time embedding has another name than LongCat-Image's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ModelError
from .tensor_file import Shapes, what_it_holds

if TYPE_CHECKING:
    from torch import Tensor

NATIVE = "native"
DIFFUSERS = "diffusers"

PREFIXES = ("model.diffusion_model.", "diffusion_model.")

TOP = (
    ("img_in", ("x_embedder",)),
    ("txt_in", ("context_embedder",)),
    ("time_in.in_layer", ("time_embed.timestep_embedder.linear_1",)),
    ("time_in.out_layer", ("time_embed.timestep_embedder.linear_2",)),
    ("final_layer.linear", ("proj_out",)),
    ("final_layer.adaLN_modulation.1", ("norm_out.linear",)),
)
DOUBLE = (
    ("img_attn.qkv", ("attn.to_q", "attn.to_k", "attn.to_v")),
    ("img_attn.proj", ("attn.to_out.0",)),
    ("img_attn.norm.query_norm", ("attn.norm_q",)),
    ("img_attn.norm.key_norm", ("attn.norm_k",)),
    ("img_mod.lin", ("norm1.linear",)),
    ("img_mlp.0", ("ff.net.0.proj",)),
    ("img_mlp.2", ("ff.net.2",)),
    ("txt_attn.qkv", ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")),
    ("txt_attn.proj", ("attn.to_add_out",)),
    ("txt_attn.norm.query_norm", ("attn.norm_added_q",)),
    ("txt_attn.norm.key_norm", ("attn.norm_added_k",)),
    ("txt_mod.lin", ("norm1_context.linear",)),
    ("txt_mlp.0", ("ff_context.net.0.proj",)),
    ("txt_mlp.2", ("ff_context.net.2",)),
)
SINGLE = (
    ("linear1", ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")),
    ("linear2", ("proj_out",)),
    ("modulation.lin", ("norm.linear",)),
    ("norm.query_norm", ("attn.norm_q",)),
    ("norm.key_norm", ("attn.norm_k",)),
)
"""Native module -> the diffusers modules that it joins; in DOUBLE and SINGLE below their block."""

BLOCKS = {
    NATIVE: ("double_blocks", "single_blocks"),
    DIFFUSERS: ("transformer_blocks", "single_transformer_blocks"),
}

SWAPPED = "final_layer.adaLN_modulation.1"
"""Native: shift, then scale; diffusers: scale, then shift."""

AXES_DIMS_ROPE = {128: [16, 56, 56]}
"""Head dim -> rotary axes of the released models; no tensor holds them."""


@dataclass(frozen=True, kw_only=True)
class TransformerKeys:
    """The tensors of a transformer, by the layout's own names, without prefixes and old spellings."""

    layout: str
    """NATIVE or DIFFUSERS"""
    names: dict[str, str]
    """Name in the layout -> name in the file."""
    shapes: dict[str, tuple[int, ...]]
    """By name in the layout."""
    config: dict[str, Any]
    """Arguments of diffusers' LongCatImageTransformer2DModel."""


@dataclass(frozen=True)
class Recipe:
    """How a tensor is made: `sources` joined on dim 0, then the rows `start` to `stop`, then halves swapped."""

    sources: tuple[str, ...]
    start: int = 0
    stop: int | None = None
    swap_halves: bool = False


def is_transformer(shapes: Shapes) -> bool:
    """Whether these are a diffusion transformer's tensors, of LongCat-Image or another model."""
    return bool(_prefix(shapes)) or _layout(shapes) is not None or any(name.startswith("blocks.") for name in shapes)


def recognise(shapes: Shapes, origin: Path | str) -> TransformerKeys:
    """Layout, names and sizes of the LongCat-Image transformer whose tensors these are.

    Args:
        shapes: of all tensors of the file; others than the transformer's are left aside if it has a prefix.
        origin: the file, for messages.

    Raises:
        ModelError: another model, or tensors are missing or too many.
    """
    prefix = _prefix(shapes)
    names = {_own_name(name.removeprefix(prefix)): name for name in shapes if name.startswith(prefix)}
    layout = _layout(names)
    if layout is None:
        raise _refusal(origin, names, "")
    depths = tuple(_depth(names, blocks) for blocks in BLOCKS[layout])
    wanted = {name for native, parts in _tensors(depths) for name in ((native,) if layout == NATIVE else parts)}
    if wanted != set(names):
        missing, extra = sorted(wanted - set(names)), sorted(set(names) - wanted)
        faults = ((missing, "missing"), (extra, "unknown"))
        shown = "; ".join(f"{len(some)} {word}, such as {some[0][:100]}" for some, word in faults if some)
        raise _refusal(origin, names, f" ({shown})")
    own_shapes = {name: tuple(shapes[in_file]) for name, in_file in names.items()}
    return TransformerKeys(
        layout=layout, names=names, shapes=own_shapes, config=_config(layout, depths, own_shapes, origin)
    )


def plan(keys: TransformerKeys, layout: str) -> dict[str, Recipe]:
    """Every tensor of `layout` and how it is made from the tensors of the file; a fused one's parts in a row."""
    if layout == keys.layout:
        return {name: Recipe((in_file,)) for name, in_file in keys.names.items()}
    depths = keys.config["num_layers"], keys.config["num_single_layers"]
    recipes = {}
    for native, parts in _tensors(depths):
        swap = native.startswith(SWAPPED)
        if layout == NATIVE:
            recipes[native] = Recipe(tuple(keys.names[part] for part in parts), swap_halves=swap)
            continue
        width = _width(keys)
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            stop = None if last else (number + 1) * width
            recipes[part] = Recipe((keys.names[native],), number * width, stop, swap)
    return recipes


def assemble(recipe: Recipe, read: Callable[[str], Tensor]) -> Tensor:
    """The tensor that `recipe` describes; it may share memory with what `read` gave."""
    import torch

    parts = [read(source) for source in recipe.sources]
    whole = parts[0] if len(parts) == 1 else torch.cat(parts)
    rows = whole[recipe.start : recipe.stop]
    return torch.cat(rows.chunk(2)[::-1]) if recipe.swap_halves else rows


def convert(state_dict: Mapping[str, Tensor], layout: str, origin: Path | str = "the state dict") -> dict[str, Tensor]:
    """A transformer's tensors of either layout, in `layout`; they may share memory with the given ones.

    Raises:
        ModelError: another model, or tensors are missing or too many.
    """
    keys = recognise({name: tuple(tensor.shape) for name, tensor in state_dict.items()}, origin)
    return {name: assemble(recipe, state_dict.__getitem__) for name, recipe in plan(keys, layout).items()}


def _prefix(names: Iterable[str]) -> str:
    known = list(names)
    return next((prefix for prefix in PREFIXES if any(name.startswith(prefix) for name in known)), "")


def _layout(names: Iterable[str]) -> str | None:
    known = list(names)
    first = {layout: f"{blocks[0]}." for layout, blocks in BLOCKS.items()}
    return next((layout for layout, start in first.items() if any(name.startswith(start) for name in known)), None)


def _own_name(name: str) -> str:
    """Older native files call the norms' weights `scale`; diffusers files for ComfyUI have Flux's time embedding."""
    if name.endswith(("query_norm.scale", "key_norm.scale")):
        return f"{name.removesuffix('scale')}weight"
    return name.replace("time_text_embed.timestep_embedder.", "time_embed.timestep_embedder.")


def _depth(names: Mapping[str, str], blocks: str) -> int:
    """Blocks that some name is of; a number left out shows later, as missing tensors."""
    return len({found[1] for name in names if (found := re.match(rf"{blocks}\.(\d+)\.", name))})


def _modules(depths: tuple[int, int]) -> Iterator[tuple[str, tuple[str, ...]]]:
    yield from TOP
    for depth, native_blocks, blocks, table in zip(depths, *BLOCKS.values(), (DOUBLE, SINGLE), strict=True):
        for number in range(depth):
            for native, parts in table:
                yield f"{native_blocks}.{number}.{native}", tuple(f"{blocks}.{number}.{part}" for part in parts)


def _tensors(depths: tuple[int, int]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Native tensor and the diffusers tensors it joins, for a transformer of these (double, single) depths."""
    for native, parts in _modules(depths):
        for end in ("weight",) if native.endswith(("query_norm", "key_norm")) else ("weight", "bias"):
            yield f"{native}.{end}", tuple(f"{part}.{end}" for part in parts)


def _width(keys: TransformerKeys) -> int:
    return keys.config["num_attention_heads"] * keys.config["attention_head_dim"]


def _config(layout: str, depths: tuple[int, int], shapes: Shapes, origin: Path | str) -> dict[str, Any]:
    native = layout == NATIVE
    image_in, text_in, norm = (
        ("img_in", "txt_in", "double_blocks.0.img_attn.norm.query_norm")
        if native
        else ("x_embedder", "context_embedder", "transformer_blocks.0.attn.norm_q")
    )
    try:
        width, in_channels = shapes[f"{image_in}.weight"]
        _, joint_width = shapes[f"{text_in}.weight"]
        (head_dim,) = shapes[f"{norm}.weight"]
    except ValueError as error:
        raise ModelError(
            f"{origin} has tensors of other shapes than a LongCat-Image transformer ({error}). Copy or download it"
            " again."
        ) from error
    if head_dim not in AXES_DIMS_ROPE or not width or width % head_dim:
        raise ModelError(
            f"{origin} has attention heads of {head_dim} in a width of {width}; single files of LongCat-Image have"
            f" heads of {', '.join(map(str, AXES_DIMS_ROPE))} that divide the width. Use a diffusers folder, whose"
            " config.json gives the rest."
        )
    return {
        "patch_size": 1,
        "in_channels": in_channels,
        "num_layers": depths[0],
        "num_single_layers": depths[1],
        "attention_head_dim": head_dim,
        "num_attention_heads": width // head_dim,
        "joint_attention_dim": joint_width,
        "pooled_projection_dim": joint_width,
        "axes_dims_rope": AXES_DIMS_ROPE[head_dim],
    }


def _refusal(origin: Path | str, names: Mapping[str, str], faults: str) -> ModelError:
    return ModelError(
        f"{origin} is no transformer of LongCat-Image: it holds {what_it_holds(names)}{faults}. Choose a file such as"
        " longcat_image_bf16.safetensors or longcat_image_edit_bf16.safetensors."
    )
