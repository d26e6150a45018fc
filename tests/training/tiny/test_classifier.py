"""The classifier reads every drawing, and reads nothing into noise or wrong labels."""

import pytest
import torch
from comfyui_longcat.training.tiny.classifier import psnr, read_directions, read_pictures
from comfyui_longcat.training.tiny.clips import DIRECTIONS, FRAMES, START_SPREAD, TRAVEL, draw_clips
from comfyui_longcat.training.tiny.edits import add_border
from comfyui_longcat.training.tiny.world import draw, looks, place_scenes


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def drawings():
    """Pixels of every look, and the looks."""
    return draw(place_scenes(looks(), generator())), looks()


def share(truths) -> float:
    truths = list(truths)
    return sum(truths) / len(truths)


def test_every_drawing_is_read(drawings):
    pixels, chosen = drawings
    readings = read_pictures(pixels)
    assert share(reading.shows(look) for reading, look in zip(readings, chosen, strict=True)) == 1.0


def test_a_border_is_not_looked_at(drawings):
    pixels, chosen = drawings
    readings = read_pictures(add_border(pixels), margin=5)
    assert share(reading.shows(look) for reading, look in zip(readings, chosen, strict=True)) == 1.0
    blind = read_pictures(add_border(pixels))
    assert not any(reading.shows(look) for reading, look in zip(blind, chosen, strict=True))


@pytest.mark.parametrize("spread", [0.05, 0.1])
def test_a_little_noise_is_read_through(drawings, spread):
    pixels, chosen = drawings
    noisy = pixels + spread * torch.randn(pixels.shape, generator=generator(1))
    readings = read_pictures(noisy)
    assert share(reading.shows(look) for reading, look in zip(readings, chosen, strict=True)) > 0.97


def test_centres_are_where_the_shapes_are(drawings):
    pixels, _ = drawings
    scenes = place_scenes(looks(), generator())
    read = torch.tensor([reading.centre for reading in read_pictures(pixels)])
    assert (read - 64 * scenes.centres).abs().max() < 1.0


def test_nothing_is_read_into_noise_or_a_plain_ground(drawings):
    _, chosen = drawings
    noise = torch.rand(60, 3, 64, 64, generator=generator(2)) * 2 - 1
    assert not any(reading.shows(look) for reading, look in zip(read_pictures(noise), chosen, strict=False))
    assert all(reading.colour is None for reading in read_pictures(noise))
    (plain,) = read_pictures(torch.full((1, 3, 64, 64), 250 / 127.5 - 1))
    assert (plain.background, plain.shape, plain.colour, plain.centre) == ("white", None, None, None)


def test_wrong_labels_are_right_by_chance_only(drawings):
    pixels, chosen = drawings
    order = torch.randperm(len(chosen), generator=generator(3)).tolist()
    readings = read_pictures(pixels)
    matches = [
        (reading.shape, reading.colour) == (chosen[other].shape, chosen[other].colour)
        for reading, other in zip(readings, order, strict=True)
    ]
    # One of 3 shapes and of 6 colours: 1 in 18.
    assert 0.02 < share(matches) < 0.1


def drawn_clips(direction, count=40):
    return draw_clips(looks()[:: 360 // count][:count], [direction] * count, generator())


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_directions_of_drawn_clips_are_read(direction):
    clips = drawn_clips(direction)
    assert clips.pixels.shape == (40, 3, FRAMES, 64, 64)
    assert read_directions(clips.pixels) == [direction] * 40
    across, down = DIRECTIONS[direction]
    way = clips.paths[:, -1] - clips.paths[:, 0]
    assert torch.allclose(way, 64 * TRAVEL * torch.tensor([[float(across), float(down)]]).expand(40, 2), atol=1e-3)
    assert (clips.paths[:, 0] / 64 - 0.5).abs().max() <= START_SPREAD + 1e-6


def test_half_a_way_and_noise_are_no_direction():
    half = drawn_clips("up").pixels[:, :, : FRAMES // 2 + 1]
    assert read_directions(half) == [None] * 40
    noise = torch.rand(10, 3, FRAMES, 64, 64, generator=generator(4)) * 2 - 1
    assert not any(direction not in (None, "still") for direction in read_directions(noise))


def test_psnr_is_that_of_its_formula():
    black, grey = torch.full((2, 3, 8, 8), -1.0), torch.full((2, 3, 8, 8), -0.8)
    # An error of 0.1 of the range: 20 dB.
    assert torch.allclose(psnr(grey, black), torch.tensor([20.0, 20.0]), atol=1e-3)
    assert psnr(black, black).min() >= 100
