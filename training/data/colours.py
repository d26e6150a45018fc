"""Colours as a file says they are to be shown, brought to sRGB: profiles, gamuts, transfer curves and HDR.

H W height and width in px. Light is linear, 1.0 the white of an sRGB screen. Codes of primaries and transfer curves are
those of ITU-T H.273 (CICP), which containers and FFmpeg use.
"""

from __future__ import annotations

import contextlib
import functools
import io
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

HDR_WHITE = 203.0
"""cd/m2 at which HDR shows the white of SDR (ITU-R BT.2408, table 1)."""

HLG_PEAK = 1000.0
"""cd/m2; nominal peak of an HLG screen, for which its system gamma is 1.2 (ITU-R BT.2100, table 5)."""

D65, DCI_WHITE, EQUAL_ENERGY, WHITE_C = (0.3127, 0.3290), (0.314, 0.351), (1 / 3, 1 / 3), (0.310, 0.316)

SRGB_PRIMARIES = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06), D65)

PRIMARIES = {
    4: ("BT.470 M", ((0.67, 0.33), (0.21, 0.71), (0.14, 0.08), WHITE_C)),
    8: ("film", ((0.681, 0.319), (0.243, 0.692), (0.145, 0.049), WHITE_C)),
    9: ("BT.2020", ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), D65)),
    10: ("XYZ", ((1.0, 0.0), (0.0, 1.0), (0.0, 0.0), EQUAL_ENERGY)),
    11: ("DCI-P3", ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), DCI_WHITE)),
    12: ("Display P3", ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), D65)),
}
"""Code -> (name, xy of red, green, blue and white). Those of BT.709 and of SD television are missing: players show them
alike."""

SCREEN = "screen"
"""The curve of sRGB, BT.709, BT.601 and BT.2020: players show their values as they are."""

TRANSFERS = {8: "linear", 9: "log 100:1", 10: "log 316:1", 16: "PQ", 17: "DCI", 18: "HLG"}
"""Code -> name of the curves that are not those of a screen."""

ADOBE_RGB = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06), D65)
ADOBE_GAMMA = 563 / 256

NO_OPTIMIZATION = 0x0100
"""LittleCMS's cmsFLAGS_NOOPTIMIZE."""

HEAD = 1 << 20
"""Bytes of a file that are searched for what Pillow does not report."""


@dataclass(frozen=True)
class Reading:
    """How a file's pictures are brought to what is seen, where more is done than decoding."""

    rule: str = ""
    """Part of cache keys; empty where nothing is done."""
    note: str = ""
    """For reports, to stand after "is": what the file has, and what is made of it."""


@dataclass(frozen=True)
class Colours:
    """The colours that a picture says it has."""

    reading: Reading = Reading()
    profile: bytes = b""
    """ICC; empty: described by the two below."""
    primaries: tuple[tuple[float, float], ...] = SRGB_PRIMARIES
    transfer: str | float = SCREEN
    """A name of `TRANSFERS`, `SCREEN`, or the exponent that makes light of values."""

    def to_srgb(self, image: Image.Image) -> Image.Image:
        """RGB of a picture of any mode, whose transparency is left out."""
        if self.profile:
            return _by_profile(image, self.profile)
        if not self.reading.rule:
            return image.convert("RGB")
        import numpy as np

        return shown(np.asarray(image.convert("RGB")), self.primaries, self.transfer)


def coded(primaries: int, transfer: int) -> Colours:
    """The colours of two codes of H.273; what they do not name is shown as it is."""
    gamut, points = PRIMARIES.get(primaries, ("", SRGB_PRIMARIES))
    curve = TRANSFERS.get(transfer, SCREEN)
    rule = " ".join(each for each in (gamut, "" if curve == SCREEN else curve) if each)
    if not rule:
        return Colours()
    hdr = "HDR, tone-mapped to BT.709" if curve in ("PQ", "HLG") else "converted to sRGB"
    return Colours(reading=Reading(rule=rule, note=f"{rule}: {hdr}"), primaries=points, transfer=curve)


def colours_of(image: Image.Image, path: Path) -> Colours:
    """What an opened picture says about its colours; reads no pixels.

    The order is that of the PNG specification (third edition, 4.3): codes, profile, sRGB, gamma and chromaticities.
    """
    codes = _codes_of(image, path)
    profile = image.info.get("icc_profile") or _hidden_profile(image, path)
    if codes is not None and (image.format == "PNG" or not profile):
        return coded(*codes)
    if profile:
        return profiled(image.mode, bytes(profile))
    if image.mode == "LAB":
        return Colours(reading=Reading(rule="Lab", note="Lab colours: converted to sRGB"), profile=_lab())
    if "srgb" in image.info:
        return Colours()
    if image.format == "PNG":
        return _of_gamma(image.info.get("gamma"), image.info.get("chromaticity"))
    if _is_adobe_rgb(image):
        reading = Reading(rule="Adobe RGB", note="Adobe RGB: converted to sRGB")
        return Colours(reading=reading, primaries=ADOBE_RGB, transfer=ADOBE_GAMMA)
    return Colours()


def shown(levels: np.ndarray, primaries: tuple[tuple[float, float], ...], transfer: str | float) -> Image.Image:
    """RGB values of some gamut and curve as an sRGB picture.

    levels: [H, W, 3], uint8 or uint16.
    """
    import numpy as np

    codes = levels.astype(np.uint16) * 257 if levels.dtype == np.uint8 else levels
    light = _light_of(transfer)[codes]
    if transfer == "HLG":
        # The system gamma of 1.2 acts on luminance (BT.2100, table 5); the table has scaled by the peak.
        luminance = light @ np.array([0.2627, 0.6780, 0.0593], np.float32)
        light *= ((luminance * np.float32(HDR_WHITE / HLG_PEAK)) ** np.float32(0.2))[..., None]
    if transfer in ("PQ", "HLG"):
        light = tone_mapped(light)
    if primaries != SRGB_PRIMARIES:
        light = light @ gamut_matrix(primaries).T.astype(np.float32)
    return _encoded(light)


def _encoded(light: np.ndarray) -> Image.Image:
    """[H, W, 3] float32 as sRGB; what no screen shows is clipped."""
    import numpy as np
    from PIL import Image

    steps = (np.clip(light, 0.0, 1.0) * np.float32(65535) + np.float32(0.5)).astype(np.uint16)
    return Image.fromarray(_srgb_levels()[steps])


def tone_mapped(light: np.ndarray) -> np.ndarray:
    """Light of a picture with its highlights brought below 1.0: the EETF of ITU-R BT.2390-11, section 5.4.1.

    Applied to the largest of R, G and B, so that hues stay; the source's peak is that of the picture itself, so a
    picture without highlights above the white of SDR is left as it is.

    light: [..., 3] float, of BT.2020 or another HDR gamut.
    """
    import numpy as np

    largest = light.max(-1)
    peak = float(largest.max(initial=0.0))
    if peak <= 1.0:
        return light
    top = pq_of(peak * HDR_WHITE)
    ceiling = pq_of(HDR_WHITE) / top
    knee = 1.5 * ceiling - 0.5
    bright = largest > light_of_pq(knee * top) / HDR_WHITE
    values = largest[bright].astype(np.float64)
    t = (pq_of(values * HDR_WHITE) / top - knee) / (1.0 - knee)
    mapped = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1.0 - knee) + (-2 * t**3 + 3 * t**2) * ceiling
    result = light.copy()
    result[bright] *= (light_of_pq(mapped * top) / HDR_WHITE / values)[:, None].astype(light.dtype)
    return result


def pq_of(nits: np.ndarray | float) -> np.ndarray:
    """cd/m2 -> PQ value 0..1 (SMPTE ST 2084)."""
    import numpy as np

    power = (np.maximum(nits, 0.0) / 10000.0) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1.0 + 18.6875 * power)) ** 78.84375


def light_of_pq(values: np.ndarray | float) -> np.ndarray:
    """PQ value 0..1 -> cd/m2 (SMPTE ST 2084)."""
    import numpy as np

    power = np.maximum(values, 0.0) ** (1 / 78.84375)
    return 10000.0 * (np.maximum(power - 0.8359375, 0.0) / (18.8515625 - 18.6875 * power)) ** (1 / 0.1593017578125)


@functools.cache
def gamut_matrix(primaries: tuple[tuple[float, float], ...]) -> np.ndarray:
    """[3, 3] from light of these primaries to light of sRGB's, white to white by Bradford's adaptation."""
    import numpy as np

    def xyz(point: tuple[float, float]) -> np.ndarray:
        x, y = point
        return np.array([x, y, 1.0 - x - y])

    def to_xyz(points: tuple[tuple[float, float], ...]) -> np.ndarray:
        columns = np.stack([xyz(point) for point in points[:3]], axis=1)
        return columns * np.linalg.solve(columns, xyz(points[3]) / points[3][1])

    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    source, target = (bradford @ (xyz(points[3]) / points[3][1]) for points in (primaries, SRGB_PRIMARIES))
    adapted = np.linalg.inv(bradford) @ np.diag(target / source) @ bradford
    return np.linalg.inv(to_xyz(SRGB_PRIMARIES)) @ adapted @ to_xyz(primaries)


@functools.cache
def _light_of(transfer: str | float) -> np.ndarray:
    """[65536] float32: light of each 16-bit value."""
    import numpy as np

    x = np.arange(65536) / 65535.0
    curves: dict[str, Callable[[], np.ndarray]] = {
        SCREEN: lambda: np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4),
        "linear": lambda: x,
        "log 100:1": lambda: np.where(x > 0, 10.0 ** (2.0 * (x - 1.0)), 0.0),
        "log 316:1": lambda: np.where(x > 0, 10.0 ** (2.5 * (x - 1.0)), 0.0),
        "DCI": lambda: x**2.6 * 52.37 / 48.0,
        "PQ": lambda: light_of_pq(x) / HDR_WHITE,
        "HLG": lambda: _scene_light_of_hlg(x) * HLG_PEAK / HDR_WHITE,
    }
    light = x**transfer if isinstance(transfer, float) else curves[transfer]()
    return light.astype(np.float32)


def _scene_light_of_hlg(x: np.ndarray) -> np.ndarray:
    """The inverse OETF of BT.2100, table 5: 0..1 -> 0..1."""
    import numpy as np

    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(x <= 0.5, x**2 / 3.0, (np.exp((x - c) / a) + b) / 12.0)


@functools.cache
def _srgb_levels() -> np.ndarray:
    """[65536] uint8: the sRGB value of light in 65535 steps."""
    import numpy as np

    x = np.arange(65536) / 65535.0
    values = np.where(x <= 0.0031308, 12.92 * x, 1.055 * x ** (1 / 2.4) - 0.055)
    return (values * 255.0).round().astype(np.uint8)


def _of_gamma(gamma: float | None, chromaticity: tuple[float, ...] | None) -> Colours:
    """PNG's gAMA and cHRM; values as sRGB's are what nearly every file has."""
    primaries = SRGB_PRIMARIES
    if chromaticity is not None and len(chromaticity) == 8:
        white, red, green, blue = (tuple(chromaticity[place : place + 2]) for place in range(0, 8, 2))
        given = (red, green, blue, white)
        if (
            max(abs(a - b) for p, q in zip(given, SRGB_PRIMARIES, strict=True) for a, b in zip(p, q, strict=True))
            > 0.01
        ):
            primaries = given
    transfer: str | float = SCREEN
    if gamma and abs(gamma - 0.45455) > 0.01:
        transfer = 1.0 / gamma
    if (primaries, transfer) == (SRGB_PRIMARIES, SCREEN) or not _is_gamut(primaries):
        return Colours()
    reading = Reading(rule="gamma and chromaticities", note="a PNG of its own gamma or primaries: converted to sRGB")
    return Colours(reading=reading, primaries=primaries, transfer=transfer)


def _is_gamut(primaries: tuple[tuple[float, float], ...]) -> bool:
    (rx, ry), (gx, gy), (bx, by), (_, white) = primaries
    return abs((gx - rx) * (by - ry) - (bx - rx) * (gy - ry)) > 1e-3 and white > 1e-3


def _is_adobe_rgb(image: Image.Image) -> bool:
    """EXIF's way to say so: colour space "uncalibrated" and interoperability index R03 (DCF 2.0)."""
    from PIL import ExifTags, Image

    # Without it or damaged, nothing is said.
    with contextlib.suppress(OSError, SyntaxError, ValueError, TypeError, LookupError, struct.error):
        exif = Image.Image.getexif(image)
        return ExifTags.IFD.Exif in exif and exif.get_ifd(ExifTags.IFD.Interop).get(1) == "R03"
    return False


def profiled(mode: str, profile: bytes) -> Colours:
    """The colours of an ICC profile in a picture of `mode`."""
    try:
        if _is_like_srgb(profile, _mode_for(profile, mode)):
            return Colours()
    except DataError as error:
        return Colours(reading=Reading(note=f"{error}, which is ignored"))
    reading = Reading(rule="ICC profile", note="another colour profile than sRGB: converted to sRGB")
    return Colours(reading=reading, profile=profile)


def _mode_for(profile: bytes, mode: str) -> str:
    """The mode that a picture must have for its profile.

    Raises:
        DataError: the profile cannot be read, or is not one for such pictures.
    """
    space = _opened(profile).profile.xcolor_space.strip()
    grey = mode in ("1", "L", "LA", "La", "I", "F") or mode.startswith("I;16")
    fitting = {"RGB": "" if mode == "CMYK" else "RGB", "GRAY": "L" if grey else "", "CMYK": "CMYK" * (mode == "CMYK")}
    if space == "Lab" and mode == "LAB":
        return mode
    if not fitting.get(space):
        raise DataError(f"a colour profile for {space} in a picture of {mode}")
    return fitting[space]


@functools.lru_cache(maxsize=32)
def _opened(profile: bytes):
    """The profile as ImageCms has it.

    Raises:
        DataError: LittleCMS cannot read it.
    """
    from PIL import ImageCms

    try:
        return ImageCms.ImageCmsProfile(io.BytesIO(profile))
    except (OSError, ImportError) as error:
        raise DataError("a colour profile that cannot be read") from error


@functools.lru_cache(maxsize=32)
def _transform(profile: bytes, mode: str, exact: bool = False):
    """LittleCMS's transform to sRGB, by the intent that it takes by itself (perceptual).

    Args:
        exact: without the short cuts that LittleCMS takes, which are off by several levels in dark linear values.

    Raises:
        DataError: there is none.
    """
    from PIL import ImageCms

    try:
        srgb, flags = ImageCms.createProfile("sRGB"), NO_OPTIMIZATION if exact else 0
        return ImageCms.buildTransform(_opened(profile), srgb, mode, "RGB", flags=flags)
    except ImageCms.PyCMSError as error:
        raise DataError("a colour profile that cannot be used") from error


@functools.lru_cache(maxsize=32)
def _is_like_srgb(profile: bytes, mode: str) -> bool:
    """Whether the profile moves no value by more than 1 of 255."""
    import numpy as np
    from PIL import Image

    transform = _transform(profile, mode)
    if mode not in ("L", "RGB"):
        return False
    if mode == "L":
        values = np.arange(256, dtype=np.uint8)[None]
    else:
        steps = np.arange(0, 256, 15, dtype=np.uint8)
        values = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(1, -1, 3)
    source = Image.fromarray(values)
    moved = np.asarray(transform.apply(source)).astype(int) - np.asarray(source.convert("RGB"))
    return int(abs(moved).max()) <= 1


@functools.cache
def _lab() -> bytes:
    from PIL import ImageCms

    return ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()


def _by_profile(image: Image.Image, profile: bytes) -> Image.Image:
    mode = _mode_for(profile, image.mode)
    if image.mode.startswith("I"):
        if mode == "L":
            return _wide_grey(image, _transform(profile, mode, exact=True))
        image = narrowed(image)
    transform = _transform(profile, mode)
    return transform.apply(image if image.mode == mode else image.convert(mode))


def narrowed(image: Image.Image) -> Image.Image:
    """16-bit grey as L; Pillow's own conversion clips at 255 instead of scaling."""
    import numpy as np
    from PIL import Image

    return Image.fromarray((np.asarray(image).astype(np.int64) / 257.0).round().astype(np.uint8))


def _wide_grey(image: Image.Image, transform) -> Image.Image:
    """16-bit grey by a transform of 8 bits: light between its steps is interpolated."""
    import numpy as np
    from PIL import Image

    ramp = np.asarray(transform.apply(Image.fromarray(np.arange(256, dtype=np.uint8)[None])))[0]
    light = _light_of(SCREEN)[ramp.astype(np.uint16) * 257]
    levels = np.asarray(image).astype(np.float32) / 257.0
    channels = [np.interp(levels, np.arange(256), light[:, channel]) for channel in range(3)]
    return _encoded(np.stack(channels, -1).astype(np.float32))


def _codes_of(image: Image.Image, path: Path) -> tuple[int, int] | None:
    """(primaries, transfer) that a PNG's cICP, or the nclx of an AVIF or HEIC holds."""
    if image.format == "PNG":
        found = _png_chunk(path, b"cICP")
        return (found[0], found[1]) if found is not None and len(found) == 4 else None
    if image.format in ("AVIF", "HEIF"):
        head = _head_of(path)
        place = head.find(b"colrnclx")
        return struct.unpack_from(">HH", head, place + 8) if 0 <= place <= len(head) - 12 else None
    return None


def _hidden_profile(image: Image.Image, path: Path) -> bytes:
    """The profile of formats in which Pillow does not look for one."""
    if image.format == "JPEG2000":
        return _profile_of_jp2(_head_of(path))
    if image.format == "GIF":
        return _profile_of_gif(_head_of(path))
    if image.format in ("BMP", "DIB"):
        return _profile_of_bmp(path)
    return b""


def _head_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEAD)


def _png_chunk(path: Path, wanted: bytes) -> bytes | None:
    """What the chunk before the pixels holds."""
    with path.open("rb") as file:
        file.seek(8)
        while len(start := file.read(8)) == 8:
            length, name = struct.unpack(">I4s", start)
            if name == wanted:
                return file.read(min(length, HEAD))
            if name in (b"IDAT", b"IEND"):
                break
            file.seek(length + 4, io.SEEK_CUR)
    return None


def _profile_of_jp2(head: bytes) -> bytes:
    """Of the box colr of method 2 or 3 (ISO/IEC 15444-1, I.5.3.3)."""
    place = head.find(b"colr")
    while place >= 4:
        length = struct.unpack_from(">I", head, place - 4)[0]
        if head[place + 4 : place + 5] in (b"\2", b"\3"):
            return head[place + 7 : place - 4 + length]
        place = head.find(b"colr", place + 4)
    return b""


def _profile_of_gif(head: bytes) -> bytes:
    """Of the application extension ICCRGBG1012: blocks, each after its length."""
    start = head.find(b"\x21\xff\x0bICCRGBG1012")
    place, profile = start + 14, b""
    while start >= 0 and place < len(head) and head[place]:
        profile += head[place + 1 : place + 1 + head[place]]
        place += 1 + head[place]
    return profile


def _profile_of_bmp(path: Path) -> bytes:
    """Of a header of version 5 that says MBED (BITMAPV5HEADER)."""
    with path.open("rb") as file:
        header = file.read(14 + 124)
        if len(header) < 138 or struct.unpack_from("<I", header, 14)[0] < 124 or header[70:74] != b"DEBM":
            return b""
        place, length = struct.unpack_from("<II", header, 14 + 112)
        file.seek(14 + place)
        return file.read(min(length, HEAD))
