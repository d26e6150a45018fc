"""LongCat-Video: what its transformer and VAE want and give. Text-to-video, and with given first frames image-to-video.

Follows longcat_video/pipeline_longcat_video.py of meituan-longcat/LongCat-Video.

Legend: B batch, C channels (16), F frames, H W pixels, T latent frames, h w latent height and width (pixels / 8), n
condition frames (latent frames that are given, at the start), L text tokens, D embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...errors import ConfigError
from ...settings.flavours import VIDEO_FAMILY
from ...settings.geometry import latent_frames, latent_sides, size_of_latents
from ..contract import TextEncoder
from ..flow import VIDEO_SHIFT
from .latents import check_clip, denormalise, normalise
from .prompt import encode_prompt, fill_slots

TIMESTEPS = 1000
"""Timestep of pure noise."""

ATTENTION = ["attn.qkv", "attn.proj", "cross_attn.q_linear", "cross_attn.kv_linear", "cross_attn.proj"]

DEFAULT_PRESET = "simpletuner"
"""Of `TrainingOptions.lora_target`, for all families."""

LORA_TARGETS = {
    # Suffixes with their parent: "proj" alone would also mean the convolution at the transformer's entry, which other
    # programs cannot apply an adapter to.
    "attention": ATTENTION,
    "attention+ffn": [*ATTENTION, "ffn.w1", "ffn.w2", "ffn.w3"],
}


@dataclass(frozen=True, kw_only=True)
class VideoInputs:
    """Everything the transformer gets besides the noisy latents and the noise level: made once per sample or run."""

    prompt_embeds: Tensor
    """[B, 512, D]"""
    prompt_mask: Tensor
    """[B, 512] bool, False for unused slots"""
    cond_latents: Tensor | None = None
    """[B, C, n, h, w], float32, clean: the first frames; None: all frames are denoised."""
    cond_cache: Any = None
    """What the transformer keeps of `cond_latents`; then latents are those of the other frames only."""

    @property
    def num_cond_latents(self) -> int:
        """How many of the first latent frames are given: not noised, not stepped, not in the loss."""
        return 0 if self.cond_latents is None or self.cond_cache is not None else self.cond_latents.shape[2]

    def with_cache(self, transformer: Any) -> VideoInputs:
        """The same with the condition frames computed once for all steps; prompts of one clip can share it."""
        if self.cond_latents is None:
            return self
        return replace(self, cond_cache=transformer.cache_cond_latents(self.cond_latents))


class LongCatVideoFamily:
    """The `Family` of LongCat-Video's checkpoints."""

    name = VIDEO_FAMILY
    reads_references = False
    sigma_distribution = "uniform"

    def encode_prompt(self, text_encoder: TextEncoder, prompt: str, references: Sequence[Tensor]) -> Tensor:
        """Embeddings of a prompt -> [1, 512, D]; the text encoder does not see the start frame."""
        return encode_prompt(text_encoder, prompt)

    @torch.no_grad()
    def encode_pixels(self, vae: Any, pixels: Tensor) -> Tensor:
        """pixels [B, 3, F, H, W], or of a start frame [B, 3, H, W] -> latents [B, C, T, h, w], float32.

        The distribution's mode, normalised. A start frame gets the latents that it would have as a clip's first frame.

        Raises:
            ConfigError: a number of frames that the VAE would shorten, or sides that are not multiples of 16 px.
        """
        clip = pixels.unsqueeze(2) if pixels.ndim == 4 else pixels
        check_clip(clip)
        raw_latents = vae.encode(clip.to(vae.device, vae.dtype)).latent_dist.mode()
        return normalise(raw_latents.float(), vae.config)

    def latents_shape(self, vae_config: Mapping[str, Any], size: tuple[int, int], frames: int) -> tuple[int, ...]:
        """[1, C, T, h, w] of a clip of `size` (width, height) px.

        Raises:
            ConfigError: the VAE would shorten a clip of so many frames.
        """
        return 1, vae_config["z_dim"], latent_frames(frames), *latent_sides(size)

    def prepare_inputs(
        self, latents_shape: Sequence[int], prompt_embeds: Tensor, cond_latents: Sequence[Tensor]
    ) -> VideoInputs:
        """Fills the prompt's slots; `cond_latents` is empty (text-to-video) or holds the first frames [B, C, n, h, w].

        Raises:
            ConfigError: more than one start, or one of another size or as long as the clip.
        """
        prompt_embeds, mask = fill_slots(prompt_embeds)
        if not cond_latents:
            return VideoInputs(prompt_embeds=prompt_embeds, prompt_mask=mask)
        if len(cond_latents) > 1:
            raise ConfigError(f"{len(cond_latents)} start frames were given; a clip has one start. Connect one.")
        _check_start(cond_latents[0].shape, latents_shape)
        start = cond_latents[0].to(prompt_embeds.device, torch.float32)
        return VideoInputs(prompt_embeds=prompt_embeds, prompt_mask=mask, cond_latents=start)

    def predict(self, transformer: Any, latents: Tensor, sigmas: Tensor, inputs: VideoInputs) -> Tensor:
        """Velocity at noisy `latents` [B, C, T, h, w] and `sigmas` [B] -> [B, C, T, h, w], float32.

        The released transformer predicts latents - noise, the opposite sign. Condition frames are put in clean, with
        timestep 0, whatever `latents` hold there; the velocity at them means nothing.
        """
        device, given = inputs.prompt_embeds.device, inputs.num_cond_latents
        latents = latents.to(device)
        timesteps = TIMESTEPS * sigmas.to(device).unsqueeze(1).expand(-1, latents.shape[2])
        if given:
            latents = torch.cat([inputs.cond_latents, latents[:, :, given:]], dim=2)
            timesteps = torch.cat([torch.zeros_like(timesteps[:, :given]), timesteps[:, given:]], dim=1)
        output = transformer(
            hidden_states=latents,
            timestep=timesteps,
            encoder_hidden_states=inputs.prompt_embeds,
            encoder_attention_mask=inputs.prompt_mask,
            num_cond_latents=given,
            cond_cache=inputs.cond_cache,
        )
        return -output.float()

    @torch.no_grad()
    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """latents [B, C, T, h, w] -> pixels [B, 3, F, H, W] in -1..1, float32; in tiles, one sample after another."""
        raw_latents = denormalise(latents.float(), vae.config).to(vae.device, vae.dtype)
        # Encoding in tiles would change the latents, so that a start frame were no longer the clip's first one.
        vae.enable_tiling()
        vae.enable_slicing()
        try:
            pixels = vae.decode(raw_latents, return_dict=False)[0]
        finally:
            vae.disable_tiling()
            vae.disable_slicing()
        return pixels.float().clamp(-1, 1)

    def flow_shift(self, latents_shape: Sequence[int]) -> float:
        """12, for all sizes and lengths."""
        return VIDEO_SHIFT

    def lora_targets(self, preset: str) -> list[str]:
        """Suffixes for peft: in the released 48 blocks they select 240 (attention) or 384 (attention+ffn) linears.

        Raises:
            ConfigError: no such preset.
        """
        if preset == DEFAULT_PRESET:
            preset = "attention"
        if preset not in LORA_TARGETS:
            raise ConfigError(f"lora_target is {preset!r}; it must be one of {', '.join(LORA_TARGETS)}.")
        return list(LORA_TARGETS[preset])


def _check_start(start: Sequence[int], latents: Sequence[int]) -> None:
    batch, _, frames, *sides = start
    if (batch, *sides) != (latents[0], *latents[-2:]):
        (width, height), (video_width, video_height) = size_of_latents(start), size_of_latents(latents)
        raise ConfigError(
            f"The start is {width}x{height} px for {batch} clips, the video {video_width}x{video_height} px for"
            f" {latents[0]}. Give it the size of the video."
        )
    if frames >= latents[2]:
        raise ConfigError(
            f"The start has {frames} latent frames, the video {latents[2]}: nothing is left to denoise. Ask for more"
            " frames."
        )
