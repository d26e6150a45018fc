"""Attention of LongCat-Video: among video tokens, and from video tokens to the prompt.

Condition tokens (of frames that are given, not denoised) come first. They attend to each other alone, so nothing that
is being denoised reaches them; all others attend to everything.

Legend: B batch, N video tokens, C width, D channels of a head, S prompt slots, L prompt rows that are computed,
M condition tokens, E width of the prompt's embeddings.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers.models.normalization import RMSNorm
from torch import Tensor, nn

from ...errors import ConfigError
from .rope import Rotation, rotate

EPS = 1e-6

ROW_ALIGNMENT = 16
"""Kernels with a bias want its last side aligned, and would copy it otherwise."""


class KeyValues(NamedTuple):
    """What a block has to remember of the condition tokens: normalised, not yet rotated; [1 or B, heads, M, D]."""

    keys: Tensor
    values: Tensor


class SelfAttention(nn.Module):
    """Attention among video tokens with rotary positions."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = RMSNorm(width // num_heads, eps=EPS)
        self.k_norm = RMSNorm(width // num_heads, eps=EPS)
        self.proj = nn.Linear(width, width)

    def forward(
        self,
        x: Tensor,
        rotation: Rotation,
        num_cond_tokens: int = 0,
        cached: KeyValues | None = None,
        kept: list[KeyValues] | None = None,
    ) -> Tensor:
        """x [B, N, C] -> [B, N, C].

        Args:
            rotation: of the cached tokens and those of `x`, together.
            num_cond_tokens: how many of `x` are condition tokens, at its start.
            cached: condition tokens that are not in `x`.
            kept: keys and values of `x` are appended to it.
        """
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # [B, heads, N, D] each
        q, k = self.q_norm(q), self.k_norm(k)
        if kept is not None:
            kept.append(KeyValues(k, v))
        if cached is not None:
            k, v = (torch.cat([_like(old, new), new], dim=2) for old, new in zip(cached, (k, v), strict=True))
        q, k = rotate(q, rotation.last(q.shape[2])), rotate(k, rotation)
        # No mask, ever: with one, SDPA may leave the kernels that never hold N x N numbers.
        attended = F.scaled_dot_product_attention(q[:, :, num_cond_tokens:], k, v)
        if num_cond_tokens:
            condition = (each[:, :, :num_cond_tokens] for each in (q, k, v))
            attended = torch.cat([F.scaled_dot_product_attention(*condition), attended], dim=2)
        return self.proj(_join_heads(attended))


class CrossAttention(nn.Module):
    """Attention from video tokens to the prompt's rows."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_linear = nn.Linear(width, width)
        self.kv_linear = nn.Linear(width, 2 * width)
        self.q_norm = RMSNorm(width // num_heads, eps=EPS)
        self.k_norm = RMSNorm(width // num_heads, eps=EPS)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, text: Tensor, bias: Tensor | None) -> Tensor:
        """x [B, N, C], text [B, L, C], bias [B, 1, 1, L] as `PromptRows` has it -> [B, N, C]."""
        q = self.q_linear(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [B, heads, N, D]
        k, v = self.kv_linear(text).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # [B, heads, L, D]
        attended = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v, attn_mask=bias)
        return self.proj(_join_heads(attended))


class PromptRows(NamedTuple):
    """The rows of a prompt that have to be computed, and how they stand for all slots."""

    embeds: Tensor
    """[B, L, E]"""
    keep: Tensor | None
    """[B, L]: 0 for rows that are zeros behind the text embedder. None: there are none."""
    bias: Tensor | None
    """[B, 1, 1, L] for attention: added to the logits, or boolean with False for rows that are not attended."""


def prompt_rows(embeds: Tensor, mask: Tensor | None, zero_pad: bool) -> PromptRows:
    """Leaves out slots that need not be computed; what is attended to stays the same.

    With `zero_pad`, all slots are attended, the padded ones as zeros: so they are one row, many times over. A row of
    weight w in a softmax is that row with log(w) added to its logit, hence few zero rows stand for all of them.

    Args:
        embeds: [B, S, E], in the dtype that attention computes in.
        mask: [B, S], 0 for padding. None: no slot is padding.
        zero_pad: else padded slots are not attended.

    Raises:
        ConfigError: without `zero_pad`, a prompt has no valid slot.
    """
    if mask is None:
        return PromptRows(embeds, None, None)
    # Waits for the device, once in a forward pass: the number of rows decides shapes.
    valid = mask.bool().cpu()
    if valid.all():
        return PromptRows(embeds, None, None)
    used = int(valid.any(dim=0).nonzero().max()) + 1 if valid.any() else 0
    if not zero_pad:
        if not valid.any(dim=1).all():
            raise ConfigError("A prompt's mask has no valid slot, so there is nothing to attend to. Pass its tokens.")
        inside = valid[:, :used].to(embeds.device)
        return PromptRows(embeds[:, :used], None, None if inside.all() else inside[:, None, None])
    # Two zero rows at least: see `_pad_bias`.
    rows = -(-(used + 2) // ROW_ALIGNMENT) * ROW_ALIGNMENT
    if rows >= valid.shape[1]:
        return PromptRows(embeds, valid.to(embeds), None)
    bias = _pad_bias(valid[:, :rows], valid.shape[1], embeds.dtype)
    return PromptRows(embeds[:, :rows], valid[:, :rows].to(embeds), bias.to(embeds)[:, None, None])


def _pad_bias(valid: Tensor, slots: int, dtype: torch.dtype) -> Tensor:
    """log of the number of padded slots that each zero row stands for; valid [B, L] -> [B, L].

    bfloat16 holds log(500) only to 0.016, which would be 1.6 % of the weight. So the first zero row takes a little
    less than its share, by a number that `dtype` holds exactly, and the others take exactly what is left.
    """
    padding = ~valid
    held = padding.sum(dim=1, keepdim=True)
    pads = (slots - valid.sum(dim=1, keepdim=True)).double()
    first = padding & (padding.cumsum(dim=1) == 1)
    # 2^-7: more than twice what rounding to bfloat16 may add.
    most = (pads.log() * (1 - 2**-7)).to(dtype).double()
    rest = ((pads - most.exp()) / (held - 1)).log()
    return torch.where(first, most, torch.where(padding, rest, 0.0))


def _like(old: Tensor, new: Tensor) -> Tensor:
    """A cached tensor on the device and with the batch of `new`: caches may wait in main memory, one for all."""
    return old.to(new).expand(new.shape[0], -1, -1, -1)


def _join_heads(attended: Tensor) -> Tensor:
    """[B, heads, N, D] -> [B, N, C]"""
    return attended.transpose(1, 2).flatten(2)
