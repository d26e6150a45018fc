"""An edit: from a reference picture and an instruction to an edited picture.

Legend: see picture.py, which does the work.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from PIL.Image import Image
from torch import Tensor

from ..data.media import to_pixels
from ..errors import ConfigError
from ..events import Callbacks
from ..settings.flavours import EDIT, names_of
from ..settings.geometry import MEGAPIXEL_SIDE, PIXELS_PER_TOKEN
from ..settings.model import flavour_of
from ..settings.sampling import SampleConfig
from ..weights.spec import ModelSpec
from .picture import Conditioning, PictureSample, encode_conditioning, sample_picture

EDIT_AREA = MEGAPIXEL_SIDE**2
"""Px; area that the released edit pipeline brings every reference to."""


def edit_size(width: int, height: int) -> tuple[int, int]:
    """(width, height) in px of about one megapixel in the aspect of `width` x `height`, each rounded up to 16.

    Follows diffusers: pipeline_longcat_image_edit.py calculate_dimensions.
    """
    ratio = width / height
    wide = math.sqrt(EDIT_AREA * ratio)
    return _round_up(wide), _round_up(wide / ratio)


def encode_edit(
    spec: ModelSpec,
    reference: Image,
    prompts: Sequence[str],
    size: SampleConfig,
    device: torch.device,
    callbacks: Callbacks,
) -> list[Conditioning]:
    """Encodes prompts about one reference; the text encoder is released before the VAE is loaded.

    Args:
        spec: the model.
        reference: RGB; cover-resized and centre-cropped to `size`, as the trainer does.
        prompts: each may be empty.
        size: width and height in px; 0 for both: `edit_size` of the reference.
        device: where the components run.
        callbacks: asked between the two components whether to stop.

    Returns:
        One conditioning a prompt, on the CPU; all with the same `raw_cond_latents`.

    Raises:
        ConfigError: the model's flavour does not edit.
        ModelError: the model's folder is missing or of another family.
        StoppedByUserError: asked to stop.
    """

    _check_flavour(spec)
    width_height = (size.width, size.height) if size.width else edit_size(*reference.size)
    return encode_conditioning(spec, prompts, to_pixels(reference, width_height), device, callbacks)


def sample_edit(
    config: SampleConfig,
    spec: ModelSpec,
    prompts: tuple[Conditioning, Conditioning],
    device: torch.device,
    callbacks: Callbacks,
    preview: Callable[[Tensor], Image | None],
) -> PictureSample:
    """Samples one edit as `sample_picture` does, without renormalised guidance, which the released pipeline lacks.

    Args:
        config: a size of 0 is that of the reference.
        spec, device, callbacks, preview: as `sample_picture` takes them.
        prompts: the instruction and the negative prompt, both with the reference.

    Raises:
        ConfigError: the model's flavour does not edit, or the conditioning does not fit the model.
        ModelError: the model's folder is missing or of another family.
        StoppedByUserError: asked to stop.
    """
    _check_flavour(spec)
    return sample_picture(config, spec, prompts, False, device, callbacks, preview)


def _check_flavour(spec: ModelSpec) -> None:
    flavour = spec.config.model_flavour
    if not flavour_of(spec.config).needs_reference:
        raise ConfigError(
            f"model_flavour {flavour} draws from text and cannot edit. Choose {names_of(EDIT)} in Load LongCat, or use"
            " Encode LongCat Prompt and Sample T2I."
        )


def _round_up(side: float) -> int:
    return math.ceil(side / PIXELS_PER_TOKEN) * PIXELS_PER_TOKEN
