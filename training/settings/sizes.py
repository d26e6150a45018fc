"""Sizes as users write them: WIDTHxHEIGHT, and lists of resolutions."""

from __future__ import annotations

from ..errors import ConfigError
from .geometry import BUCKET_ALIGNMENT, LARGEST_SIDE, MEGAPIXEL_SIDE, PIXELS_PER_TOKEN, Size, check_multiple


def parse_size(text: str, where: str) -> Size:
    """`"WIDTHxHEIGHT"` in px -> (width, height), both multiples of 16.

    Raises:
        ConfigError: not of that form, or a side is no positive multiple of 16.
    """
    sides = text.lower().replace(" ", "").split("x")
    if len(sides) != 2 or not all(side.isdecimal() for side in sides):
        raise ConfigError(f"{where} is {text!r}; write it as WIDTHxHEIGHT in px, for example 768x768.")
    width, height = int(sides[0]), int(sides[1])
    for side in (width, height):
        if not PIXELS_PER_TOKEN <= side <= LARGEST_SIDE:
            raise ConfigError(
                f"{where} is {text!r}; each side must lie between {PIXELS_PER_TOKEN} and {LARGEST_SIDE} px."
            )
        check_multiple(where, side, PIXELS_PER_TOKEN)
    return width, height


def parse_resolutions(text: str, resolution_type: str, where: str) -> tuple[float | Size, ...]:
    """`"768"` or `"512, 1024"` or `"1024x1024,1344x768"` -> its entries, in the order written.

    Returns:
        for each number its length in px (of the side of the square of equal area; for `resolution_type` "pixel" of
        the shorter side), for each WIDTHxHEIGHT the two sides.

    Raises:
        ConfigError: an entry is neither, lies out of range, or occurs twice.
    """
    entries = [entry.strip() for entry in text.split(",")]
    found = [
        parse_size(entry, where) if "x" in entry.lower() else _parse_number(entry, resolution_type, where)
        for entry in entries
    ]
    twice = sorted({entry for entry, value in zip(entries, found, strict=True) if found.count(value) > 1})
    if twice:
        raise ConfigError(f"{where} is {text!r}; it names {' = '.join(twice)} more than once. Remove one of them.")
    return tuple(found)


def _parse_number(entry: str, resolution_type: str, where: str) -> float:
    try:
        number = float(entry)
    except ValueError as error:
        raise ConfigError(
            f"{where} is {entry!r}; write one number (768), a list (512,1024), or sizes (1024x1024,1344x768)."
        ) from error
    if resolution_type == "area":
        if not 0.01 <= number <= 16:
            raise ConfigError(
                f"{where} is {entry}; with resolution_type area it must lie between 0.01 and 16 megapixels. For sides"
                " in px choose resolution_type pixel_area."
            )
        return MEGAPIXEL_SIDE * number**0.5
    if not BUCKET_ALIGNMENT <= number <= LARGEST_SIDE:
        raise ConfigError(
            f"{where} is {entry}; it must lie between {BUCKET_ALIGNMENT} and {LARGEST_SIDE} px. For megapixels choose"
            " resolution_type area."
        )
    if number != int(number):
        raise ConfigError(f"{where} is {entry}; px must be a whole number.")
    check_multiple(where, int(number), PIXELS_PER_TOKEN)
    return int(number)
