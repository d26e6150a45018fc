"""The part of a video's pictures that its container says is to be shown; PyAV does not report it."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ..settings.geometry import Size


class Cropping(NamedTuple):
    """Px of the stored picture that are cut off."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0


# Matroska's elements (RFC 9559).
SEGMENT, TRACKS, TRACK_ENTRY, VIDEO = 0x18538067, 0x1654AE6B, 0xAE, 0xE0
PIXEL_CROPS = {0x54CC: "left", 0x54BB: "top", 0x54DD: "right", 0x54AA: "bottom"}

# ISO 14496-12: boxes on the way to the sample entries of a track.
BOXES = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd")
SAMPLE_ENTRY = 86
"""Bytes of a visual sample entry before the boxes in it (12.1.3)."""


def cropping_of(path: Path, container: str, size: Size) -> Cropping:
    """What the container of a video cuts off; nothing where it does not say, or what is left would be nothing.

    Args:
        container: FFmpeg's name of its format.
        size: (width, height) px as stored.
    """
    found = Cropping()
    with contextlib.suppress(OSError, struct.error, ZeroDivisionError, ValueError), path.open("rb") as file:
        if "matroska" in container:
            found = _of_matroska(file)
        elif "mov" in container:
            found = _of_iso(file, size)
    sound = min(found) >= 0 and found.left + found.right < size[0] and found.top + found.bottom < size[1]
    return found if sound else Cropping()


def _of_matroska(file: BinaryIO) -> Cropping:
    end = file.seek(0, 2)
    for segment in _elements(file, 0, end, SEGMENT):
        for tracks in _elements(file, *segment, TRACKS):
            for track in _elements(file, *tracks, TRACK_ENTRY):
                for video in _elements(file, *track, VIDEO):
                    return Cropping(
                        **{
                            name: int.from_bytes(_bytes(file, *place), "big")
                            for number, name in PIXEL_CROPS.items()
                            for place in _elements(file, *video, number)
                        }
                    )
    return Cropping()


def _elements(file: BinaryIO, start: int, end: int, wanted: int) -> Iterator[tuple[int, int]]:
    """(start, end) of the contents of each element `wanted` between two places."""
    place = start
    while place < end:
        file.seek(place)
        number = _number(file, keep_mark=True)
        size = _number(file, keep_mark=False)
        begin = file.tell()
        # All ones: unknown, to the end.
        place = end if size is None else min(begin + size, end)
        if number == wanted:
            yield begin, place


def _number(file: BinaryIO, keep_mark: bool) -> int | None:
    """A number of variable length (RFC 8794, 4); None: unknown."""
    first = file.read(1)
    if not first or not first[0]:
        raise ValueError("no EBML")
    length = 9 - first[0].bit_length()
    value = int.from_bytes(first + file.read(length - 1), "big")
    if keep_mark:
        return value
    value -= 1 << (7 * length)
    return None if value == (1 << (7 * length)) - 1 else value


def _bytes(file: BinaryIO, start: int, end: int) -> bytes:
    file.seek(start)
    return file.read(min(end - start, 8))


def _of_iso(file: BinaryIO, size: Size) -> Cropping:
    """Of the box clap (ISO 14496-12, 12.1.4): the width and height that are shown, and where their middle lies."""
    places = [(0, file.seek(0, 2))]
    for name in BOXES:
        places = [inner for place in places for inner in _boxes(file, *place, name)]
    for start, end in places:
        # After version, flags and count: the first entry, and the boxes in it.
        for begin, stop in _boxes(file, start + 8 + SAMPLE_ENTRY, end, b"clap"):
            file.seek(begin)
            values = struct.unpack(">IIIIiIiI", file.read(min(stop - begin, 32)))
            width, height, across, down = (Fraction(*values[place : place + 2]) for place in range(0, 8, 2))
            left, top = (size[0] - width) / 2 + across, (size[1] - height) / 2 + down
            return Cropping(round(left), round(top), round(size[0] - width - left), round(size[1] - height - top))
    return Cropping()


def _boxes(file: BinaryIO, start: int, end: int, wanted: bytes) -> Iterator[tuple[int, int]]:
    place = start
    while place + 8 <= end:
        file.seek(place)
        length, name = struct.unpack(">I4s", file.read(8))
        head = 8
        if length == 1:
            length, head = struct.unpack(">Q", file.read(8))[0], 16
        stop = end if length == 0 else min(place + length, end)
        if name == wanted:
            yield place + head, stop
        if length and length < head:
            return
        place = stop
