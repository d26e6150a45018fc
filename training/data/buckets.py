"""Buckets: the size that a picture is cropped to, for clips also their frames, so that a batch has one shape."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

from ..settings.dataset import DatasetConfig
from ..settings.geometry import BUCKET_ALIGNMENT, FRAME_STEP, Size, cut_down, parse_resolutions

LARGEST_ASPECT = 2.0
"""Long side over short side of the longest bucket (official: 1408x704); longer pictures are cropped to it."""

LEAST_AREA_SHARE = 0.9
"""Of resolution x resolution. With it the buckets of 1024 px are the official ones and 1344x704, which they lack."""


class VideoBucket(NamedTuple):
    """The shape of a clip; px and frames."""

    width: int
    height: int
    frames: int

    def __str__(self) -> str:
        """As SimpleTuner writes it: 832x480@93."""
        return f"{self.width}x{self.height}@{self.frames}"


def bucket_for(width: int, height: int, resolution: float, alignment: int = BUCKET_ALIGNMENT) -> Size:
    """The bucket (width, height) in px of a picture: of all `buckets`, the one of the nearest aspect.

    Args:
        width, height: px, of the picture as it is seen (EXIF turned).
        resolution: px, side of the square whose area the bucket has.
        alignment: px, grid of the bucket's sides.
    """
    return nearest_bucket(width, height, buckets(resolution, alignment))


def nearest_bucket(width: int, height: int, choices: Sequence[Size]) -> Size:
    """Of `choices` the (width, height) whose aspect is nearest to that of a picture of `width` x `height` px.

    Nearness is the ratio of the aspects, so a portrait picture gets the turned bucket of its landscape twin; of two
    equally near ones the larger is taken.
    """
    aspect = math.log(width / height)

    def order(bucket: Size) -> tuple[float, int, int]:
        # Rounded, as the logarithms of twins such as 2:3 and 3:2 differ in the last bit.
        error = round(abs(math.log(bucket[0] / bucket[1]) - aspect), 9)
        return (error, -bucket[0] * bucket[1], bucket[0])

    return min(choices, key=order)


def bucket_choices(config: DatasetConfig) -> tuple[tuple[Size, ...], ...]:
    """For each time that a picture of the dataset is used, the buckets of which it gets the nearest.

    A number stands for all buckets of its area (`resolution_type` "pixel": of its shorter side). WIDTHxHEIGHT sizes
    stand for themselves, lying or standing, off the grid or on it; those of about one area belong together, so that
    `1024x1024,1344x768` shows each picture once, and `512x512,1024x1024` twice.
    """
    entries = parse_resolutions(config.resolution, config.resolution_type, config.named("resolution"))
    sizes = [entry for entry in entries if isinstance(entry, tuple)]
    numbers = [_buckets_of_number(entry, config) for entry in entries if not isinstance(entry, tuple)]
    return (*numbers, *_sizes_by_area(sizes))


def _buckets_of_number(number: float, config: DatasetConfig) -> tuple[Size, ...]:
    alignment = config.aspect_bucket_alignment
    if config.crop_aspect == "square":
        side = max(int(number // alignment), 1) * alignment
        return ((side, side),)
    if config.resolution_type == "pixel":
        return _buckets_of_shorter_side(number, alignment)
    return buckets(number, alignment)


def _buckets_of_shorter_side(side: float, alignment: int) -> tuple[Size, ...]:
    short = max(int(side // alignment), 1)
    longs = range(short, math.floor(LARGEST_ASPECT * short) + 1)
    found = {turned for long in longs for turned in ((short, long), (long, short))}
    return tuple(sorted((columns * alignment, rows * alignment) for columns, rows in found))


def _sizes_by_area(sizes: Sequence[Size]) -> list[tuple[Size, ...]]:
    groups: list[list[Size]] = []
    for width, height in sorted(sizes, key=lambda size: -size[0] * size[1]):
        if not groups or width * height < LEAST_AREA_SHARE * math.prod(groups[-1][0]):
            groups.append([])
        groups[-1] += [(width, height), (height, width)]
    return [tuple(dict.fromkeys(group)) for group in groups]


@functools.cache
def buckets(resolution: float, alignment: int = BUCKET_ALIGNMENT) -> tuple[Size, ...]:
    """All (width, height) in px of this resolution, by rising width.

    The sides are multiples of `alignment`, the area lies between 0.9 and 1 of resolution x resolution, and no side is
    longer than twice the other (follows the table in LongCat-Image's longcat_image/dataset/data_utils.py). The largest
    square that fits is always among them, with one grid step a side at least: at small resolutions it is the only one.
    """
    cells = (resolution / alignment) ** 2
    square = max(int(resolution // alignment), 1)
    found = {(square, square)}
    for short in range(1, math.isqrt(math.floor(cells)) + 1):
        for long in range(short, math.floor(LARGEST_ASPECT * short) + 1):
            if LEAST_AREA_SHARE * cells <= short * long <= cells:
                found |= {(short, long), (long, short)}
    return tuple(sorted((columns * alignment, rows * alignment) for columns, rows in found))


def clip_frames(available: int, num_frames: int, min_frames: int, interval: int = FRAME_STEP) -> int:
    """How many frames a clip gets, from a video that has `available` of them: `num_frames` or cut down, never up.

    Returns:
        0 when fewer than `min_frames` would be left.
    """
    frames = min(cut_down(available, interval), num_frames)
    return frames if frames >= min_frames else 0
