"""LongCat-Video's transformer (longcat_video/modules/longcat_video_dit.py of meituan-longcat/LongCat-Video).

Its output points from noise to data, `latents - noise`: the opposite sign of LongCat-Image's.

Legend: B batch, C_in C_out latent channels (16), T latent frames, H W latent height and width (pixels / 8), h w tokens
of a frame (latents / 2), N = T h w tokens, S prompt slots, E width of the prompt's embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from ...errors import ConfigError, ModelError
from ...settings.geometry import PIXELS_PER_LATENT
from .attention import KeyValues, prompt_rows
from .blocks import BlockInputs, FinalLayer, LongCatVideoBlock, PatchEmbedder, PromptEmbedder, TimestepEmbedder
from .rope import Rotation, rotation_of_grid

CondCache = Sequence[KeyValues]
"""One entry a block."""

KERNEL_CHOICES = (
    "enable_flashattn2",
    "enable_flashattn3",
    "enable_xformers",
    "enable_bsa",
    "bsa_params",
    "cp_split_hw",
)
"""Entries of the released config.json that choose how the official code computes attention, not what."""


class LongCatVideoTransformer3DModel(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """The 13.6 B transformer; defaults are those of the released config.json.

    Args:
        in_channels, out_channels: of the latents.
        hidden_size, depth, num_heads: width, blocks, attention heads.
        caption_channels: width of the prompt's embeddings.
        mlp_ratio: see `inner_width`.
        adaln_tembed_dim, frequency_embedding_size: widths of the timestep's embedding.
        patch_size: latents in a token: frames (always 1), rows, columns.
        text_tokens_zero_pad: padded prompt slots are attended, as zeros. Else they are not attended.

    Raises:
        ModelError: the sizes do not fit together.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["LongCatVideoBlock"]
    _repeated_blocks = ["LongCatVideoBlock"]

    @register_to_config
    def __init__(  # noqa: PLR0913 (config.json's entries)
        self,
        in_channels: int = 16,
        out_channels: int = 16,
        hidden_size: int = 4096,
        depth: int = 48,
        num_heads: int = 32,
        caption_channels: int = 4096,
        mlp_ratio: float = 4,
        adaln_tembed_dim: int = 512,
        frequency_embedding_size: int = 256,
        patch_size: Sequence[int] = (1, 2, 2),
        text_tokens_zero_pad: bool = True,
    ) -> None:
        super().__init__()
        _check_sizes(hidden_size, num_heads, patch_size)
        self.gradient_checkpointing = False
        _, rows, columns = patch_size
        self.x_embedder = PatchEmbedder(in_channels, hidden_size, tuple(patch_size))
        self.t_embedder = TimestepEmbedder(adaln_tembed_dim, frequency_embedding_size)
        self.y_embedder = PromptEmbedder(caption_channels, hidden_size)
        self.blocks = nn.ModuleList(
            LongCatVideoBlock(hidden_size, num_heads, mlp_ratio, adaln_tembed_dim) for _ in range(depth)
        )
        self.final_layer = FinalLayer(hidden_size, rows * columns * out_channels, adaln_tembed_dim)

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> tuple[dict, dict, dict]:
        """diffusers' hook; would otherwise warn about the released config.json, which is in order."""
        known = {name: value for name, value in config_dict.items() if name not in KERNEL_CHOICES}
        return super().extract_init_dict(known, **kwargs)

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor | None = None,
        num_cond_latents: int = 0,
        cond_cache: CondCache | None = None,
    ) -> Tensor:
        """The direction from noise to data, `latents - noise`; what it gives for condition frames means nothing.

        Args:
            hidden_states: noisy latents [B, C_in, T, H, W], condition frames clean and first.
            timestep: [B], or [B, T] with 0 for condition frames; on the scale 0..1000.
            encoder_hidden_states: prompt embeddings [B, S, E]; all S slots of the training (512), padded ones too.
            encoder_attention_mask: [B, S], 0 for padded slots. None: no slot is padding.
            num_cond_latents: how many frames of `hidden_states` are condition frames.
            cond_cache: from `cache_cond_latents`, instead of condition frames in `hidden_states`.

        Returns:
            [B, C_out, T, H, W], float32.

        Raises:
            ConfigError: shapes that the model cannot compute on.
        """
        self._check_latents(hidden_states, timestep)
        self._check_prompt(hidden_states, encoder_hidden_states, encoder_attention_mask)
        self._check_condition(hidden_states, num_cond_latents, cond_cache)
        dtype = self.compute_dtype
        prompt = prompt_rows(encoder_hidden_states.to(dtype), encoder_attention_mask, self.config.text_tokens_zero_pad)
        text = self.y_embedder(prompt.embeds)
        if prompt.keep is not None:
            text = text * prompt.keep.unsqueeze(-1)
        cached_latents = self._frames_in(cond_cache, hidden_states) if cond_cache else 0
        inputs = BlockInputs(
            temb=self._embed_timestep(timestep, hidden_states.shape[2]),
            text=text,
            text_bias=prompt.bias,
            rotation=self._rotation(hidden_states, cached_latents),
            num_cond_latents=num_cond_latents,
        )
        x = self.x_embedder(hidden_states.to(dtype))
        for number, block in enumerate(self.blocks):
            cached = cond_cache[number] if cond_cache else None
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                x = self._gradient_checkpointing_func(block, x, inputs, cached)
            else:
                x = block(x, inputs, cached)
        return self._unpatchify(self.final_layer(x, inputs.temb), hidden_states)

    @torch.no_grad()
    def cache_cond_latents(self, latents: Tensor) -> list[KeyValues]:
        """Computes clean condition frames [1 or B, C_in, T, H, W] once, for all steps of a sampling.

        They see neither the prompt nor what is being denoised, so they are the same at every step.

        Raises:
            ConfigError: as `forward`.
        """
        timestep = latents.new_zeros(latents.shape[0])
        self._check_latents(latents, timestep)
        inputs = BlockInputs(
            temb=self._embed_timestep(timestep, latents.shape[2]),
            text=None,
            text_bias=None,
            rotation=self._rotation(latents),
            num_cond_latents=0,
        )
        kept: list[KeyValues] = []
        x = self.x_embedder(latents.to(self.compute_dtype))
        for block in self.blocks:
            x = block(x, inputs, kept=kept)
        return kept

    @property
    def compute_dtype(self) -> torch.dtype:
        """Of the tokens; the first layer decides it, as it is never quantised nor adapted."""
        return self.x_embedder.proj.weight.dtype

    def _embed_timestep(self, timestep: Tensor, frames: int) -> Tensor:
        """[B] or [B, T] -> [B, T, A]; rounded to the model's dtype first, as in the official code."""
        per_frame = timestep if timestep.ndim == 2 else timestep.unsqueeze(1).expand(-1, frames)
        return self.t_embedder(per_frame.to(self.compute_dtype))

    def _rotation(self, latents: Tensor, frames_before: int = 0) -> Rotation:
        height, width = self._grid(latents)
        head_dim = self.config.hidden_size // self.config.num_heads
        return rotation_of_grid(frames_before + latents.shape[2], height, width, head_dim, latents.device)

    def _grid(self, latents: Tensor) -> tuple[int, int]:
        """Rows and columns of tokens in a frame."""
        _, rows, columns = self.config.patch_size
        return latents.shape[3] // rows, latents.shape[4] // columns

    def _frames_in(self, cache: CondCache, latents: Tensor) -> int:
        height, width = self._grid(latents)
        return cache[0].keys.shape[2] // (height * width)

    def _unpatchify(self, patches: Tensor, latents: Tensor) -> Tensor:
        """[B, N, rows x columns x C_out] -> [B, C_out, T, H, W]"""
        _, rows, columns = self.config.patch_size
        grid = patches.unflatten(2, (rows, columns, -1)).unflatten(1, (latents.shape[2], *self._grid(latents)))
        # B, T, h, w, rows, columns, C_out -> B, C_out, T, h, rows, w, columns
        return grid.permute(0, 6, 1, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)

    def _check_latents(self, latents: Tensor, timestep: Tensor) -> None:
        channels = self.config.in_channels
        if latents.ndim != 5 or latents.shape[1] != channels:
            raise ConfigError(
                f"The latents have the shape {_shown(latents)}; wanted is [batch, {channels}, frames, height, width]."
            )
        batch, _, frames, height, width = latents.shape
        _, rows, columns = self.config.patch_size
        if not frames or not height or not width or height % rows or width % columns:
            raise ConfigError(
                f"The latents have {frames} frames of {height} x {width}; there must be at least one frame, with height"
                f" and width multiples of {rows} and {columns}. Choose a video whose height is a multiple of"
                f" {PIXELS_PER_LATENT * rows} px and whose width is a multiple of {PIXELS_PER_LATENT * columns} px."
            )
        if timestep.shape not in ((batch,), (batch, frames)):
            raise ConfigError(
                f"The timesteps have the shape {_shown(timestep)}; wanted is [{batch}], one for each sample, or"
                f" [{batch}, {frames}], one for each of its latent frames."
            )

    def _check_prompt(self, latents: Tensor, embeds: Tensor, mask: Tensor | None) -> None:
        batch, width = latents.shape[0], self.config.caption_channels
        if embeds.ndim != 3 or embeds.shape[0] != batch or embeds.shape[2] != width:
            raise ConfigError(
                f"The prompt embeddings have the shape {_shown(embeds)}; wanted is [{batch}, slots, {width}]. Another"
                " width comes from the text encoder of another model: use the one of this checkpoint."
            )
        if mask is not None and mask.shape != embeds.shape[:2]:
            raise ConfigError(
                f"The prompt mask has the shape {_shown(mask)}; wanted is that of the embeddings,"
                f" {list(embeds.shape[:2])}."
            )

    def _check_condition(self, latents: Tensor, num_cond_latents: int, cache: CondCache | None) -> None:
        frames = latents.shape[2]
        if not 0 <= num_cond_latents < frames:
            raise ConfigError(
                f"num_cond_latents is {num_cond_latents} of {frames} latent frames; it must be between 0 and"
                f" {frames - 1}, so that there is a frame left to denoise. Give more frames, or fewer condition frames."
            )
        if cache is None:
            return
        height, width = self._grid(latents)
        samples, _, tokens, _ = cache[0].keys.shape if cache else (0, 0, 0, 0)
        if num_cond_latents or len(cache) != len(self.blocks) or not tokens or tokens % (height * width):
            raise ConfigError(
                f"The cache of condition frames has {len(cache)} entries of {tokens} tokens, and num_cond_latents is"
                f" {num_cond_latents}; wanted are {len(self.blocks)} entries of a multiple of {height * width} tokens,"
                " and 0. Make the cache with this model at this height and width, and pass no condition frames."
            )
        if samples not in (1, latents.shape[0]):
            raise ConfigError(
                f"The cache of condition frames is of {samples} samples; wanted are 1 or {latents.shape[0]}, as many as"
                " are denoised."
            )


def _check_sizes(hidden_size: int, num_heads: int, patch_size: Sequence[int]) -> None:
    if num_heads < 1 or hidden_size % num_heads or hidden_size // num_heads % 8:
        raise ModelError(
            f"hidden_size is {hidden_size} and num_heads {num_heads}; hidden_size / num_heads must be a multiple of 8"
            " (released: 4096 / 32 = 128). Copy the model's config.json again."
        )
    if len(patch_size) != 3 or patch_size[0] != 1 or min(patch_size) < 1:
        raise ModelError(
            f"patch_size is {list(patch_size)}; wanted are 1 frame, rows and columns (released: [1, 2, 2]). Copy the"
            " model's config.json again."
        )


def _shown(tensor: Tensor) -> list[int]:
    return list(tensor.shape)
