"""Resolutions as users write them."""

import pytest
from comfyui_longcat.training.errors import ConfigError
from comfyui_longcat.training.settings.dataset import DatasetConfig
from comfyui_longcat.training.settings.geometry import parse_resolutions


@pytest.mark.parametrize(
    ("text", "resolution_type", "entries"),
    [
        ("768", "pixel_area", (768,)),
        (" 512 , 1024 ", "pixel_area", (512, 1024)),
        ("768.0", "pixel", (768,)),
        ("1024x1024,1344X768", "pixel_area", ((1024, 1024), (1344, 768))),
        ("480x832, 512", "pixel_area", ((480, 832), 512)),
        ("1", "area", (1024,)),
        ("0.25,1.0", "area", (512, 1024)),
    ],
)
def test_read_in_the_order_written(text, resolution_type, entries):
    assert parse_resolutions(text, resolution_type, "resolution") == entries


@pytest.mark.parametrize(
    ("text", "resolution_type", "words"),
    [
        ("", "pixel_area", "write one number"),
        ("512,", "pixel_area", "write one number"),
        ("large", "pixel_area", "'large'; write one number"),
        ("1.0", "pixel_area", "between 64 and 4096 px. For megapixels choose resolution_type area"),
        ("768", "area", "between 0.01 and 16 megapixels. For sides in px choose resolution_type pixel_area"),
        ("nan", "area", "between 0.01 and 16"),
        ("inf", "pixel", "between 64 and 4096"),
        ("500.5", "pixel_area", "whole number"),
        ("500", "pixel", "multiple of 16. Use 496 or 512"),
        ("512,512.0", "pixel_area", "names 512 = 512.0 more than once"),
        ("1024x", "pixel_area", "WIDTHxHEIGHT"),
        ("1000x512", "pixel_area", "1000; it must be a multiple of 16"),
        ("8192x512", "pixel_area", "between 16 and 4096"),
    ],
)
def test_refused_with_value_and_remedy(text, resolution_type, words):
    with pytest.raises(ConfigError) as caught:
        DatasetConfig(resolution=text, resolution_type=resolution_type)
    assert "resolution (LongCat Dataset)" in str(caught.value) and words in str(caught.value)


def test_squares_alone_go_with_oblong_sizes():
    with pytest.raises(ConfigError, match="crop_aspect .* is square, but resolution holds 1344x768"):
        DatasetConfig(resolution="1024x1024,1344x768", crop_aspect="square")
    assert DatasetConfig(resolution="1024x1024,512", crop_aspect="square").resolution == "1024x1024,512"


def test_one_caption_for_all_must_be_given():
    with pytest.raises(ConfigError, match="instance_prompt .* is empty"):
        DatasetConfig(caption_strategy="instanceprompt", instance_prompt="  ")
