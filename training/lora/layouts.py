"""Key names of LoRA files: every layout in the wild is read into the model's own module names, several are written.

A key is `<prefix><module>.<part>`. Dots and underscores in prefix and module mean the same here (families.py); so one
table a family reads them all:

    family  prefix                                  module names      written by
    image   `transformer.` or none                  diffusers         this trainer, SimpleTuner, diffusers
            `base_model.model.`                     diffusers         peft, the official trainers
            `diffusion_model.`                      diffusers         SimpleTuner (comfyui format)
            `lora_transformer_`                     diffusers         OneTrainer
            `lycoris_`                              diffusers         LyCORIS (plain LoRA only)
            `lora_unet_`, `unet.`                   diffusers         rare
            `diffusion_model.` or none, `lora_unet_`  native (joined)  ComfyUI's own names, kohya's scripts
    video   `diffusion_model.`                      official          this trainer
            `transformer.` or none                  official          SimpleTuner, diffusers' way
            `lora___lorahyphen___`                  official          meituan-longcat
            `diffusion_model.`                      the wrapper's     trainers of Wan's kind (q, k, v apart)
            none                                    FastVideo's       FastVideo's converter (q, k, v apart)

Where a file leaves room for doubt:
- Prefixes decide neither the family nor the scheme of names: the module's name does. There may be several, in any
  order, also what PyTorch puts before a compiled or parallel model or block (families.WRAPPERS).
- A name between `lora_A` and `weight` is that of the adapter in its program (`default` is peft's); one file has one.
- A joined module (query, key, value and more on dim 0) becomes one adapter a part, or parts one adapter of the joined
  module, as the model has it; nothing is rounded.
- A module that is of no family keeps its dotted name, so that `apply_lora` can name it beside the model's.
- Two adapters for one module (bare and prefixed, or joined and split) are an error, as neither can be left out.
- Scales: see scale.py.
- SimpleTuner trains LongCat-Video towards noise - x0, though the model's output estimates x0 - noise. Its files have
  the same names as those of `transformer.` above and hold no sign of that, so they are read as they are: such a LoRA
  turns the model's output round at any positive strength.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import LoraFileError
from .families import FAMILIES, HYPHEN, OFFICIAL, LoraFamily, Names, family_of_modules, find_layer
from .regroup import LoraWeights, diagonal_blocks, regroup

PARTS = {
    "lora_A.weight": "a",
    "lora_A": "a",
    "lora_down.weight": "a",
    "lora.down.weight": "a",
    "lora_linear_layer.down.weight": "a",
    "lora_B.weight": "b",
    "lora_B": "b",
    "lora_up.weight": "b",
    "lora.up.weight": "b",
    "lora_linear_layer.up.weight": "b",
    "alpha": "alpha",
    "lora_alpha": "alpha",
    "alpha_scale": "scale",
}
"""End of a key -> what it holds: a [r, in], b [out, r], alpha [] (scale times rank), scale []."""

UP_BLOCKS = "lora_up.blocks."
"""LongCat-Video's own: `lora_up.blocks.0.weight` [out / s, r / s] and so on are the blocks of a block-diagonal b."""

_KEY = re.compile(
    rf"(?P<module>.+?)(?:(?:\.|_(?=lora\.))(?P<end>{'|'.join(map(re.escape, PARTS))})"
    rf"|\.{re.escape(UP_BLOCKS)}(?P<block>[0-9]+)\.weight|\.(?P<named>lora_[AB])\.(?P<adapter>[^.]+)\.weight)"
)

OTHER_ADAPTERS = {
    ".hada_": "a LoHa",
    ".lokr_": "a LoKr",
    ".oft_": "an OFT",
    ".dora_scale": "a DoRA",
    ".lora_magnitude_vector": "a DoRA",
}
"""Part of a key -> the kind of adapter it gives away; none of them is the product of two matrices."""

LONGEST_NAME = 100
"""Letters of a name in a message."""

DIAGONALS = (6, 3, 2)
"""Blocks that official files have: of a modulation's six parts, of query, key and value, of key and value."""


@dataclass(frozen=True)
class Key:
    """A key of a file, taken apart."""

    module: str
    part: str
    """As `PARTS` has it; `b.<number>` for a block of b."""
    adapter: str
    """Its name in the program that saved it; empty if the file has none."""


def split_key(key: str) -> Key | None:
    """None: it ends like no LoRA's."""
    found = _KEY.fullmatch(key)
    if found is None:
        return None
    module = found["module"]
    if module.startswith(f"lora{HYPHEN}"):
        module = module.removeprefix(f"lora{HYPHEN}").replace(HYPHEN, ".")
    if found["block"]:
        return Key(module, f"b.{found['block']}", "")
    if found["named"]:
        return Key(module, PARTS[found["named"]], found["adapter"])
    return Key(module, PARTS[found["end"]], "")


def check_modules(path: Path, names: Collection[str]) -> LoraFamily:
    """The family of a LoRA whose every module is known.

    Raises:
        LoraFileError: naming modules of no family, or not of the one that the others are of.
    """
    family = family_of_modules(names)
    unknown = [name for name in names if family is None or not _is_own(family, name)]
    if family is None or unknown:
        models = [family] if family else FAMILIES
        raise LoraFileError(
            f"{len(unknown)} of {len(names)} modules of {path} are not {_titles(models)}'s."
            f" In the file: {examples(unknown)}; in the model: {some_modules(models)}."
            " The LoRA was made for another model."
        )
    return family


def _is_own(family: LoraFamily, name: str) -> bool:
    layer = find_layer(family, name)
    return layer is not None and name in layer.names[0]


def tensors_in(family: LoraFamily, layout: str, weights: Mapping[str, LoraWeights]) -> dict[str, Tensor]:
    """The tensors of a file in one of the family's layouts, all of scale 1.

    Args:
        weights: by the model's own names; all of the family (`check_modules`) unless the layout has these names.

    Raises:
        ValueError: a joined linear has other rows than its parts.
    """
    spelling = family.layouts[layout]
    named = weights if spelling.scheme == 0 else in_scheme(family, spelling.scheme, weights)
    tensors = {}
    for name, pair in named.items():
        start = spelling.prefix + name.replace(".", spelling.dot)
        tensors[f"{start}.{spelling.ends[0]}"] = pair.a
        tensors[f"{start}.{spelling.ends[1]}"] = pair.b
        if spelling.alpha is not None:
            tensors[f"{start}.{spelling.alpha}"] = torch.tensor(float(pair.a.shape[0]))
    return _as_official(tensors, spelling.ends) if layout == OFFICIAL else tensors


def in_scheme(family: LoraFamily, scheme: int, weights: Mapping[str, LoraWeights]) -> dict[str, LoraWeights]:
    """Adapters by the names of another scheme, those of joined linears made exactly, whatever their ranks.

    Args:
        weights: by the model's own names; all of the family (`check_modules`).

    Raises:
        ValueError: a joined linear has other rows than its parts.
    """
    layers = [layer for layer in (find_layer(family, name) for name in weights) if layer is not None]
    found = {}
    for names in sorted({layer.names for layer in layers}, key=lambda names: names[scheme]):
        found.update(regroup(family, weights, names[0], names[scheme]))
    return found


def own_names(path: Path, modules: Mapping[str, LoraWeights], family: LoraFamily) -> dict[str, LoraWeights]:
    """Adapters by the model's own names, from those by the names in the file `path`; unknown ones are left out.

    Raises:
        LoraFileError: a module is given twice, or B has other rows than a joined module.
    """
    groups: dict[tuple[Names, int], dict[str, LoraWeights]] = {}
    origins: dict[str, str] = {}
    for module, weights in modules.items():
        layer = find_layer(family, module)
        if layer is None:
            continue
        if layer.name in origins:
            raise _twice(path, [layer.name], module)
        origins[layer.name] = module
        groups.setdefault((layer.names, layer.scheme), {})[layer.name] = weights
    found: dict[str, LoraWeights] = {}
    for (names, scheme), group in groups.items():
        first = next(iter(group))
        try:
            regrouped = regroup(family, group, names[scheme], names[0])
        except ValueError as error:
            raise LoraFileError(
                f"{path}: {error}, for an input of {group[first].a.shape[1]}. The LoRA was made for another model."
            ) from error
        if twice := found.keys() & regrouped.keys():
            raise _twice(path, twice, origins[first])
        found.update(regrouped)
    return found


def _twice(path: Path, names: Iterable[str], module: str) -> LoraFileError:
    return LoraFileError(
        f"{path} holds {examples(names)} twice, the second time as {module}; it is unknown which one is meant."
        " Remove one of them, or train the LoRA again."
    )


def some_modules(families: Iterable[LoraFamily] = FAMILIES) -> str:
    """A few module names of each family, for messages."""
    return ", ".join(name for family in families for name in family.examples) + ", ..."


def examples(names: Iterable[str], limit: int = 3) -> str:
    """The first few of `names`, for a message; nobody reads a name of a thousand letters."""
    found = sorted(names)
    return ", ".join(name[:LONGEST_NAME] for name in found[:limit]) + (", ..." if len(found) > limit else "")


def _titles(families: Iterable[LoraFamily]) -> str:
    return " or ".join(family.title for family in families)


def _as_official(tensors: Mapping[str, Tensor], ends: tuple[str, str]) -> dict[str, Tensor]:
    """With b in blocks where it is block-diagonal, and every module filled up to one rank.

    The official loader (longcat_video/modules/lora_utils.py) counts the blocks in the file, but has one rank for all
    modules.
    """
    adapters = {}
    for key, a in tensors.items():
        if not key.endswith(f".{ends[0]}"):
            continue
        name = key.removesuffix(f".{ends[0]}")
        weights = LoraWeights(a=a, b=tensors[f"{name}.{ends[1]}"])
        found = (diagonal_blocks(weights, count) for count in DIAGONALS)
        blocks = next((blocks for blocks in found if blocks), [weights.b])
        adapters[name] = (a.chunk(len(blocks)), blocks)
    rank = max(up.shape[1] for _, blocks in adapters.values() for up in blocks)
    pad = torch.nn.functional.pad
    official = {}
    for name, (downs, ups) in adapters.items():
        official[f"{name}.alpha_scale"] = torch.tensor(1.0)
        official[f"{name}.{ends[0]}"] = torch.cat([pad(down, (0, 0, 0, rank - down.shape[0])) for down in downs])
        for number, up in enumerate(ups):
            end = ends[1] if len(ups) == 1 else f"{UP_BLOCKS}{number}.weight"
            official[f"{name}.{end}"] = pad(up, (0, rank - up.shape[1]))
    return official
