"""Nodes that sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..training.settings.sampling import SampleConfig, TextToImageConfig, VideoSampleConfig
from .encode import Conditioning
from .host import current_host
from .types import LONGCAT_MODEL, Widget, configured, own_check, socket, widgets

if TYPE_CHECKING:
    from torch import Tensor

    from ..training.loop.stages import Stages
    from ..training.sampling.clips import ClipSample
    from ..training.sampling.pictures import PictureSample
    from ..training.sampling.prompts import Conditioning as EncodedPrompt

VIDEO_SETTINGS = ("width", "height", "num_frames", "num_inference_steps", "guidance_scale", "seed", "distilled")


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

    VALIDATE_INPUTS = own_check(SampleConfig, "width", "height")

    def sample(
        self,
        model: Stages,
        positive: Conditioning,
        negative: Conditioning,
        unique_id: str | None = None,
        **settings: Any,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        from ..training.sampling.pictures import sample_edit

        config = model.fitted(configured(LongCatSampleEdit, SampleConfig, settings))
        prompts = _prompts("LongCatSampleEdit", positive, negative, "EncodeEditPrompt")
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

    VALIDATE_INPUTS = own_check(TextToImageConfig, "width", "height")

    def sample(
        self,
        model: Stages,
        positive: Conditioning,
        negative: Conditioning,
        unique_id: str | None = None,
        **settings: Any,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        from ..training.sampling.pictures import sample_t2i

        config = model.fitted(configured(LongCatSampleT2I, TextToImageConfig, settings))
        prompts = _prompts("LongCatSampleT2I", positive, negative, "LongCatEncodePrompt")
        return _sample(sample_t2i, config, model, prompts, unique_id)


class LongCatSampleT2V:
    """Makes a clip from text."""

    DISPLAY_NAME = "Sample T2V"
    DESCRIPTION = (
        "Samples a clip from text: Euler steps on the released model's own noise levels, CFG-zero* guidance, previews"
        " of the clip's middle. Wire frames and fps into core's Create Video."
    )
    CATEGORY = "LongCat/sampling"
    FUNCTION = "sample"
    RETURN_TYPES = ("IMAGE", "LATENT", "FLOAT")
    RETURN_NAMES = ("frames", "latent", "fps")
    OUTPUT_TOOLTIPS = ("The clip's frames.", "Its latents, as core's VAE Decode takes them.", "Frames per second.")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": _video_inputs(), "hidden": {"unique_id": "UNIQUE_ID"}}

    VALIDATE_INPUTS = own_check(VideoSampleConfig, "width", "height", "num_frames")

    def sample(
        self,
        model: Stages,
        positive: Conditioning,
        negative: Conditioning,
        unique_id: str | None = None,
        **settings: Any,
    ) -> tuple[Tensor, dict[str, Tensor], float]:
        from .images import clip_to_image

        config = model.fitted(configured(LongCatSampleT2V, VideoSampleConfig, settings))
        prompts = _prompts("LongCatSampleT2V", positive, negative, "LongCatEncodePrompt")
        sample = _sample_clip(config, model, prompts, None, unique_id)
        return clip_to_image(sample.pixels), {"samples": sample.raw_latents}, config.fps


class SampleI2V:
    """Makes a clip that begins with a picture."""

    DISPLAY_NAME = "Sample I2V"
    DESCRIPTION = (
        "Samples a clip that begins with a picture, or goes on where another clip ends: Euler steps on the released"
        " model's own noise levels, CFG-zero* guidance, previews of the clip's middle. The start stays as it is, bit"
        " for bit in its latents. Wire frames and fps into core's Create Video."
    )
    CATEGORY = "LongCat/sampling"
    FUNCTION = "sample"
    RETURN_TYPES = ("IMAGE", "LATENT", "FLOAT")
    RETURN_NAMES = ("frames", "latent", "fps")
    OUTPUT_TOOLTIPS = (
        "The clip's frames; after previous_frames, these too.",
        "Latents of the sampled clip, as core's VAE Decode takes them.",
        "Frames per second.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        start = "The picture that the clip begins with; resized to cover the clip's size, and cropped."
        previous = (
            "The frames of a clip to go on from, 13 or more: its last 13 take the place of start_frame, and it gives"
            " the size."
        )
        return {
            "required": _video_inputs() | {"start_frame": socket("IMAGE", start)},
            "optional": {"previous_frames": socket("IMAGE", previous)},
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    VALIDATE_INPUTS = own_check(VideoSampleConfig, "width", "height", "num_frames")

    def sample(
        self,
        model: Stages,
        positive: Conditioning,
        negative: Conditioning,
        start_frame: Tensor,
        previous_frames: Tensor | None = None,
        unique_id: str | None = None,
        **settings: Any,
    ) -> tuple[Tensor, dict[str, Tensor], float]:
        config = model.fitted(configured(SampleI2V, VideoSampleConfig, settings))
        start = _start(config, start_frame, previous_frames)
        prompts = _prompts("SampleI2V", positive, negative, "LongCatEncodePrompt")
        sample = _sample_clip(config, model, prompts, start, unique_id)
        return _with_previous(sample, previous_frames), {"samples": sample.raw_latents}, config.fps


def _sample(
    sampler: Callable[..., PictureSample],
    config: SampleConfig,
    model: Stages,
    prompts: tuple[EncodedPrompt, EncodedPrompt],
    node_id: str | None,
) -> tuple[Tensor, dict[str, Tensor]]:
    from .images import pixels_to_image

    host = current_host()
    with host.work(node_id) as callbacks:
        sample = sampler(config, model.spec, prompts, host.device(), callbacks, host.preview)
    return pixels_to_image(sample.pixels), {"samples": sample.raw_latents}


def _video_inputs() -> dict[str, Widget]:
    return {
        "model": socket(LONGCAT_MODEL, "A LongCat-Video model, with LoRAs on top if you like."),
        "positive": socket("CONDITIONING", "The prompt, from LongCatEncodePrompt."),
        "negative": socket("CONDITIONING", "The negative prompt, from the same node."),
        **widgets(VideoSampleConfig, *VIDEO_SETTINGS),
    }


def _prompts(
    node: str, positive: Conditioning, negative: Conditioning, encoder: str
) -> tuple[EncodedPrompt, EncodedPrompt]:
    """Both inputs of sampler `node`, checked; `encoder` is the node that makes such a conditioning."""
    return _encoded(f"{node}.positive", positive, encoder), _encoded(f"{node}.negative", negative, encoder)


def _start(config: VideoSampleConfig, start_frame: Tensor, previous_frames: Tensor | None) -> Tensor:
    """Pixels that the clip begins with: [1, 3, H, W], or [1, 3, 13, H, W] of the clip before."""
    from ..training.sampling.clips import last_frames, start_pixels
    from .images import image_to_clip, one_picture

    if previous_frames is not None:
        return last_frames(image_to_clip(previous_frames))
    return start_pixels(config, one_picture(start_frame, "SampleI2V.start_frame"))


def _with_previous(sample: ClipSample, previous_frames: Tensor | None) -> Tensor:
    """IMAGE of the sampled clip, or of both clips as one."""
    from ..training.sampling.clips import joined
    from .images import clip_to_image, image_to_clip

    pixels = sample.pixels
    return clip_to_image(pixels if previous_frames is None else joined(image_to_clip(previous_frames), pixels))


def _sample_clip(
    config: VideoSampleConfig,
    model: Stages,
    prompts: tuple[EncodedPrompt, EncodedPrompt],
    start: Tensor | None,
    node_id: str | None,
) -> ClipSample:
    from ..training.sampling.clips import sample_clip

    host = current_host()
    with host.work(node_id) as callbacks:
        return sample_clip(config, model.spec, prompts, start, host.device(), callbacks, host.preview)


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
    from ..training.sampling.prompts import Conditioning as EncodedPrompt

    if len(conditioning) != 1:
        raise ConfigError(f"{where} holds {len(conditioning)} prompts; it must be one, as {encoder} makes it.")
    prompt_embeds, settings = conditioning[0]
    references = settings.get("reference_latents") or []
    if len(references) > 1:
        raise ConfigError(
            f"{where} holds {len(references)} reference pictures; the model was trained with at most one. Make it with"
            f" {encoder}."
        )
    return EncodedPrompt(prompt_embeds=prompt_embeds, raw_cond_latents=references[0] if references else None)


NODES: dict[str, type] = {
    "LongCatSampleEdit": LongCatSampleEdit,
    "LongCatSampleT2I": LongCatSampleT2I,
    "LongCatSampleT2V": LongCatSampleT2V,
    "SampleI2V": SampleI2V,
}
