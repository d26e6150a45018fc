"""Nodes that sample."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..training.config import SampleConfig
from ..training.models.handle import ModelHandle
from .encode import Conditioning
from .host import current_host
from .types import LONGCAT_MODEL, socket, widgets

if TYPE_CHECKING:
    from torch import Tensor

    from ..training.sampling.edit import EditConditioning


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
        config = SampleConfig(
            width=width,
            height=height,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            seed=seed,
        )
        prompts = _conditioning("positive", positive), _conditioning("negative", negative)
        return _sample(config, model, prompts, unique_id)


def _sample(
    config: SampleConfig,
    model: ModelHandle,
    prompts: tuple[EditConditioning, EditConditioning],
    node_id: str | None,
) -> tuple[Tensor, dict[str, Tensor]]:
    from ..training.sampling.edit import sample_edit
    from .images import pixels_to_image

    host = current_host()
    with host.heavy_work():
        sample = sample_edit(config, model, *prompts, host.device(), host.callbacks(node_id), host.preview)
    return pixels_to_image(sample.pixels), {"samples": sample.raw_latents}


def _conditioning(name: str, conditioning: Conditioning) -> EditConditioning:
    """ComfyUI's conditioning, checked.

    Raises:
        ConfigError: several prompts in one, or not exactly one reference.
    """
    from ..training.errors import ConfigError
    from ..training.sampling.edit import EditConditioning

    where = f"LongCatSampleEdit.{name}"
    if len(conditioning) != 1:
        raise ConfigError(f"{where} holds {len(conditioning)} prompts; it must be one, as EncodeEditPrompt makes it.")
    prompt_embeds, settings = conditioning[0]
    references = settings.get("reference_latents") or []
    if len(references) != 1:
        raise ConfigError(
            f"{where} holds {len(references)} reference pictures; an edit needs exactly one. Make it with"
            " EncodeEditPrompt and wire the picture into its reference input."
        )
    return EditConditioning(prompt_embeds=prompt_embeds, raw_ref_latents=references[0])


NODES: dict[str, type] = {"LongCatSampleEdit": LongCatSampleEdit}
