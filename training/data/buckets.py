"""Aspect buckets: which size a picture is cropped to, so that a batch holds pictures of one size."""

from __future__ import annotations

import functools
import math

from ..config import BUCKET_ALIGNMENT

LARGEST_ASPECT = 2.0
"""Long side over short side of the longest bucket (official: 1408x704); longer pictures are cropped to it."""

LEAST_AREA_SHARE = 0.9
"""Of resolution x resolution. With it the buckets of 1024 px are the official ones and 1344x704, which they lack."""


def bucket_for(width: int, height: int, resolution: int, alignment: int = BUCKET_ALIGNMENT) -> tuple[int, int]:
    """The bucket (width, height) in px of a picture: of all `buckets`, the one of the nearest aspect.

    Args:
        width, height: px, of the picture as it is seen (EXIF turned).
        resolution: px, side of the square whose area the bucket has.
        alignment: px, grid of the bucket's sides.

    Nearness is the ratio of the aspects, so a portrait picture gets the turned bucket of its landscape twin; of two
    equally near ones the larger is taken.
    """
    aspect = math.log(width / height)

    def order(bucket: tuple[int, int]) -> tuple[float, int, int]:
        # Rounded, as the logarithms of twins such as 2:3 and 3:2 differ in the last bit.
        error = round(abs(math.log(bucket[0] / bucket[1]) - aspect), 9)
        return (error, -bucket[0] * bucket[1], bucket[0])

    return min(buckets(resolution, alignment), key=order)


@functools.cache
def buckets(resolution: int, alignment: int = BUCKET_ALIGNMENT) -> tuple[tuple[int, int], ...]:
    """All (width, height) in px of this resolution, by rising width.

    The sides are multiples of `alignment`, the area lies between 0.9 and 1 of resolution x resolution, and no side is
    longer than twice the other (follows the table in LongCat-Image's longcat_image/dataset/data_utils.py). The largest
    square that fits is always among them, with one grid step a side at least: at small resolutions it is the only one.
    """
    cells = (resolution / alignment) ** 2
    square = max(resolution // alignment, 1)
    found = {(square, square)}
    for short in range(1, math.isqrt(math.floor(cells)) + 1):
        for long in range(short, math.floor(LARGEST_ASPECT * short) + 1):
            if LEAST_AREA_SHARE * cells <= short * long <= cells:
                found |= {(short, long), (long, short)}
    return tuple(sorted((columns * alignment, rows * alignment) for columns, rows in found))
