"""Nodes that sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..training.config import SampleConfig, TextToImageConfig
from ..training.models.handle import ModelHandle
from .encode import Conditioning
from .host import current_host
from .types import LONGCAT_MODEL, socket, widgets

if TYPE_CHECKING:
    from torch import Tensor

    from ..training.sampling.picture import Conditioning as EncodedPrompt
    from ..training.sampling.picture import PictureSample


class LongCatSampleEdit:
    """Draws the edited picture."""

    DISPLAY_NAME = "Sample Edit"
    DESCRIPTION = "Samples an edit: Euler steps on the released model's own schedule, with guidance and previews."
    CATEGORY = "LongCat/sampling"
    FUNCTION = "sample"
    RETURN_TYPES = ("IMAGE", "LATENT")
    RETURN_NAMES = ("image", "latent")
    OUTPUT_TOOLTIPS = ("The edited picture.", "Its latents, as core's VAE Decode takes them.")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": socket(LONGCAT_MODEL, "The model, with LoRAs on top if you like."),
                "positive": socket("CONDITIONING", "The instruction, from EncodeEditPrompt."),
                "negative": socket("CONDITIONING", "The negative prompt with the same reference, from the same node."),
                **widgets(SampleConfig, "width", "height", "num_inference_steps", "guidance_scale", "seed"),
            },
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    def sample(
        self,
        model: ModelHandle,
        positive: Conditioning,
        negative: Conditioning,
        width: int,
        height: int,
        num_inference_steps: int,
        guidance_scale: float,
        seed: int,
        unique_id: str | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        from ..training.sampling.edit import sample_edit

        config = SampleConfig(
            width=width,
            height=height,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            seed=seed,
        )
        prompts = tuple(
            _encoded(f"LongCatSampleEdit.{name}", conditioning, "EncodeEditPrompt")
            for name, conditioning in (("positive", positive), ("negative", negative))
        )
        return _sample(sample_edit, config, model, prompts, unique_id)


class LongCatSampleT2I:
    """Draws a picture from text."""

    DISPLAY_NAME = "Sample T2I"
    DESCRIPTION = (
        "Samples a picture from text: Euler steps on the released model's own schedule, with guidance and previews."
    )
    CATEGORY = "LongCat/sampling"
    FUNCTION = "sample"
    RETURN_TYPES = ("IMAGE", "LATENT")
    RETURN_NAMES = ("image", "latent")
    OUTPUT_TOOLTIPS = ("The picture.", "Its latents, as core's VAE Decode takes them.")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        settings = ("width", "height", "num_inference_steps", "guidance_scale", "seed", "cfg_renorm")
        return {
            "required": {
                "model": socket(LONGCAT_MODEL, "The model (final, dev or tiny), with LoRAs on top if you like."),
                "positive": socket("CONDITIONING", "The prompt, from LongCatEncodePrompt."),
                "negative": socket("CONDITIONING", "The negative prompt, from the same node."),
                **widgets(TextToImageConfig, *settings),
            },
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    def sample(
        self,
        model: ModelHandle,
        positive: Conditioning,
        negative: Conditioning,
        width: int,
        height: int,
        num_inference_steps: int,
        guidance_scale: float,
        seed: int,
        cfg_renorm: bool,
        unique_id: str | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        from ..training.sampling.t2i import sample_t2i

        config = TextToImageConfig(
            width=width,
            height=height,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            seed=seed,
            cfg_renorm=cfg_renorm,
        )
        prompts = tuple(
            _encoded(f"LongCatSampleT2I.{name}", conditioning, "LongCatEncodePrompt")
            for name, conditioning in (("positive", positive), ("negative", negative))
        )
        return _sample(sample_t2i, config, model, prompts, unique_id)


def _sample(
    sampler: Callable[..., PictureSample],
    config: SampleConfig,
    model: ModelHandle,
    prompts: tuple[EncodedPrompt, ...],
    node_id: str | None,
) -> tuple[Tensor, dict[str, Tensor]]:
    from .images import pixels_to_image

    host = current_host()
    with host.heavy_work():
        sample = sampler(config, model, prompts, host.device(), host.callbacks(node_id), host.preview)
    return pixels_to_image(sample.pixels), {"samples": sample.raw_latents}


def _encoded(where: str, conditioning: Conditioning, encoder: str) -> EncodedPrompt:
    """ComfyUI's conditioning, checked.

    Args:
        where: node and input.
        conditioning: one prompt with at most one reference.
        encoder: id of the node that makes such a conditioning.

    Raises:
        ConfigError: several prompts in one, or several references.
    """
    from ..training.errors import ConfigError
    from ..training.sampling.picture import Conditioning as EncodedPrompt

    if len(conditioning) != 1:
        raise ConfigError(f"{where} holds {len(conditioning)} prompts; it must be one, as {encoder} makes it.")
    prompt_embeds, settings = conditioning[0]
    references = settings.get("reference_latents") or []
    if len(references) > 1:
        raise ConfigError(
            f"{where} holds {len(references)} reference pictures; the model was trained with at most one. Make it with"
            f" {encoder}."
        )
    return EncodedPrompt(prompt_embeds=prompt_embeds, raw_ref_latents=references[0] if references else None)


NODES: dict[str, type] = {"LongCatSampleEdit": LongCatSampleEdit, "LongCatSampleT2I": LongCatSampleT2I}
