"""Picture files in, pixels out, and back. B batch, H W height and width in px."""

from __future__ import annotations

import contextlib
import functools
import importlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DataError
from ..settings.geometry import Size
from .colours import Colours, Reading, colours_of, narrowed

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

NO_PICTURES = {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG", "FITS", "IPTC"}
"""Pillow's formats that are not read: they start programs, belong to documents, or need readers that are not there."""

PLUGINS = {"pillow_heif": "register_heif_opener", "pillow_jxl": ""}
"""Modules that add formats to Pillow where they are installed, by this function or by being imported."""

OPTIONAL_SUFFIXES = {
    **dict.fromkeys((".heic", ".heif", ".hif", ".heics", ".heifs"), "pillow-heif"),
    ".jxl": "pillow-jxl-plugin",
}
"""Suffix -> the package that reads it."""

CENTRE = (0.5, 0.5)
"""The crop that keeps the middle."""

TURNED_BY_QUARTER = {5, 6, 7, 8}
"""EXIF orientations in which the stored width is the seen height."""


@dataclass(frozen=True, kw_only=True)
class PictureInfo:
    """What a picture file's head says."""

    size: Size
    """(width, height) px as it is seen."""
    reading: Reading


@functools.cache
def formats_by_suffix() -> dict[str, str]:
    """Suffix -> Pillow's format, of all that the installed Pillow and its plugins can read."""
    from PIL import Image

    Image.init()
    for name, register in PLUGINS.items():
        # Absent or not fitting the installed Pillow: its files are named in reports.
        with contextlib.suppress(ImportError):
            module = importlib.import_module(name)
            if register:
                getattr(module, register)()
    readable = {
        suffix: name
        for suffix, name in Image.registered_extensions().items()
        if name in Image.OPEN and name not in NO_PICTURES
    }
    return dict(sorted(readable.items()))


def is_picture(path: Path) -> bool:
    """By its name."""
    return path.suffix.lower() in formats_by_suffix()


def read_image(path: Path) -> Image.Image:
    """A picture file as it is seen: sRGB, 8 bit a channel.

    Colours converted as the file says, turned by its EXIF orientation, alpha laid on white, 16-bit grey scaled to 8
    bit, CMYK and palettes converted; of an animation the first frame.

    Raises:
        DataError: the file is missing, damaged, no picture, larger than Pillow's decompression limit, or has 32 bits a
            channel; names the file.
    """
    from PIL import ImageOps

    with opened(path) as image:
        colours = colours_of(image, path)
        image.load()
        return as_rgb(ImageOps.exif_transpose(image) if _follows_exif(image) else image, path, colours)


def image_info(path: Path) -> PictureInfo:
    """Size and colours of a picture; reads the file's head only.

    Raises:
        DataError: the file is missing, no picture, or larger than Pillow's decompression limit; names the file.
    """
    from PIL import ExifTags, Image

    with opened(path) as image:
        width, height = image.size
        # The base class's method, as PNG's own one decodes all pixels; TIFF has turned its size by now.
        orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation)
        turned = orientation in TURNED_BY_QUARTER and image.format != "TIFF" and _follows_exif(image)
        size = (height, width) if turned else (width, height)
        return PictureInfo(size=size, reading=colours_of(image, path).reading)


def _follows_exif(image: Image.Image) -> bool:
    # The decoder of JPEG XL has turned the picture, but for one that is a whole JPEG inside.
    return image.format != "JXL" or bool(getattr(image, "jpeg", False))


def image_size(path: Path) -> Size:
    """(width, height) in px of the picture as it is seen.

    Raises:
        DataError: as `image_info`.
    """
    return image_info(path).size


def crop_to(image: Image.Image, size: Size, crop: tuple[float, float] = CENTRE) -> Image.Image:
    """The picture resized to cover `size` (width, height) in px in its own aspect, and cropped to it.

    `crop`: shares of what is cropped off that fall to the left and to the top.
    """
    from PIL import Image, ImageOps

    return ImageOps.fit(image, size, method=Image.Resampling.LANCZOS, centering=crop)


def to_pixels(image: Image.Image, size: Size, crop: tuple[float, float] = CENTRE) -> Tensor:
    """An RGB picture as pixels of a bucket, by `crop_to`.

    Returns:
        pixels: [1, 3, H, W] float32, -1..1, where size = (W, H).
    """
    import numpy as np
    import torch

    array = np.array(crop_to(image, size, crop), dtype=np.float32)
    return torch.from_numpy(array / 127.5 - 1.0).permute(2, 0, 1).unsqueeze(0).contiguous()


def from_pixels(pixels: Tensor) -> Image.Image:
    """One RGB picture of pixels; values outside -1..1 are clipped.

    pixels: [1, 3, H, W], any float type.
    """
    import torch
    from PIL import Image

    levels = ((pixels[0].detach().float() + 1.0) * 127.5).round().clamp(0, 255)
    return Image.fromarray(levels.permute(1, 2, 0).to("cpu", torch.uint8).numpy())


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """A picture file with only its head read, by the decoders of `formats_by_suffix` alone.

    Raises:
        DataError: it cannot be read, also when reading goes on inside the block.
    """
    from PIL import Image

    formats = sorted(set(formats_by_suffix().values()))
    try:
        with Image.open(path, formats=formats) as image:
            yield image
    except Image.DecompressionBombError as error:
        raise DataError(f"{path} is too large to be read: {error} Scale it down.") from error
    except FileNotFoundError as error:
        raise DataError(f"{path} is not there (any more). Put it back, or remove its pair.") from error
    # What Pillow's decoders raise on damaged files: truncation is an OSError, a damaged AVIF a RuntimeError.
    except (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, RuntimeError, struct.error) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{path} cannot be read as a picture ({type(error).__name__}: {error}). It may be damaged or not fully"
            f" copied; replace it, or remove its pair."
        ) from error


def as_rgb(image: Image.Image, path: Path, colours: Colours) -> Image.Image:
    """Any mode and colours to sRGB: 16 bits scaled to 8, transparency laid on white.

    Raises:
        DataError: a mode whose white is not known.
    """
    if image.mode.startswith("I;16") or image.mode == "I":
        return _from_16_bit(image, path, colours)
    if image.mode == "F":
        raise DataError(f"{path} has 32-bit float values, and nothing says which is white. Save it with 8 or 16 bits.")
    if not image.has_transparency_data:
        return colours.to_srgb(image)
    # Grey stays grey, as its profile may be one of grey.
    seen = image.convert("LA" if image.mode in ("L", "LA", "La") else "RGBA")
    converted = colours.to_srgb(seen.convert(seen.mode.removesuffix("A")))
    return on_white(converted, seen.getchannel("A"))


def on_white(image: Image.Image, alpha: Image.Image) -> Image.Image:
    """RGB of a picture seen before white. alpha: L, 255 is opaque."""
    from PIL import Image

    layer = image.copy()
    layer.putalpha(alpha)
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def _from_16_bit(image: Image.Image, path: Path, colours: Colours) -> Image.Image:
    lowest, highest = image.getextrema()
    if lowest < 0 or highest > 65535:
        raise DataError(f"{path} has 32-bit values, and nothing says which is white. Save it with 8 or 16 bits.")
    return colours.to_srgb(image if colours.profile else narrowed(image))
