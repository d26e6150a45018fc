"""Rotary positions of video tokens: frame, row and column each turn a share of every head's channels.

Legend: B batch, N tokens in the order frame, row, column, D channels of a head.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

THETA = 10000.0
"""Wavelengths go from 2 pi to about 2 pi THETA positions."""


class Rotation(NamedTuple):
    """Cosine and sine of the angle by which each pair of channels turns, float32 [N, D/2] each."""

    cos: Tensor
    sin: Tensor

    def last(self, count: int) -> Rotation:
        """Of the last `count` tokens."""
        return Rotation(self.cos[-count:], self.sin[-count:])


def axes_dims(head_dim: int) -> tuple[int, int, int]:
    """Channels of a head that hold frame, row and column, in this order: 128 -> 44, 42, 42."""
    side = 2 * (head_dim // 6)
    return head_dim - 2 * side, side, side


def rotation_of_grid(frames: int, height: int, width: int, head_dim: int, device: torch.device) -> Rotation:
    """Rotation of a grid of frames x height x width tokens; positions count from 0 on each axis, unscaled."""
    grid = (frames, height, width)
    angles = []
    for axis, (length, dim) in enumerate(zip(grid, axes_dims(head_dim), strict=True)):
        frequencies = THETA ** (-torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim)
        on_axis = torch.arange(length, dtype=torch.float32, device=device)[:, None] * frequencies  # [length, dim/2]
        shape = [1, 1, 1, -1]
        shape[axis] = length
        angles.append(on_axis.view(shape).expand(*grid, -1))
    joined = torch.cat(angles, dim=-1).flatten(0, 2)  # [N, D/2]
    return Rotation(joined.cos(), joined.sin())


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turns neighbouring channels (0, 1), (2, 3), ... as pairs; x [B, heads, N, D], computed in float32."""
    first, second = x.float().unflatten(-1, (-1, 2)).unbind(-1)  # [B, heads, N, D/2] each
    turned = (first * rotation.cos - second * rotation.sin, second * rotation.cos + first * rotation.sin)
    return torch.stack(turned, dim=-1).flatten(-2).to(x.dtype)
