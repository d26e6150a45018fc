"""Text-to-image: from a prompt to a picture.

Legend: see picture.py, which does the work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from PIL.Image import Image
from torch import Tensor

from ..errors import ConfigError
from ..events import Callbacks
from ..settings.flavours import TEXT_TO_IMAGE, names_of
from ..settings.model import flavour_of
from ..settings.sampling import TextToImageConfig
from ..weights.spec import ModelSpec
from .picture import Conditioning, PictureSample, encode_conditioning, sample_picture


def encode_prompts(
    spec: ModelSpec, prompts: Sequence[str], device: torch.device, callbacks: Callbacks
) -> list[Conditioning]:
    """Encodes descriptions of pictures or clips, in Chinese or English; only the text encoder is loaded.

    The prompt is taken as it is written: the rewriting that the released pipeline does by default is not done.

    Returns:
        One conditioning a prompt, on the CPU, [1, 512, D] each, whatever its length.

    Raises:
        ConfigError: the model's flavour edits.
        ModelError: the model's folder is missing or of another family.
        StoppedByUserError: asked to stop.
    """
    _check_flavour(spec)
    return encode_conditioning(spec, prompts, None, device, callbacks)


def sample_t2i(
    config: TextToImageConfig,
    spec: ModelSpec,
    prompts: tuple[Conditioning, Conditioning],
    device: torch.device,
    callbacks: Callbacks,
    preview: Callable[[Tensor], Image | None],
) -> PictureSample:
    """Samples one picture from text as `sample_picture` does.

    Raises:
        ConfigError: the model's flavour edits or draws clips, or the conditioning does not fit the model.
        ModelError: the model's folder is missing or of another family.
        StoppedByUserError: asked to stop.
    """
    _check_flavour(spec)
    if flavour_of(spec.config).draws_clips:
        raise ConfigError(
            f"model_family {spec.config.model_family} draws clips. Use Sample T2V or Sample I2V, or choose"
            " model_family longcat_image in Load LongCat."
        )
    return sample_picture(config, spec, prompts, config.cfg_renorm, device, callbacks, preview)


def _check_flavour(spec: ModelSpec) -> None:
    flavour = spec.config.model_flavour
    if flavour_of(spec.config).needs_reference:
        raise ConfigError(
            f"model_flavour {flavour} edits a reference picture. Choose {names_of(TEXT_TO_IMAGE)} in Load LongCat,"
            " or use Encode Edit Prompt and Sample Edit."
        )
