"""Pictures in every usual coding become the RGB that the eye sees; damaged ones are named."""

import numpy as np
import pytest
import torch
from comfyui_longcat.training.data.media import (
    crop_to,
    from_pixels,
    image_size,
    read_image,
    to_pixels,
)
from comfyui_longcat.training.errors import DataError
from PIL import Image

ORIENTATION = 0x0112

# Formats that keep a small picture as it is, and that Pillow can write, too.
SUFFIXES = [
    *(".png", ".apng", ".jpg", ".jpeg", ".jfif", ".jpe", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif"),
    *(".avif", ".jp2", ".j2k", ".tga", ".ppm", ".pcx", ".sgi", ".dds", ".qoi"),
]


def upright() -> Image.Image:
    """40x24: the left half red, the right half blue with a green lower part."""
    picture = Image.new("RGB", (40, 24), "red")
    picture.paste("blue", (20, 0, 40, 24))
    picture.paste("lime", (20, 12, 40, 24))
    return picture


def mean_difference(a: Image.Image, b: Image.Image) -> float:
    return float(np.abs(np.array(a).astype(int) - np.array(b)).mean())


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".JPG", ".Png"])
def test_reads_every_suffix(tmp_path, suffix):
    path = tmp_path / f"picture{suffix}"
    upright().save(path)
    image = read_image(path)
    assert (image.mode, image.size, image_size(path)) == ("RGB", (40, 24), (40, 24))
    assert mean_difference(image, upright()) < 30


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".avif"])
@pytest.mark.parametrize(
    ("orientation", "undo"),
    [
        (2, Image.Transpose.FLIP_LEFT_RIGHT),
        (3, Image.Transpose.ROTATE_180),
        (6, Image.Transpose.ROTATE_90),
        (8, Image.Transpose.ROTATE_270),
    ],
)
def test_turns_by_exif(tmp_path, suffix, orientation, undo):
    path = tmp_path / f"turned{suffix}"
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    # Stored so that the orientation brings back the upright picture.
    upright().transpose(undo).save(path, exif=exif)
    assert image_size(path) == (40, 24)
    assert mean_difference(read_image(path), upright()) < 30


def test_alpha_is_laid_on_white(tmp_path):
    half = Image.new("RGBA", (8, 8), (255, 0, 0, 128))
    half.save(tmp_path / "rgba.png")
    assert read_image(tmp_path / "rgba.png").getpixel((0, 0)) == pytest.approx((255, 127, 127), abs=1)
    Image.new("LA", (8, 8), (0, 0)).save(tmp_path / "la.png")
    assert read_image(tmp_path / "la.png").getpixel((0, 0)) == (255, 255, 255)


def test_transparent_palette_and_colour_key_are_laid_on_white(tmp_path):
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([200, 10, 10, 10, 200, 10])
    palette.paste(1, (4, 0, 8, 8))
    palette.save(tmp_path / "palette.png", transparency=0)
    palette.save(tmp_path / "palette.gif", transparency=0)
    Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / "key.png", transparency=(1, 2, 3))
    for name in ("palette.png", "palette.gif"):
        image = read_image(tmp_path / name)
        assert (image.getpixel((0, 0)), image.getpixel((6, 0))) == ((255, 255, 255), (10, 200, 10))
    assert read_image(tmp_path / "key.png").getpixel((0, 0)) == (255, 255, 255)


def test_cmyk_and_grey(tmp_path):
    Image.new("RGB", (8, 8), (255, 0, 0)).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    assert read_image(tmp_path / "cmyk.jpg").getpixel((0, 0)) == pytest.approx((255, 0, 0), abs=3)
    Image.new("L", (8, 8), 77).save(tmp_path / "grey.png")
    assert read_image(tmp_path / "grey.png").getpixel((0, 0)) == (77, 77, 77)
    Image.new("1", (8, 8), 1).save(tmp_path / "bits.png")
    assert read_image(tmp_path / "bits.png").getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path, suffix):
    levels = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(levels).save(tmp_path / f"deep{suffix}")
    assert np.array(read_image(tmp_path / f"deep{suffix}"))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_values_of_unknown_white_are_refused(tmp_path):
    Image.fromarray(np.array([[0, 1_000_000]], dtype=np.int32)).save(tmp_path / "int.tif")
    Image.fromarray(np.array([[0.5, 1.0]], dtype=np.float32)).save(tmp_path / "float.tif")
    for name in ("int.tif", "float.tif"):
        with pytest.raises(DataError, match=rf"{name}.*32-bit.*8 or 16 bits"):
            read_image(tmp_path / name)


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_first_frame_of_an_animation(tmp_path, suffix):
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    first.save(tmp_path / f"moving{suffix}", save_all=True, append_images=[second], duration=100)
    assert read_image(tmp_path / f"moving{suffix}").getpixel((0, 0)) == pytest.approx((255, 0, 0), abs=3)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".avif", ".gif"])
def test_truncated_file_is_named(tmp_path, suffix):
    path = tmp_path / f"cut{suffix}"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=rf"cut\{suffix}.*replace it"):
        read_image(path)


@pytest.mark.parametrize("data", [b"", b"not a picture", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_what_is_no_picture_is_named(tmp_path, data):
    path = tmp_path / "odd.png"
    path.write_bytes(data)
    for read in (read_image, image_size):
        with pytest.raises(DataError, match=r"odd\.png"):
            read(path)
    with pytest.raises(DataError, match=r"gone\.png is not there"):
        image_size(tmp_path / "gone.png")


@pytest.mark.filterwarnings("ignore")
def test_damage_anywhere_raises_nothing_but_data_errors(tmp_path, monkeypatch):
    # Damaged sizes must not fill the memory of the machine that tests.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    rng = np.random.default_rng(0)
    refused = 0
    for suffix in SUFFIXES:
        path = tmp_path / f"damaged{suffix}"
        upright().save(path)
        whole = np.frombuffer(path.read_bytes(), dtype=np.uint8)
        for _ in range(25):
            damaged = whole.copy()
            damaged[rng.integers(0, len(whole), 12)] = rng.integers(0, 255, 12)
            path.write_bytes(damaged.tobytes())
            try:
                read_image(path)
            except DataError:
                refused += 1
    assert refused > 50


def test_decompression_limit_is_respected(tmp_path, monkeypatch):
    path = tmp_path / "huge.png"
    upright().save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    for read in (read_image, image_size):
        with pytest.raises(DataError, match=r"huge\.png is too large.*Scale it down"):
            read(path)


def test_pixels_have_the_bucket_and_range():
    pixels = to_pixels(upright(), (64, 128))
    assert (pixels.shape, pixels.dtype) == ((1, 3, 128, 64), torch.float32)
    assert (pixels.min().item(), pixels.max().item()) == (-1.0, 1.0)
    assert pixels.is_contiguous()


def test_crop_keeps_the_aspect_and_the_centre():
    """A disc stays round, in the middle, whichever way the crop goes, and up or down in size."""
    yy, xx = np.mgrid[0:96, 0:192]
    disc = Image.fromarray((((xx - 95.5) ** 2 + (yy - 47.5) ** 2 < 40**2) * 255).astype(np.uint8)).convert("RGB")
    for size in ((64, 64), (256, 256), (256, 128)):
        seen = np.array(crop_to(disc, size))[:, :, 0] > 127
        rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
        assert abs(len(rows) - len(columns)) <= 2
        assert abs(rows.mean() - (size[1] - 1) / 2) <= 1 and abs(columns.mean() - (size[0] - 1) / 2) <= 1
        assert len(rows) == pytest.approx(80 / 96 * size[1], abs=2)


def test_crop_keeps_the_part_asked_for():
    picture = Image.new("RGB", (300, 100), "red")
    picture.paste("lime", (100, 0, 200, 100))
    picture.paste("blue", (200, 0, 300, 100))
    for share, colour in ((0.0, (255, 0, 0)), (0.5, (0, 255, 0)), (1.0, (0, 0, 255))):
        pixels = np.array(crop_to(picture, (50, 50), (share, 0.5)))
        assert pixels.shape == (50, 50, 3) and (pixels[:, 5:-5] == colour).all()
        assert (np.array(from_pixels(to_pixels(picture, (50, 50), (share, 0.5)))) == pixels).all()


def test_shrinking_is_antialiased():
    stripes = Image.fromarray(np.tile(np.array([0, 255], dtype=np.uint8), (512, 256))).convert("RGB")
    assert to_pixels(stripes, (64, 64))[..., 8:-8].abs().max() < 0.1


def test_pixels_round_trip():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 128, 3), dtype=np.uint8))
    again = from_pixels(to_pixels(image, image.size))
    assert again.mode == "RGB"
    assert (np.array(again) == np.array(image)).all()


def test_from_pixels_clips_and_rounds_in_any_float_type():
    pixels = torch.tensor([-3.0, -1.0, 0.0, 3.0]).reshape(1, 1, 1, 4).expand(1, 3, 1, 4)
    for dtype in (torch.float32, torch.bfloat16):
        assert np.array(from_pixels(pixels.to(dtype)))[0, :, 0].tolist() == [0, 0, 128, 255]
