"""Nodes that turn prompts into conditioning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..training.settings.sampling import SampleConfig
from .host import current_host
from .types import LONGCAT_MODEL, configured, own_check, socket, text, widget

if TYPE_CHECKING:
    from torch import Tensor

    from ..training.loop.stages import Stages
    from ..training.sampling.prompts import Conditioning as EncodedPrompt

Conditioning = list[list[Any]]
"""ComfyUI's own type: `[[prompt_embeds [1, L, D], {"reference_latents": [raw_latents [1, C, h, w]], ...}]]`"""


class EncodeEditPrompt:
    """Encodes an edit instruction together with its reference picture."""

    DISPLAY_NAME = "Encode Edit Prompt"
    DESCRIPTION = (
        "Encodes the instruction and the picture it is about. The outputs are ComfyUI's own conditioning with the"
        " reference latents inside: they fit LongCatSampleEdit, and core's KSampler with a native LongCat-Image model."
    )
    CATEGORY = "LongCat/sampling"
    FUNCTION = "encode"
    RETURN_TYPES = ("CONDITIONING", "CONDITIONING")
    RETURN_NAMES = ("positive", "negative")
    OUTPUT_TOOLTIPS = ("The instruction with its reference.", "The negative prompt with the same reference.")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        size = "Px, a multiple of 16: the size the reference is cropped to; 0: about one megapixel in its own aspect."
        return {
            "required": {
                "model": socket(LONGCAT_MODEL, "The model whose text encoder and VAE encode."),
                "reference": socket("IMAGE", "The picture to be edited; one, not a batch."),
                "prompt": text("The instruction: what to change.", multiline=True),
                "negative_prompt": text("What to avoid; keep it empty for edits.", multiline=True),
                "width": widget(SampleConfig, "width", tooltip=size),
                "height": widget(SampleConfig, "height", tooltip=size),
            },
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    VALIDATE_INPUTS = own_check(SampleConfig, "width", "height")

    def encode(
        self,
        model: Stages,
        reference: Tensor,
        prompt: str,
        negative_prompt: str,
        unique_id: str | None = None,
        **settings: Any,
    ) -> tuple[Conditioning, Conditioning]:
        from ..training.sampling.prompts import encode_edit
        from .images import one_picture

        size = model.fitted(configured(EncodeEditPrompt, SampleConfig, settings))
        picture = one_picture(reference, "EncodeEditPrompt.reference")
        host = current_host()
        with host.work(unique_id) as callbacks:
            encoded = encode_edit(model.spec, picture, (prompt, negative_prompt), size, host.device(), callbacks)
        return _conditioning(encoded[0]), _conditioning(encoded[1])


class LongCatEncodePrompt:
    """Encodes the description of a picture or of a clip."""

    DISPLAY_NAME = "Encode LongCat Prompt"
    DESCRIPTION = (
        "Encodes the description of a picture or of a clip, in Chinese or English. The outputs are ComfyUI's own"
        " conditioning. Those of a LongCat-Image model fit LongCatSampleT2I, and core's KSampler with a native"
        " LongCat-Image model; those of LongCat-Video fit LongCatSampleT2V and SampleI2V."
    )
    CATEGORY = "LongCat/sampling"
    FUNCTION = "encode"
    RETURN_TYPES = ("CONDITIONING", "CONDITIONING")
    RETURN_NAMES = ("positive", "negative")
    OUTPUT_TOOLTIPS = ("The prompt.", "The negative prompt.")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        quotes = " Text that should be written in a picture goes between quotation marks."
        return {
            "required": {
                "model": socket(LONGCAT_MODEL, "The model whose text encoder encodes; any but the edit flavours."),
                "prompt": text(f"What the picture or clip shows, in Chinese or English.{quotes}", multiline=True),
                "negative_prompt": text("What to avoid; may be empty.", multiline=True),
            },
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    def encode(
        self, model: Stages, prompt: str, negative_prompt: str, unique_id: str | None = None
    ) -> tuple[Conditioning, Conditioning]:
        from ..training.sampling.prompts import encode_prompts

        host = current_host()
        with host.work(unique_id) as callbacks:
            encoded = encode_prompts(model.spec, (prompt, negative_prompt), host.device(), callbacks)
        return _conditioning(encoded[0]), _conditioning(encoded[1])


def _conditioning(encoded: EncodedPrompt) -> Conditioning:
    if encoded.raw_cond_latents is None:
        return [[encoded.prompt_embeds, {}]]
    # A dict and a tensor of its own for each output: other nodes may change what they are given.
    reference = {"reference_latents": [encoded.raw_cond_latents.clone()], "reference_latents_method": "index"}
    return [[encoded.prompt_embeds, reference]]


NODES: dict[str, type] = {"EncodeEditPrompt": EncodeEditPrompt, "LongCatEncodePrompt": LongCatEncodePrompt}
