"""Training with few of a prompt's 512 slots, as if all were there.

Nearly all slots hold the same pad. Untrained, they take 95 % of the attention, and the prompt gets hardly a gradient.
So the prompt's own slots stay and a few pads stand for the rest: each at its true position, with the logarithm of how
many it stands for added to its attention logit. That bias is faded in, and the last steps see all slots.

Legend: K number of sampled pads, P slots that are always kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from diffusers.models.transformers.transformer_longcat_image import LongCatImageAttnProcessor
from torch import Generator, Tensor, nn

SAMPLED = 4
"""K"""

FADE_IN = (0.42, 0.72)
"""Shares of the steps between which the sampled pads grow from standing for themselves to standing for all."""


class BiasedProcessor(LongCatImageAttnProcessor):
    """Diffusers' attention with `bias` [1, 1, 1, keys] on the logits; one object serves all blocks."""

    bias: Tensor | None = None

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, image_rotary_emb=None):
        return super().__call__(attn, hidden_states, encoder_hidden_states, self.bias, image_rotary_emb)


@dataclass(frozen=True, kw_only=True)
class Slots:
    """Which slots a step sees."""

    places: Tensor
    """[P + K] int64, their numbers among all"""
    bias: Tensor | None
    """[P + K], for the attention logits; None: all slots are there."""


def use_biased_attention(transformer: nn.Module) -> BiasedProcessor:
    """Gives all blocks one processor, and returns it."""
    processor = BiasedProcessor()
    transformer.set_attn_processor(processor)
    return processor


def sample_slots(kept: int, total: int, progress: float, generator: Generator) -> Slots:
    """The first `kept` of `total` slots and K of the others; `progress` is the share of the steps done."""
    others = kept + torch.randperm(total - kept, generator=generator)[:SAMPLED].sort().values
    start, end = FADE_IN
    weight = min(1.0, max(0.0, (progress - start) / (end - start)))
    bias = torch.zeros(kept + SAMPLED)
    bias[kept:] = weight * math.log((total - kept) / SAMPLED)
    return Slots(places=torch.cat([torch.arange(kept), others]), bias=bias)


def all_slots(total: int) -> Slots:
    """Every slot, as the model is used."""
    return Slots(places=torch.arange(total), bias=None)
