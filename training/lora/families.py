"""The model families whose LoRAs are read, one table each: the names of their linears, and the layouts of files.

A scheme is one way to name a model's linears; the first of a family is that of the model here. Between schemes, linears
may be joined on dim 0 (query, key and value into one): the rows of the table show which. The names in a file
show its family: no linear within a block has the same name in two families.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ..weights import image_keys, video_keys

PORTABLE, PEFT, FUSED, KOHYA = "portable", "peft", "native", "kohya"
OFFICIAL, WRAPPER, FASTVIDEO = "official", "wanvideowrapper", "fastvideo"

PEFT_PREFIX = "base_model.model."
PEFT_MARK = "base_model"

WRAPPERS = (
    *(PEFT_MARK, "model", "diffusion_model", "transformer", "unet", "dit", "pipe"),
    *("module", "processor", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"),
)
"""Parts of a dotted name that stand for what programs put around the model, and PyTorch around the model or a block of
it. They occur in any number and order; no linear of a family has such a part."""

FLAT_PREFIXES = ("lora_transformer_", "lora_unet_", "lycoris_")
FLAT_WRAPPER = re.compile(r"_orig_mod_|_fsdp_wrapped_module_|_checkpoint_wrapped_module_")
"""In names without dots, those of `WRAPPERS` that can be nothing else."""

LONGEST_INDEX = 4
"""Digits of a block's number."""

HYPHEN = "___lorahyphen___"
"""What LongCat-Video's own LoRAs have for the dots of a module's name, and behind `lora` before it."""

DOWN_UP = ("lora_down.weight", "lora_up.weight")

Names = tuple[tuple[str, ...], ...]
"""By scheme, what one or several linears that some scheme joins are called there: one name, or one for each part."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a file spells the tensors of an adapter: `<prefix><module>.<end>`."""

    prefix: str
    scheme: int = 0
    dot: str = "."
    """What the dots of the module's name become."""
    ends: tuple[str, str] = ("lora_A.weight", "lora_B.weight")
    alpha: str | None = None
    """End of an entry that holds the rank, so that scale 1 is written down."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LoraFamily:
    """A model whose LoRAs are read and written."""

    title: str
    """For messages."""
    lists: tuple[tuple[str, ...], ...]
    """Lists of blocks: the name of each in every scheme."""
    top: tuple[Names, ...]
    """Linears outside of blocks."""
    rows: tuple[tuple[Names, ...], ...]
    """Linears below a block, for each of `lists`."""
    layouts: Mapping[str, Layout]
    """What can be written; PORTABLE is what the trainer writes."""
    examples: tuple[str, ...]
    """Some linears, for messages."""
    sign: str | None = None
    """What the model's output estimates, written into the file where programs disagree about it."""
    spellings: tuple[tuple[str, str], ...] = ()
    """Flat beginning of a name that some files have -> the right one."""
    swapped: tuple[str, ...] = ()
    """Linears whose halves are swapped in all schemes but the first."""
    rows_per_input: Mapping[str, int] = field(default_factory=dict)
    """Last part of the name -> rows per column, of joined linears that are not square."""


@dataclass(frozen=True)
class Layer:
    """What a file's module name stands for."""

    names: Names
    scheme: int
    name: str
    """The one of `names[scheme]` that was meant."""


IMAGE = LoraFamily(
    title="LongCat-Image",
    lists=tuple(zip(image_keys.BLOCKS[image_keys.DIFFUSERS], image_keys.BLOCKS[image_keys.NATIVE], strict=True)),
    top=tuple((parts, (native,)) for native, parts in image_keys.TOP),
    rows=tuple(tuple((parts, (native,)) for native, parts in kind) for kind in (image_keys.DOUBLE, image_keys.SINGLE)),
    layouts={
        PORTABLE: Layout(prefix="transformer."),
        PEFT: Layout(prefix=PEFT_PREFIX),
        FUSED: Layout(prefix="diffusion_model.", scheme=1),
        KOHYA: Layout(prefix="lora_unet_", scheme=1, dot="_", ends=DOWN_UP, alpha="alpha"),
    },
    examples=("transformer_blocks.0.attn.to_q", "single_transformer_blocks.0.proj_mlp", "x_embedder"),
    # Flux's name, which files made for ComfyUI use.
    spellings=(("time_text_embed_", "time_embed_"),),
    swapped=("norm_out.linear",),
    # diffusers: transformer_longcat_image.py, mlp_ratio
    rows_per_input={"proj_mlp": 4},
)

VIDEO = LoraFamily(
    title="LongCat-Video",
    lists=(("blocks", "blocks", "blocks"),),
    top=tuple(((official,), *others) for official, *others in video_keys.TOP),
    rows=(tuple(((official,), *others) for official, *others in video_keys.BLOCK),),
    layouts={
        PORTABLE: Layout(prefix="diffusion_model.", alpha="alpha"),
        OFFICIAL: Layout(prefix=f"lora{HYPHEN}", dot=HYPHEN, ends=DOWN_UP),
        WRAPPER: Layout(prefix="diffusion_model.", scheme=2, alpha="alpha"),
        # FastVideo reads the scale from this entry alone.
        FASTVIDEO: Layout(prefix="", scheme=1, ends=("lora_A", "lora_B"), alpha="lora_alpha"),
    },
    examples=("blocks.0.attn.qkv", "blocks.0.cross_attn.kv_linear", "blocks.0.ffn.w1"),
    sign="the transformer's output estimates x0 - noise",
)

FAMILIES = (IMAGE, VIDEO)

LAYOUTS = tuple(dict.fromkeys(layout for family in FAMILIES for layout in family.layouts))
"""What can be written for some family; each family's are in its table."""


def family_of_modules(names: Iterable[str]) -> LoraFamily | None:
    """The family that knows the most of these modules' names, in any spelling; None if no family knows any.

    With as many in two, which is possible for linears outside of blocks alone, it is the first of FAMILIES.
    """
    known = list(names)
    counts = [sum(find_layer(family, name) is not None for name in known) for family in FAMILIES]
    return FAMILIES[counts.index(max(counts))] if any(counts) else None


def find_layer(family: LoraFamily, name: str) -> Layer | None:
    """The linear of `family` that `name`, in any spelling and with any prefix, stands for; None if it has none such.

    Dots and underscores mean the same, because no two linears of a family differ in them alone.
    """
    flat = without_wrappers(name).replace(".", "_")
    if "." in name and not flat.startswith(FLAT_PREFIXES):
        return _look_up(family, flat)
    prefix = next((prefix for prefix in FLAT_PREFIXES if flat.startswith(prefix)), "")
    rest: str | None = FLAT_WRAPPER.sub("", flat.removeprefix(prefix))
    while rest:
        layer = _look_up(family, rest)
        if layer is not None:
            return layer
        # One after the other: `transformer_blocks` begins like a wrapper.
        rest = next((rest.removeprefix(f"{each}_") for each in WRAPPERS if rest.startswith(f"{each}_")), None)
    return None


def without_wrappers(name: str) -> str:
    """A module's dotted name, without what stands for wrappers around the model; any other name as it is."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS) or name


def dotted_name(name: str) -> str | None:
    """A foreign module's dotted name; None if the layout has underscores, from which it does not follow."""
    return None if name.startswith(("lora_", "lycoris_")) else without_wrappers(name)


@functools.cache
def _tables(family: LoraFamily) -> dict[str, dict[str, tuple[Names, int, str, int]]]:
    """Name of a list of blocks ("" outside) -> flat name below -> names, scheme, name there, number of the list."""
    tables: dict[str, dict[str, tuple[Names, int, str, int]]] = {"": {}}
    outside = ("",) * len(family.lists[0])
    for number, (lists, rows) in enumerate(zip((outside, *family.lists), (family.top, *family.rows), strict=True)):
        for names in rows:
            for scheme, (blocks, in_scheme) in enumerate(zip(lists, names, strict=True)):
                table = tables.setdefault(blocks, {})
                for name in in_scheme:
                    table.setdefault(name.replace(".", "_"), (names, scheme, name, number))
    return tables


@functools.lru_cache(maxsize=10_000)
def _look_up(family: LoraFamily, flat: str) -> Layer | None:
    tables = _tables(family)
    found = re.fullmatch(f"({'|'.join(filter(None, tables))})_([0-9]+)_(.+)", flat)
    if found and len(found[2]) > LONGEST_INDEX:
        return None
    blocks, index, rest = (found[1], int(found[2]), found[3]) if found else ("", 0, flat)
    for given, right in family.spellings:
        rest = right + rest.removeprefix(given) if not found and rest.startswith(given) else rest
    entry = tables[blocks].get(rest)
    if entry is None:
        return None
    names, scheme, name, number = entry
    if not found:
        return Layer(names, scheme, name)
    starts = [f"{each}.{index}." for each in family.lists[number - 1]]
    in_blocks = tuple(tuple(start + part for part in parts) for start, parts in zip(starts, names, strict=True))
    return Layer(in_blocks, scheme, starts[scheme] + name)
