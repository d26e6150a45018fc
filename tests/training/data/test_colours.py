"""Pictures of every colour profile, gamut and curve become what is seen: LittleCMS and the formulas are the judges."""

import io
import struct
import zlib

import av
import numpy as np
import pytest
from comfyui_longcat.tests.training.data import icc
from comfyui_longcat.training.data.clips import iterate_pictures
from comfyui_longcat.training.data.colours import gamut_matrix, tone_mapped
from comfyui_longcat.training.data.media import image_info, read_image
from comfyui_longcat.training.data.sets import scan_dataset
from comfyui_longcat.training.data.video_files import probe_video
from comfyui_longcat.training.errors import DataError
from comfyui_longcat.training.settings.dataset import DatasetConfig
from PIL import Image, ImageCms

RGB_PROFILES = {
    "Adobe RGB": icc.rgb_profile(icc.ADOBE, 563 / 256),
    "Display P3": icc.rgb_profile(icc.P3, "srgb"),
    "ProPhoto": icc.rgb_profile(icc.PROPHOTO, 1.8),
    "linear": icc.rgb_profile(icc.SRGB, 1.0),
}
COLOUR = (60, 160, 90)


def noise(mode, size=(48, 32), seed=0):
    channels = len(Image.new(mode, (1, 1)).getbands())
    levels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    # Large patches, so that lossy formats keep their colours.
    levels = levels[::8, ::8].repeat(8, 0).repeat(8, 1)
    return Image.frombytes(mode, size, levels.tobytes())


def by_littlecms(image, profile):
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")


def difference(one, other):
    return int(np.abs(np.asarray(one).astype(int) - np.asarray(other)).max())


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp", ".apng"])
@pytest.mark.parametrize("name", RGB_PROFILES)
def test_profiles_are_followed_as_by_littlecms(tmp_path, name, suffix):
    path, profile = tmp_path / f"a{suffix}", RGB_PROFILES[name]
    noise("RGB").save(path, icc_profile=profile, lossless=True)
    assert difference(read_image(path), by_littlecms(noise("RGB"), profile)) <= 2
    assert image_info(path).reading.rule == "ICC profile"


@pytest.mark.parametrize("suffix", [".jpg", ".avif"])
def test_profiles_of_lossy_formats(tmp_path, suffix):
    path, profile = tmp_path / f"a{suffix}", RGB_PROFILES["Display P3"]
    noise("RGB").save(path, icc_profile=profile, quality=100, subsampling="4:4:4")
    with Image.open(path) as stored:
        assert difference(read_image(path), by_littlecms(stored.convert("RGB"), profile)) <= 2


def test_profiles_of_palettes_and_of_transparent_pictures(tmp_path):
    profile = RGB_PROFILES["Adobe RGB"]
    plain = Image.new("RGB", (8, 8), COLOUR)
    plain.quantize(4).save(tmp_path / "palette.png", icc_profile=profile)
    clear = plain.copy()
    clear.putalpha(Image.new("L", (8, 8), 128))
    clear.save(tmp_path / "clear.png", icc_profile=profile)
    seen = by_littlecms(plain, profile)
    assert difference(read_image(tmp_path / "palette.png"), seen) <= 2
    half = np.asarray(seen).astype(float) * 128 / 255 + 127
    assert difference(read_image(tmp_path / "clear.png"), half.round()) <= 2


@pytest.mark.parametrize("curve", [1.0, 1.8, 2.2])
def test_profiles_of_grey_of_8_and_16_bits(tmp_path, curve):
    profile = icc.grey_profile(curve)
    levels = np.linspace(0, 65535, 64 * 32).reshape(32, 64).astype(np.uint16)
    eight = Image.fromarray((levels >> 8).astype(np.uint8))
    eight.save(tmp_path / "8.png", icc_profile=profile)
    assert difference(read_image(tmp_path / "8.png"), by_littlecms(eight, profile)) <= 2
    Image.fromarray(levels).save(tmp_path / "16.png", icc_profile=profile)
    light = (levels / 65535.0) ** curve
    exact = 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    assert difference(np.asarray(read_image(tmp_path / "16.png"))[..., 0], exact.round()) <= 2
    Image.fromarray(levels).save(tmp_path / "16.png", icc_profile=RGB_PROFILES["linear"])
    rounded = Image.fromarray((levels / 257.0).round().astype(np.uint8)).convert("RGB")
    assert difference(read_image(tmp_path / "16.png"), by_littlecms(rounded, RGB_PROFILES["linear"])) <= 2
    transparent = Image.merge("LA", (eight, Image.new("L", eight.size, 255)))
    transparent.save(tmp_path / "la.png", icc_profile=profile)
    assert difference(read_image(tmp_path / "la.png"), by_littlecms(eight, profile)) <= 2


@pytest.mark.parametrize("suffix", [".tif", ".jpg"])
def test_profiles_of_inks(tmp_path, suffix):
    path, profile = tmp_path / f"a{suffix}", icc.cmyk_profile()
    noise("CMYK").save(path, icc_profile=profile, quality=100, subsampling=0)
    with Image.open(path) as stored:
        stored.load()
        assert difference(read_image(path), by_littlecms(stored, profile)) <= 2
        assert difference(read_image(path), stored.convert("RGB")) > 20


def test_profiles_where_pillow_does_not_look(tmp_path):
    profile = RGB_PROFILES["Adobe RGB"]
    plain, seen = Image.new("RGB", (16, 16), COLOUR), by_littlecms(Image.new("RGB", (16, 16), COLOUR), profile)
    plain.save(tmp_path / "a.jp2", irreversible=False)
    whole = (tmp_path / "a.jp2").read_bytes()
    at = whole.index(b"colr") - 4
    length = struct.unpack_from(">I", whole, at)[0]
    box = struct.pack(">I4s", 11 + len(profile), b"colr") + b"\2\0\0" + profile
    outer = whole.index(b"jp2h") - 4
    grown = struct.unpack_from(">I", whole, outer)[0] - length + len(box)
    (tmp_path / "a.jp2").write_bytes(
        whole[:outer] + struct.pack(">I", grown) + whole[outer + 4 : at] + box + whole[at + length :]
    )
    plain.save(tmp_path / "a.gif")
    whole = (tmp_path / "a.gif").read_bytes()
    blocks = b"".join(bytes([len(part)]) + part for part in (profile[:255], profile[255:]))
    place = whole.index(b"\x2c")
    (tmp_path / "a.gif").write_bytes(whole[:place] + b"\x21\xff\x0bICCRGBG1012" + blocks + b"\0" + whole[place:])
    plain.save(tmp_path / "a.bmp")
    pixels = (tmp_path / "a.bmp").read_bytes()[54:]
    head = struct.pack("<IiiHHIIiiII", 124, 16, 16, 1, 24, 0, len(pixels), 0, 0, 0, 0) + bytes(16) + b"DEBM"
    head = head.ljust(112, b"\0") + struct.pack("<III", 124 + len(pixels), len(profile), 0)
    start = struct.pack("<2sIHHI", b"BM", 138 + len(pixels) + len(profile), 0, 0, 138)
    (tmp_path / "a.bmp").write_bytes(start + head + pixels + profile)
    for name in ("a.jp2", "a.gif", "a.bmp"):
        assert difference(read_image(tmp_path / name), seen) <= 3, name


def test_srgb_profiles_change_nothing(tmp_path):
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for number, profile in enumerate((own, icc.rgb_profile(icc.SRGB, "srgb"))):
        path = tmp_path / f"{number}.png"
        noise("RGB").save(path, icc_profile=profile)
        assert (difference(read_image(path), noise("RGB")), image_info(path).reading.rule) == (0, "")


def test_profiles_that_are_none_or_of_other_pictures_are_ignored_and_named(tmp_path):
    Image.new("RGB", (64, 64), COLOUR).save(tmp_path / "none.png", icc_profile=b"this is no profile")
    Image.new("RGB", (64, 64), COLOUR).save(tmp_path / "inks.png", icc_profile=icc.cmyk_profile())
    Image.new("RGB", (64, 64), COLOUR).save(tmp_path / "wide.png", icc_profile=RGB_PROFILES["ProPhoto"])
    for name in ("none", "inks"):
        assert read_image(tmp_path / f"{name}.png").getpixel((5, 5)) == COLOUR
    config = DatasetConfig(instance_data_dir=str(tmp_path), caption_strategy="filename", resolution="64")
    assert sorted(scan_dataset(config).warnings) == [
        "1 of 3 pictures (a colour profile for CMYK in a picture of RGB, which is ignored): inks.png.",
        "1 of 3 pictures (a colour profile that cannot be read, which is ignored): none.png.",
        "1 of 3 pictures (another colour profile than sRGB: converted to sRGB): wide.png.",
    ]


def with_chunks(path, *chunks):
    """Puts chunks behind the head of a PNG."""
    whole = path.read_bytes()
    made = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    path.write_bytes(whole[:33] + made + whole[33:])
    return path


def test_what_png_says_without_a_profile(tmp_path):
    path = tmp_path / "a.png"

    def seen(*chunks):
        Image.new("RGB", (8, 8), COLOUR).save(path)
        return read_image(with_chunks(path, *chunks)).getpixel((4, 4))

    chromaticities = (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
    usual = [(b"gAMA", struct.pack(">I", 45455)), (b"cHRM", struct.pack(">8I", *chromaticities))]
    assert seen(*usual) == COLOUR
    linear = (b"gAMA", struct.pack(">I", 100000))
    assert seen(linear) == tuple(np.asarray(srgb(np.array(COLOUR) / 255.0)).tolist())
    # The chunk that stands for sRGB overrides gamma.
    assert seen((b"sRGB", b"\0"), linear) == COLOUR
    # Codes override all: primaries 12 and transfer 13 are Display P3.
    assert seen((b"cICP", bytes([12, 13, 0, 1])), linear) == pytest.approx((0, 163, 82), abs=1)
    assert seen((b"cICP", bytes([1, 13, 0, 1])), linear) == COLOUR


def test_adobe_rgb_as_cameras_mark_it(tmp_path):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA005] = {1: "R03"}
    Image.new("RGB", (16, 16), COLOUR).save(tmp_path / "a.jpg", exif=exif, quality=100)
    assert read_image(tmp_path / "a.jpg").getpixel((5, 5)) == pytest.approx((0, 161, 85), abs=3)


# HDR: patches by formulas written out here a second time.


def srgb(light):
    light = np.clip(light, 0, 1)
    return np.round(255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)).astype(int)


def linear(colour):
    x = np.asarray(colour, float) / 255
    return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


BT709_TO_BT2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])


def pq(nits):
    power = (np.asarray(nits) / 10000) ** (1305 / 8192)
    return ((107 / 128 + 2413 / 128 * power) / (1 + 2392 / 128 * power)) ** (2523 / 32)


def nits_of_pq(value):
    power = value ** (32 / 2523)
    return 10000 * (max(power - 107 / 128, 0) / (2413 / 128 - 2392 / 128 * power)) ** (8192 / 1305)


def hlg(nits):
    """BT.2020 light of a screen of 1000 cd/m2 -> R'G'B'."""
    shown = np.asarray(nits) / 1000
    luminance = max(shown @ [0.2627, 0.6780, 0.0593], 1e-9)
    scene = shown * luminance ** (1 / 1.2 - 1)
    logarithm = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), logarithm)


def eetf(nits, peak, target=203.0):
    """BT.2390-11, 5.4.1, for a black of 0."""
    value, ceiling = pq(nits) / pq(peak), pq(target) / pq(peak)
    knee = 1.5 * ceiling - 0.5
    if value > knee:
        t = (value - knee) / (1 - knee)
        value = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (-2 * t**3 + 3 * t**2) * ceiling
    return nits_of_pq(value * pq(peak))


def planar(layout, planes):
    height, width = planes[0].shape
    made = av.VideoFrame(width, height, layout)
    for plane, array in zip(made.planes, planes, strict=True):
        rows = np.zeros((plane.height, plane.line_size // array.itemsize), array.dtype)
        rows[:, : array.shape[1]] = array
        plane.update(rows.tobytes())
    return made


def write_codes(path, patches, **tags):
    """A clip of 15 equal pictures, of upright stripes in R'G'B' 0..1 of BT.2020, 10 bits, limited range."""
    columns = [np.repeat([patch], 32, 0) for patch in patches]
    r, g, b = (np.concatenate([each[:, channel] for each in columns]) for channel in range(3))
    luma = 0.2627 * r + 0.678 * g + 0.0593 * b
    lines = (64 + 876 * luma, 512 + 896 * (b - luma) / 1.8814, 512 + 896 * (r - luma) / 1.4746)
    planes = [np.tile(line.round().astype("<u2"), (32, 1)) for line in lines]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx265", rate=15, options={"crf": "2", "x265-params": "log-level=none"})
        stream.width, stream.height, stream.pix_fmt = planes[0].shape[1], 32, "yuv444p10le"
        for name, value in {"color_primaries": 9, "colorspace": 9, "color_range": 1, **tags}.items():
            setattr(stream.codec_context, name, value)
        for _ in range(15):
            container.mux(stream.encode(planar("yuv444p10le", planes)))
        container.mux(stream.encode())
    return path


SDR_PATCHES = [(255, 255, 255), (128, 128, 128), (60, 160, 90), (200, 60, 40), (30, 60, 200), (250, 220, 90)]
BRIGHT = [1000.0, 600.0, 300.0, 150.0, 40.0, 5.0]


@pytest.mark.parametrize(("transfer", "encode"), [(16, pq), (18, hlg)])
def test_hdr_of_the_range_of_sdr_comes_back(tmp_path, transfer, encode):
    patches = [encode(BT709_TO_BT2020 @ linear(colour) * 203) for colour in SDR_PATCHES]
    path = write_codes(tmp_path / "hdr.mp4", patches, color_trc=transfer)
    picture = next(iterate_pictures(path, 0, 1, 15))
    for place, colour in enumerate(SDR_PATCHES):
        assert picture.getpixel((32 * place + 16, 16)) == pytest.approx(colour, abs=4)
    assert probe_video(path).reading.note.endswith("HDR, tone-mapped to BT.709")


@pytest.mark.parametrize(("transfer", "encode"), [(16, pq), (18, hlg)])
def test_highlights_are_mapped_by_bt_2390(tmp_path, transfer, encode):
    patches = [encode(np.full(3, nits)) for nits in BRIGHT]
    picture = next(iterate_pictures(write_codes(tmp_path / "hdr.mp4", patches, color_trc=transfer), 0, 1, 15))
    for place, nits in enumerate(BRIGHT):
        (expected,) = srgb(np.array([eetf(nits, BRIGHT[0]) / 203])).tolist()
        assert picture.getpixel((32 * place + 16, 16)) == pytest.approx((expected,) * 3, abs=4)


def test_tone_mapping_keeps_hues_and_leaves_dark_pictures():
    dark = np.random.default_rng(0).random((4, 4, 3), dtype=np.float32)
    assert tone_mapped(dark) is dark
    bright = np.array([[[4.0, 2.0, 1.0], [0.2, 0.1, 0.1]]], np.float32)
    mapped = tone_mapped(bright)
    assert mapped[0, 0] / mapped[0, 0, 2] == pytest.approx([4, 2, 1], rel=1e-5)
    assert mapped[0, 0].max() == pytest.approx(1.0, abs=0.01) and (mapped[0, 1] == bright[0, 1]).all()


def test_gamut_of_bt_2020_is_that_of_its_standard():
    points = ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), (0.3127, 0.3290))
    assert np.linalg.inv(gamut_matrix(points)) == pytest.approx(BT709_TO_BT2020, abs=2e-4)


def test_wide_gamut_without_hdr_is_converted(tmp_path):
    coded = srgb(BT709_TO_BT2020 @ linear(COLOUR)) / 255
    path = write_codes(tmp_path / "wide.mp4", [coded], color_trc=14)
    assert next(iterate_pictures(path, 0, 1, 15)).getpixel((16, 16)) == pytest.approx(COLOUR, abs=3)
    assert probe_video(path).reading.rule == "BT.2020"


def test_colours_that_nothing_here_reads_are_refused(tmp_path):
    path = write_codes(tmp_path / "ictcp.mp4", [(0.5, 0.5, 0.5)], color_trc=16, colorspace=14)
    with pytest.raises(DataError, match=r"ictcp\.mp4 has colours of ICtCp.*Convert it"):
        probe_video(path)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(("code", "red", "blue"), [(1, 0.2126, 0.0722), (5, 0.299, 0.114), (9, 0.2627, 0.0593)])
def test_matrix_and_range_are_those_that_the_stream_says(tmp_path, code, red, blue, full):
    r, g, b = (value / 255 for value in COLOUR)
    luma = red * r + (1 - red - blue) * g + blue * b
    around = ((b - luma) / (2 - 2 * blue), (r - luma) / (2 - 2 * red))
    values = (
        [255 * luma, *(128 + 255 * c for c in around)] if full else [16 + 219 * luma, *(128 + 224 * c for c in around)]
    )
    sides = ((32, 32), (16, 16), (16, 16))
    planes = [np.full(side, round(value), np.uint8) for side, value in zip(sides, values, strict=True)]
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=15, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = code, 2 if full else 1
        for _ in range(2):
            container.mux(stream.encode(planar("yuv420p", planes)))
        container.mux(stream.encode())
    assert next(iterate_pictures(tmp_path / "a.mp4", 0, 1, 15)).getpixel((9, 9)) == pytest.approx(COLOUR, abs=3)
