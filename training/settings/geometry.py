"""Sizes that the models work on: numbers, the rules that follow from them, and how users write sizes."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import ConfigError

PIXELS_PER_LATENT = 8
"""Px along each side of a latent pixel, of both VAEs."""

PATCH = 2
"""Latent pixels along each side of a token, of both transformers."""

LATENTS_PER_TOKEN = PATCH**2
"""So LongCat-Image's transformer reads 4 times as many channels as the VAE has."""

PIXELS_PER_TOKEN = PIXELS_PER_LATENT * PATCH
"""16 px: both sides of every picture are multiples of it."""

BUCKET_ALIGNMENT = 64
"""Px; the grid of the aspect buckets (guide: keep on 64)."""

LARGEST_SIDE = 4096
"""Px."""

MEGAPIXEL_SIDE = 1024
"""Px; one megapixel is this squared, the size that SimpleTuner's rounding to 64 px makes of a million pixels."""

FRAME_STEP = 4
"""The VAE packs this many frames into a latent one, and the first alone: a clip has 4 k + 1 frames."""

FRAME_RULE = f"(frames - 1) must be a multiple of {FRAME_STEP}"

MOST_FRAMES = 1001
"""Of a clip, in all settings."""

FRAME_RATE = 15.0
"""Frames per second that LongCat-Video draws (official: run_demo_text_to_video.py)."""

PROMPT_SLOTS = 512
"""Tokens that every prompt is cut or padded to, in both families."""

Size = tuple[int, int]
"""(width, height) in px"""


def latent_sides(size: Size) -> tuple[int, int]:
    """(height, width) of the latents of a picture of `size`."""
    width, height = size
    return height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT


def size_of_latents(shape: Sequence[int]) -> Size:
    """Size of the picture whose latents have this shape [..., h, w]."""
    return shape[-1] * PIXELS_PER_LATENT, shape[-2] * PIXELS_PER_LATENT


def picture_tokens(size: Size) -> int:
    """How many tokens a picture of `size` has, or one latent frame of a clip."""
    return size[0] * size[1] // PIXELS_PER_TOKEN**2


def latent_frames(frames: int) -> int:
    """Latent frames of a clip: 1 -> 1, 93 -> 24.

    Raises:
        ConfigError: the VAE would drop the clip's last frames without a word.
    """
    check_frames("The clip's number of frames", frames)
    return (frames - 1) // FRAME_STEP + 1


def cut_down(frames: int, interval: int = FRAME_STEP) -> int:
    """The largest k * interval + 1 that is at most `frames`; 0 without frames."""
    return (frames - 1) // interval * interval + 1 if frames > 0 else 0


def check_frames(where: str, frames: int) -> None:
    """
    Raises:
        ConfigError: `frames` is not 4 k + 1; names its neighbours.
    """
    if frames < 1 or (frames - 1) % FRAME_STEP:
        lower = max(cut_down(frames), 1)
        raise ConfigError(
            f"{where} is {frames}; the VAE takes one frame and then {FRAME_STEP} at a time, so {FRAME_RULE}."
            f" Use {lower} or {lower + FRAME_STEP}."
        )


def check_sides(what: str, size: Size) -> None:
    """
    Raises:
        ConfigError: a side of `what` is no whole number of tokens.
    """
    if any(side % PIXELS_PER_TOKEN for side in size):
        raise ConfigError(
            f"{what} is {size[0]}x{size[1]} px; both sides must be multiples of {PIXELS_PER_TOKEN} px. Resize it before"
            " it is encoded."
        )


def check_multiple(where: str, value: int, base: int) -> None:
    """
    Raises:
        ConfigError: `value` is no multiple of `base`; names its neighbours.
    """
    if value % base:
        lower = value // base * base
        raise ConfigError(
            f"{where} is {value}; it must be a multiple of {base}. Use {lower or base} or {lower + base}."
        )


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
