"""Adapters of joined linears and of their parts: exact ways from one to the other.

Legend of shapes: r rank, in and out the sides of a linear, s blocks of a block-diagonal B.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .families import LoraFamily


@dataclass(frozen=True, kw_only=True)
class LoraWeights:
    """The adapter of one linear, float32 on the CPU, without any further scale."""

    a: Tensor
    """[r, in]"""
    b: Tensor
    """[out, r]"""


def regroup(
    family: LoraFamily, weights: Mapping[str, LoraWeights], source: Sequence[str], target: Sequence[str]
) -> dict[str, LoraWeights]:
    """Adapters of the linears `source` as those of `target`, which hold the same rows in the same order.

    Args:
        family: says which linears have their halves swapped, and how high the parts of a joined one are.
        weights: by names of `source`, one or more of them.
        source: one name for a joined linear, or those of its parts.
        target: as many names, or one, or those of the parts of the one in `source`.

    Raises:
        ValueError: B has other rows than the joined linear.
    """
    if len(source) == len(target):
        swap = not {*source, *target}.isdisjoint(family.swapped) and tuple(source) != tuple(target)
        pairs = zip(source, target, strict=True)
        return {new: _swapped(weights[old]) if swap else weights[old] for old, new in pairs if old in weights}
    if len(target) == 1:
        return {target[0]: _join(family, source, weights)}
    return _split(family, source[0], weights[source[0]], target)


def diagonal_blocks(weights: LoraWeights, count: int) -> list[Tensor] | None:
    """The blocks [out / s, r / s] of a block-diagonal B; None if B is not, or has empty blocks."""
    rows, rank = weights.b.shape
    if rows % count or rank % count:
        return None
    blocks = [row.chunk(count, dim=1)[i] for i, row in enumerate(weights.b.chunk(count))]
    exact = torch.equal(torch.block_diag(*blocks), weights.b) and all(block.any() for block in blocks)
    return [block.contiguous() for block in blocks] if exact else None


def _swapped(weights: LoraWeights) -> LoraWeights:
    return LoraWeights(a=weights.a, b=torch.cat(weights.b.chunk(2)[::-1]))


def _rows(family: LoraFamily, part: str, weights: LoraWeights) -> int:
    # Attention is as wide as its input in these models, and every joined linear reads that input.
    return weights.a.shape[1] * family.rows_per_input.get(part.rpartition(".")[2], 1)


def _split(family: LoraFamily, name: str, weights: LoraWeights, parts: Sequence[str]) -> dict[str, LoraWeights]:
    sizes = [_rows(family, part, weights) for part in parts]
    if sum(sizes) != weights.b.shape[0]:
        raise ValueError(f"{name} has {weights.b.shape[0]} rows, not {' + '.join(map(str, sizes))}")
    return {part: _trimmed(weights.a, b) for part, b in zip(parts, weights.b.split(sizes), strict=True)}


def _trimmed(a: Tensor, b: Tensor) -> LoraWeights:
    """Without the ranks that other parts of a block-diagonal B use."""
    used = b.any(dim=0)
    if used.all() or not used.any():
        return LoraWeights(a=a.clone(), b=b.clone())
    return LoraWeights(a=a[used], b=b[:, used])


def _join(family: LoraFamily, parts: Sequence[str], weights: Mapping[str, LoraWeights]) -> LoraWeights:
    """One adapter for a joined linear: A shared if all parts have the same, else stacked and B block-diagonal.

    The rank of the stacked one is the sum of the parts' ranks. Parts without adapter get rows of zeros.
    """
    present = [weights[part] for part in parts if part in weights]
    first = present[0].a
    shared = all(torch.equal(pair.a, first) for pair in present)
    a = first if shared else torch.cat([pair.a for pair in present])
    rows, column = [], 0
    for part in parts:
        pair = weights.get(part)
        height = _rows(family, part, present[0]) if pair is None else pair.b.shape[0]
        row = torch.zeros(height, a.shape[0], dtype=a.dtype)
        if pair is not None:
            row[:, column : column + pair.b.shape[1]] = pair.b
            column += 0 if shared else pair.b.shape[1]
        rows.append(row)
    return LoraWeights(a=a, b=torch.cat(rows))
