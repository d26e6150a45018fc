"""Text-to-image: from a prompt to a picture.

Legend: see picture.py, which does the work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..config import TextToImageConfig
from ..errors import ConfigError
from ..loop.events import Callbacks
from ..models.family import flavour_of
from ..models.handle import ModelHandle
from .picture import Conditioning, PictureSample, encode_conditioning, sample_picture

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import Tensor


def encode_prompts(
    handle: ModelHandle, prompts: Sequence[str], device: torch.device, callbacks: Callbacks
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
    _check_flavour(handle)
    return encode_conditioning(handle, prompts, None, device, callbacks)


def sample_t2i(
    config: TextToImageConfig,
    handle: ModelHandle,
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
    _check_flavour(handle)
    if flavour_of(handle.config).draws_clips:
        raise ConfigError(
            f"model_family {handle.config.model_family} draws clips. Use LongCatSampleT2V or SampleI2V, or choose"
            " model_family longcat_image in LoadLongCat."
        )
    return sample_picture(config, handle, prompts, config.cfg_renorm, device, callbacks, preview)


def _check_flavour(handle: ModelHandle) -> None:
    flavour = handle.config.model_flavour
    if flavour_of(handle.config).needs_reference:
        raise ConfigError(
            f"model_flavour {flavour} edits a reference picture. Choose final, dev or tiny in LoadLongCat, or use"
            " EncodeEditPrompt and LongCatSampleEdit."
        )
