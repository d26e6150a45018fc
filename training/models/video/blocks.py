"""What the video transformer is built of: embedders, block, last layer. Names are those of the released weights.

Timesteps, modulation, gates, norms and the last layer compute in float32 whatever the weights are stored in; the
official code does so by autocast.

Legend: B batch, T frames, N tokens (T x tokens of a frame), C width, A width of the timestep embedding, L prompt rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.normalization import FP32LayerNorm
from torch import Tensor, nn

from .attention import EPS, CrossAttention, KeyValues, SelfAttention
from .rope import Rotation

INNER_MULTIPLE = 256
"""The feed-forward's inner width is rounded up to it."""


@dataclass(frozen=True, kw_only=True)
class BlockInputs:
    """What all blocks get besides their tokens."""

    temb: Tensor
    """[B, T, A] float32: embedded timesteps, one a frame."""
    text: Tensor | None
    """[B, L, C]; None: there is no cross-attention."""
    text_bias: Tensor | None
    """[B, 1, 1, L], see `PromptRows`."""
    rotation: Rotation
    num_cond_latents: int
    """How many frames, at the start, are given and not denoised."""


class Float32Linear(nn.Linear):
    """Computes in float32 from weights of any dtype; a class of its own, so that adapters and hooks find a linear."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.float(), self.weight.float(), self.bias.float())


class PatchEmbedder(nn.Module):
    """Latents [B, C_in, T, H, W] -> tokens [B, N, C] in the order frame, row, column."""

    def __init__(self, in_channels: int, width: int, patch_size: tuple[int, int, int]) -> None:
        super().__init__()
        self.proj = nn.Conv3d(in_channels, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, latents: Tensor) -> Tensor:
        return self.proj(latents).flatten(2).transpose(1, 2)


class TimestepEmbedder(nn.Module):
    """Timesteps [B, T] on the scale 0..1000 -> [B, T, A] float32."""

    def __init__(self, width: int, frequencies: int) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.mlp = nn.Sequential(Float32Linear(frequencies, width), nn.SiLU(), Float32Linear(width, width))

    def forward(self, timesteps: Tensor) -> Tensor:
        waves = get_timestep_embedding(
            timesteps.flatten(), self.frequencies, flip_sin_to_cos=True, downscale_freq_shift=0
        )
        return self.mlp(waves).unflatten(0, timesteps.shape)


class PromptEmbedder(nn.Module):
    """Prompt embeddings [B, L, E] -> [B, L, C]."""

    def __init__(self, caption_channels: int, width: int) -> None:
        super().__init__()
        self.y_proj = nn.Sequential(
            nn.Linear(caption_channels, width), nn.GELU(approximate="tanh"), nn.Linear(width, width)
        )

    def forward(self, embeds: Tensor) -> Tensor:
        return self.y_proj(embeds)


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, width: int, mlp_ratio: float) -> None:
        super().__init__()
        inner = inner_width(width, mlp_ratio)
        self.w1 = nn.Linear(width, inner, bias=False)
        self.w2 = nn.Linear(inner, width, bias=False)
        self.w3 = nn.Linear(width, inner, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class LongCatVideoBlock(nn.Module):
    """Self-attention, cross-attention and feed-forward, modulated by each frame's timestep."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: float, temb_width: int) -> None:
        super().__init__()
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Float32Linear(temb_width, 6 * width))
        self.attn = SelfAttention(width, num_heads)
        self.pre_crs_attn_norm = FP32LayerNorm(width, eps=EPS)
        self.cross_attn = CrossAttention(width, num_heads)
        self.ffn = FeedForward(width, mlp_ratio)

    def forward(
        self,
        x: Tensor,
        inputs: BlockInputs,
        cached: KeyValues | None = None,
        kept: list[KeyValues] | None = None,
    ) -> Tensor:
        """x [B, N, C] -> [B, N, C]; for `cached` and `kept` see `SelfAttention`."""
        modulation = self.adaLN_modulation(inputs.temb).unsqueeze(2)  # [B, T, 1, 6 C]
        shift_attn, scale_attn, gate_attn, shift_ffn, scale_ffn, gate_ffn = modulation.chunk(6, dim=-1)
        num_cond_tokens = inputs.num_cond_latents * (x.shape[1] // inputs.temb.shape[1])
        attended = self.attn(modulate(x, shift_attn, scale_attn), inputs.rotation, num_cond_tokens, cached, kept)
        x = add_gated(x, gate_attn, attended)
        if inputs.text is not None:
            # The prompt does not act on what is given: condition tokens pass unchanged.
            condition, denoised = x[:, :num_cond_tokens], x[:, num_cond_tokens:]
            from_prompt = self.cross_attn(self.pre_crs_attn_norm(denoised), inputs.text, inputs.text_bias)
            x = torch.cat([condition, denoised + from_prompt], dim=1)
        return add_gated(x, gate_ffn, self.ffn(modulate(x, shift_ffn, scale_ffn)))


class FinalLayer(nn.Module):
    """Tokens [B, N, C] -> patches [B, N, patch x C_out] float32, channel fastest."""

    def __init__(self, width: int, out_features: int, temb_width: int) -> None:
        super().__init__()
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Float32Linear(temb_width, 2 * width))
        self.linear = Float32Linear(width, out_features)

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(temb).unsqueeze(2).chunk(2, dim=-1)
        return self.linear(modulate(x, shift, scale))


def inner_width(width: int, mlp_ratio: float) -> int:
    """Of the feed-forward: two thirds of width x mlp_ratio, rounded up; 4096, 4 -> 11008."""
    inner = int(2 * int(width * mlp_ratio) / 3)
    return -(-inner // INNER_MULTIPLE) * INNER_MULTIPLE


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Normalises x [B, N, C], then scales and shifts [B, T, 1, C] each frame; float32 inside."""
    normed = F.layer_norm(_by_frame(x.float(), scale), x.shape[-1:], eps=EPS)
    return (normed * (scale + 1) + shift).flatten(1, 2).to(x.dtype)


def add_gated(x: Tensor, gate: Tensor, update: Tensor) -> Tensor:
    """x [B, N, C] plus `update` times each frame's gate [B, T, 1, C], added in float32."""
    return (x.float() + (gate * _by_frame(update, gate)).flatten(1, 2)).to(x.dtype)


def _by_frame(x: Tensor, per_frame: Tensor) -> Tensor:
    """[B, N, C] -> [B, T, tokens of a frame, C]"""
    return x.unflatten(1, (per_frame.shape[1], -1))
