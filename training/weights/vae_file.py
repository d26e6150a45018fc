"""The VAE of Flux.1 from ComfyUI's `ae.safetensors`: its two layouts, and the config its tensors imply."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ModelError
from .loading import misfit
from .tensor_file import Shapes, what_it_holds

if TYPE_CHECKING:
    from torch import Tensor

ORIGINAL = "original"
DIFFUSERS = "diffusers"

PREFIXES = ("first_stage_model.", "vae.")

RESNETS = {
    ORIGINAL: r"encoder\.down\.(\d)\.block\.(\d)\.conv1\.weight",
    DIFFUSERS: r"encoder\.down_blocks\.(\d)\.resnets\.(\d)\.conv1\.weight",
}

LATENT_CHANNELS = 16
SCALING_FACTOR = 0.3611
SHIFT_FACTOR = 0.1159
"""Of Flux.1's VAE, which LongCat-Image uses (Comfy-Org/ComfyUI: comfy/latent_formats.py Flux). No tensor holds them;
the VAE of Stable Diffusion 3 has other values and the same names and shapes, so it cannot be recognised here."""

NORM_GROUPS = 32


def vae_layout(shapes: Shapes) -> str | None:
    """ORIGINAL or DIFFUSERS by the encoder's first tensors; None if there is no such encoder."""
    names = vae_names(shapes)
    return next((layout for layout, first in RESNETS.items() if any(re.fullmatch(first, name) for name in names)), None)


def vae_names(shapes: Shapes) -> dict[str, str]:
    """Name without prefix -> name in the file, of the VAE's tensors."""
    prefix = next((prefix for prefix in PREFIXES if any(name.startswith(prefix) for name in shapes)), "")
    own = {name.removeprefix(prefix): name for name in shapes if name.startswith(prefix)}
    return {name: in_file for name, in_file in own.items() if name.startswith(("encoder.", "decoder.", "quant_conv."))}


def vae_config(shapes: Shapes, path: Path) -> dict[str, Any]:
    """Arguments of diffusers' AutoencoderKL.

    Args:
        shapes: by name in the file.

    Raises:
        ModelError: another model, or a VAE of other latents.
    """
    names, layout = vae_names(shapes), vae_layout(shapes)
    ends = ("encoder.conv_in.weight", "decoder.conv_in.weight")
    if layout is None or any(end not in names for end in ends):
        raise _refusal(path, what_it_holds(shapes))
    end_shapes = [shapes[names[end]] for end in ends]
    if any(len(shape) != 4 for shape in end_shapes):
        raise misfit(path, f"{' and '.join(ends)} are {' and '.join(str(list(shape)) for shape in end_shapes)}")
    latent_channels = end_shapes[1][1]
    if latent_channels != LATENT_CHANNELS or "quant_conv.weight" in names:
        raise _refusal(path, f"a VAE with {latent_channels} latent channels of another model family")
    resnets = [found for name in names if (found := re.fullmatch(RESNETS[layout], name))]
    if any(len(shapes[names[found[0]]]) != 4 for found in resnets):
        raise misfit(path, "its convolutions have other shapes than those of pictures")
    widths = {int(found[1]): shapes[names[found[0]]][0] for found in resnets}
    return {
        "in_channels": end_shapes[0][1],
        "out_channels": end_shapes[0][1],
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "block_out_channels": [width for _, width in sorted(widths.items())],
        "layers_per_block": 1 + max(int(found[2]) for found in resnets),
        "norm_num_groups": NORM_GROUPS,
        "latent_channels": latent_channels,
        "sample_size": 1024,
        "scaling_factor": SCALING_FACTOR,
        "shift_factor": SHIFT_FACTOR,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    }


def to_diffusers(weights: Mapping[str, Tensor], layout: str, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The VAE's tensors under diffusers' names; `weights` by `vae_names`."""
    if layout == DIFFUSERS:
        return dict(weights)
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    return convert_ldm_vae_checkpoint(dict(weights), config)


def _refusal(path: Path, found: str) -> ModelError:
    return ModelError(
        f"{path} is no VAE of LongCat-Image: it holds {found}. Choose Flux.1's VAE, in ComfyUI ae.safetensors, with"
        f" {LATENT_CHANNELS} latent channels."
    )
