"""Tensor names of LongCat-Video's transformer in the files that exist, and the sizes that follow from the tensors.

    layout            written by                                      differs in
    official          meituan-longcat, SimpleTuner                    joined qkv and kv
    fastvideo         FastVideo's converter, folder `transformer`     q, k, v apart, names of its own
    wanvideowrapper   single files for ComfyUI-WanVideoWrapper        q, k, v apart, named after Wan's modules

All hold the same numbers; parts are joined on dim 0 in the order of the table. A prefix such as `diffusion_model.` is
allowed everywhere. LongCat-Video-Avatar, which has the same blocks and more, is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ModelError
from .tensor_file import Shapes, what_it_holds

if TYPE_CHECKING:
    from torch import Tensor

OFFICIAL, FASTVIDEO, WRAPPER = "official", "fastvideo", "wanvideowrapper"
LAYOUTS = (OFFICIAL, FASTVIDEO, WRAPPER)

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "transformer.")

TOP = (
    ("x_embedder.proj", ("patch_embed.proj",), ("patch_embedding",)),
    ("t_embedder.mlp.0", ("time_embedder.linear_1",), ("time_embedding.mlp.0",)),
    ("t_embedder.mlp.2", ("time_embedder.linear_2",), ("time_embedding.mlp.2",)),
    ("y_embedder.y_proj.0", ("caption_embedder.linear_1",), ("text_embedding.0",)),
    ("y_embedder.y_proj.2", ("caption_embedder.linear_2",), ("text_embedding.2",)),
    ("final_layer.linear", ("final_layer.proj",), ("head.head",)),
    ("final_layer.adaLN_modulation.1", ("final_layer.adaln_linear",), ("head.modulation.1",)),
)
BLOCK = (
    ("adaLN_modulation.1", ("adaln_linear_1",), ("modulation.1",)),
    ("pre_crs_attn_norm", ("norm_cross",), ("norm3",)),
    (
        "attn.qkv",
        ("self_attn.to_q", "self_attn.to_k", "self_attn.to_v"),
        ("self_attn.q", "self_attn.k", "self_attn.v"),
    ),
    ("attn.proj", ("self_attn.to_out",), ("self_attn.o",)),
    ("attn.q_norm", ("self_attn.q_norm",), ("self_attn.norm_q",)),
    ("attn.k_norm", ("self_attn.k_norm",), ("self_attn.norm_k",)),
    ("cross_attn.q_linear", ("cross_attn.to_q",), ("cross_attn.q",)),
    ("cross_attn.kv_linear", ("cross_attn.to_k", "cross_attn.to_v"), ("cross_attn.k", "cross_attn.v")),
    ("cross_attn.proj", ("cross_attn.to_out",), ("cross_attn.o",)),
    ("cross_attn.q_norm", ("cross_attn.q_norm",), ("cross_attn.norm_q",)),
    ("cross_attn.k_norm", ("cross_attn.k_norm",), ("cross_attn.norm_k",)),
    ("ffn.w1", ("ffn.w1",), ("ffn.w1",)),
    ("ffn.w2", ("ffn.w2",), ("ffn.w2",)),
    ("ffn.w3", ("ffn.w3",), ("ffn.w3",)),
)
"""Official module, its parts in FastVideo, its parts in the wrapper; those of BLOCK below `blocks.N.`"""

WITHOUT_BIAS = ("q_norm", "k_norm", "ffn.w1", "ffn.w2", "ffn.w3")

MARKS = {
    ".adaLN_modulation.1.weight": OFFICIAL,
    ".adaln_linear_1.weight": FASTVIDEO,
    ".modulation.1.weight": WRAPPER,
}
"""End of a name in `blocks.0` that no other layout has; Wan itself has `blocks.0.modulation`."""

AVATAR = ("audio_proj.", "audio_cross_attn.", "audio_adaLN_modulation.")


@dataclass(frozen=True, kw_only=True)
class VideoKeys:
    """A file's transformer."""

    layout: str
    """One of LAYOUTS."""
    sources: dict[str, tuple[str, ...]]
    """Official name of each tensor -> the file's tensors that it is made of."""
    config: dict[str, Any]
    """Arguments of LongCatVideoTransformer3DModel; two that follow from no shape have the released values."""


def is_video_transformer(names: Iterable[str]) -> bool:
    """Whether these are LongCat-Video's tensors in any layout, complete or not, Avatar's included."""
    return _layout(_without_prefix(names)) is not None


def recognise(shapes: Shapes, origin: Path | str) -> VideoKeys:
    """Layout, names and sizes of the LongCat-Video transformer whose tensors these are.

    Args:
        shapes: of all tensors, of all shards.
        origin: the file or folder, for messages.

    Raises:
        ModelError: another model, or tensors are missing or too many.
    """
    names = _without_prefix(shapes)
    layout = _layout(names)
    _refuse_others(names, layout, origin)
    sources = {official: parts[layout] for official, parts in _tensors(_depth(names))}
    _compare({part for parts in sources.values() for part in parts}, names, layout, origin)
    in_file = {official: tuple(names[part] for part in parts) for official, parts in sources.items()}
    return VideoKeys(layout=layout, sources=in_file, config=_config(in_file, shapes, origin))


def assemble(keys: VideoKeys, name: str, read: Callable[[str], Tensor]) -> Tensor:
    """The tensor with the official `name`; it may share memory with what `read` gave for the file's names."""
    import torch

    parts = [read(source) for source in keys.sources[name]]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def convert(state_dict: Mapping[str, Tensor], origin: Path | str = "the state dict") -> dict[str, Tensor]:
    """A transformer's tensors of any layout by their official names; they may share memory with the given ones.

    Raises:
        ModelError: as `recognise`.
    """
    keys = recognise({name: tuple(tensor.shape) for name, tensor in state_dict.items()}, origin)
    return {name: assemble(keys, name, state_dict.__getitem__) for name in keys.sources}


def _without_prefix(names: Iterable[str]) -> dict[str, str]:
    """Name without the file's prefix -> name in the file; with a prefix, names without it are other parts' tensors."""
    known = list(names)
    prefix = next((prefix for prefix in PREFIXES if any(name.startswith(prefix) for name in known)), "")
    return {name.removeprefix(prefix): name for name in known if name.startswith(prefix)}


def _layout(names: Collection[str]) -> str | None:
    return next((layout for mark, layout in MARKS.items() if f"blocks.0{mark}" in names), None)


def _depth(names: Iterable[str]) -> int:
    """Blocks that some name is of; a number left out shows later, as missing tensors."""
    return len({found[1] for name in names if (found := re.match(r"blocks\.(\d+)\.", name))})


def _tensors(depth: int) -> Iterator[tuple[str, dict[str, tuple[str, ...]]]]:
    """Official name of each tensor, and its parts' names in every layout."""
    rows = [("", row) for row in TOP] + [(f"blocks.{number}.", row) for number in range(depth) for row in BLOCK]
    for start, (official, *others) in rows:
        for end in ("weight",) if official.endswith(WITHOUT_BIAS) else ("weight", "bias"):
            by_layout = zip(LAYOUTS, ((official,), *others), strict=True)
            yield (
                f"{start}{official}.{end}",
                {layout: tuple(f"{start}{part}.{end}" for part in parts) for layout, parts in by_layout},
            )


def _refuse_others(names: Mapping[str, str], layout: str | None, origin: Path | str) -> None:
    if any(mark in name for name in names for mark in AVATAR):
        raise ModelError(
            f"{origin} holds LongCat-Video-Avatar, which is driven by sound and cannot be trained or sampled here. Use"
            " meituan-longcat/LongCat-Video."
        )
    if any(name.endswith("weight_int8") for name in names):
        raise ModelError(
            f"{origin} holds weights stored as int8 (weight_int8), which are not read. Use the bf16 weights of"
            " meituan-longcat/LongCat-Video with base_model_precision int8-quanto."
        )
    if layout is None:
        raise ModelError(
            f"{origin} is no transformer of LongCat-Video: it holds {what_it_holds(names)}. Use the folder dit of"
            " meituan-longcat/LongCat-Video, or a single file of its transformer."
        )


def _compare(wanted: set[str], names: Collection[str], layout: str, origin: Path | str) -> None:
    missing, extra = sorted(wanted - set(names)), sorted(set(names) - wanted)
    faults = ((missing, "are missing"), (extra, "are unknown"))
    shown = "; ".join(f"{len(some)} tensors {what}, such as {some[0][:100]}" for some, what in faults if some)
    if shown:
        raise ModelError(
            f"{origin} holds a LongCat-Video transformer with the names of {layout}, but {shown}. It is incomplete or"
            " of another version: copy or download it again."
        )


def _config(sources: Mapping[str, tuple[str, ...]], shapes: Shapes, origin: Path | str) -> dict[str, Any]:
    def shape(name: str) -> tuple[int, ...]:
        return tuple(shapes[sources[name][0]])

    try:
        width, in_channels, *patch_size = shape("x_embedder.proj.weight")
        temb_width, frequencies = shape("t_embedder.mlp.0.weight")
        _, caption_channels = shape("y_embedder.y_proj.0.weight")
        patch, _ = shape("final_layer.linear.weight")
        (head_dim,) = shape("blocks.0.attn.q_norm.weight")
        _, rows, columns = patch_size
        out_channels, num_heads = patch // (rows * columns), width // head_dim
    except (ValueError, ZeroDivisionError) as error:
        raise ModelError(
            f"{origin} has tensors of other shapes than a LongCat-Video transformer ({error}). Copy or download it"
            " again."
        ) from error
    return {
        "in_channels": in_channels,
        "out_channels": out_channels,
        "hidden_size": width,
        "depth": _depth(sources),
        "num_heads": num_heads,
        "caption_channels": caption_channels,
        "adaln_tembed_dim": temb_width,
        "frequency_embedding_size": frequencies,
        "patch_size": patch_size,
    }
