"""LongCat-Image: what its transformer and VAE want and give.

Follows diffusers: pipeline_longcat_image.py and pipeline_longcat_image_edit.py. An edit is the same with a reference.

Legend: B batch, C channels (16), h w latent height and width (pixels / 8), S packed tokens, L text tokens, D embedding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...errors import ConfigError
from ...settings.flavours import IMAGE_FAMILY
from ...settings.geometry import latent_sides, picture_tokens, size_of_latents
from ..contract import ModelInputs, TextEncoder
from ..flow import resolution_mu
from .latents import (
    REFERENCE,
    TARGET,
    denormalise,
    image_position_ids,
    normalise,
    pack_latents,
    text_position_ids,
    unpack_latents,
)
from .prompt import encode_prompt

ATTENTION = ["attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"]

LORA_TARGETS = {
    # Linears of attention that read and write picture tokens; single blocks have no to_out.
    "simpletuner": ATTENTION,
    # The edit_lora trainer of meituan-longcat/LongCat-Image: in double blocks all linears but the modulation.
    "official": [
        *ATTENTION,
        "attn.add_q_proj",
        "attn.add_k_proj",
        "attn.add_v_proj",
        "attn.to_add_out",
        "ff.net.0.proj",
        "ff.net.2",
        "ff_context.net.0.proj",
        "ff_context.net.2",
    ],
}


class LongCatImageFamily:
    """The `Family` of LongCat-Image's checkpoints."""

    name = IMAGE_FAMILY
    reads_references = True
    sigma_distribution = "logit-normal"

    def encode_prompt(self, text_encoder: TextEncoder, prompt: str, references: Sequence[Tensor]) -> Tensor:
        """Embeddings of a prompt -> [1, 512, D]; about a reference [1, 3, H, W] -> [1, 514 + vision tokens, D].

        Raises:
            ConfigError: there is more than one reference.
        """
        if len(references) > 1:
            raise ConfigError(
                f"The prompt came with {len(references)} reference pictures; LongCat-Image-Edit was trained with"
                " exactly one. Connect one reference."
            )
        return encode_prompt(text_encoder, prompt, references[0] if references else None)

    @torch.no_grad()
    def encode_pixels(self, vae: Any, pixels: Tensor) -> Tensor:
        """pixels [B, 3, H, W] -> latents [B, C, h, w]: the distribution's mode, normalised, float32."""
        raw_latents = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mode()
        return normalise(raw_latents.float(), vae.config)

    def latents_shape(self, vae_config: Mapping[str, Any], size: tuple[int, int], frames: int) -> tuple[int, ...]:
        """[1, C, h, w] of a picture of `size` (width, height) px; it has no frames."""
        return 1, vae_config["latent_channels"], *latent_sides(size)

    def prepare_inputs(
        self, latents_shape: Sequence[int], prompt_embeds: Tensor, cond_latents: Sequence[Tensor]
    ) -> ModelInputs:
        """Packs the reference [B, C, h', w'] (its own size) and builds the position ids, on `prompt_embeds`' device.

        Raises:
            ConfigError: more than one reference, or sides that are not multiples of 16 px.
        """
        if len(cond_latents) > 1:
            raise ConfigError(f"{len(cond_latents)} references were given; LongCat-Image was trained with one at most.")
        length, device = prompt_embeds.shape[1], prompt_embeds.device
        img_ids = [image_position_ids(TARGET, latents_shape[-2], latents_shape[-1], length)]
        packed_cond_latents = None
        for given in cond_latents:
            packed_cond_latents = pack_latents(given).to(device)
            img_ids.append(image_position_ids(REFERENCE, given.shape[-2], given.shape[-1], length))
        return ModelInputs(
            prompt_embeds=prompt_embeds,
            packed_cond_latents=packed_cond_latents,
            txt_ids=text_position_ids(length).to(device),
            img_ids=torch.cat(img_ids).to(device),
        )

    def predict(self, transformer: Any, latents: Tensor, sigmas: Tensor, inputs: ModelInputs) -> Tensor:
        """Velocity at noisy `latents` [B, C, h, w] and `sigmas` [B] -> [B, C, h, w], float32.

        The released transformer already predicts noise - latents. Reference tokens have the sigma of the noisy ones
        (so do the official trainer and diffusers). `sigmas` stay float32 up to the model, which rounds them itself.
        """
        # The first layer decides what the others compute in; its bias is never quantised nor made float32 by a LoRA.
        # `transformer.dtype` would walk through all modules at each step. Its device may be another while it is unused.
        device, dtype = inputs.prompt_embeds.device, transformer.x_embedder.bias.dtype
        tokens = pack_latents(latents).to(device, dtype)
        target_count = tokens.shape[1]
        if inputs.packed_cond_latents is not None:
            tokens = torch.cat([tokens, inputs.packed_cond_latents.to(device, dtype)], dim=1)
        output = transformer(
            hidden_states=tokens,
            encoder_hidden_states=inputs.prompt_embeds.to(device, dtype),
            timestep=sigmas.to(device),
            img_ids=inputs.img_ids.to(device),
            txt_ids=inputs.txt_ids.to(device),
            return_dict=False,
        )[0]
        return unpack_latents(output[:, :target_count].float(), latents.shape[-2], latents.shape[-1])

    @torch.no_grad()
    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """latents [B, C, h, w] -> pixels [B, 3, H, W] in -1..1, float32."""
        raw_latents = denormalise(latents.float(), vae.config)
        pixels = vae.decode(raw_latents.to(vae.device, vae.dtype), return_dict=False)[0]
        return pixels.float().clamp(-1, 1)

    def flow_shift(self, latents_shape: Sequence[int]) -> float:
        """e^mu of the target's tokens; the reference is not counted."""
        return math.exp(resolution_mu(picture_tokens(size_of_latents(latents_shape))))

    def lora_targets(self, preset: str) -> list[str]:
        """Suffixes for peft: in the released 10 + 20 blocks they select 100 (simpletuner) or 180 (official) linears.

        Raises:
            ConfigError: no such preset.
        """
        if preset not in LORA_TARGETS:
            raise ConfigError(f"lora_target is {preset!r}; it must be one of {', '.join(LORA_TARGETS)}.")
        return list(LORA_TARGETS[preset])
