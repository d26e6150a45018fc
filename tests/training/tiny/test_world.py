"""The drawn world: pictures, captions and edits are what their words say."""

import pytest
import torch
from comfyui_longcat.training.tiny import captions, edits
from comfyui_longcat.training.tiny.captions import CHINESE, MOVES, PLACES, clip_captions, picture_captions
from comfyui_longcat.training.tiny.edits import BORDER_WIDTH, EDITS, KNOWN, allows, draw_edits
from comfyui_longcat.training.tiny.world import (
    BACKGROUNDS,
    COLOURS,
    JITTER,
    POSITIONS,
    RADII,
    SHAPES,
    SIDE,
    Look,
    draw,
    looks,
    moved,
    pictures,
    place_scenes,
    rgb,
)

MIDDLE = Look(shape="square", colour="red", background="white", position="middle")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def scenes_of(*chosen, seed=0):
    return place_scenes(list(chosen), generator(seed))


def test_looks_are_split_into_seen_and_held_out():
    seen, held_out = looks(held_out=False), looks(held_out=True)
    assert len(seen) == 316 and len(held_out) == 44 and not set(seen) & set(held_out)
    assert set(looks()) == {*seen, *held_out} and len(looks()) == 3 * 6 * 4 * 5
    # Every word is seen in training, and every word is asked for in what was held out.
    for kind, words in (("shape", SHAPES), ("colour", COLOURS), ("background", BACKGROUNDS), ("position", POSITIONS)):
        for chosen in (seen, held_out):
            assert {getattr(look, kind) for look in chosen} == set(words)


def test_scenes_are_where_and_as_large_as_their_words_say():
    chosen = looks()
    scenes = place_scenes(chosen, generator())
    wanted = torch.tensor([POSITIONS[look.position] for look in chosen]) + 0.5
    assert (scenes.centres - wanted).abs().max() <= JITTER
    assert RADII[0] <= scenes.radii.min() and scenes.radii.max() <= RADII[1]
    assert [SHAPES[number] for number in scenes.shapes] == [look.shape for look in chosen]


def test_same_seed_same_scenes():
    first, again, other = (place_scenes(looks()[:5], generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(draw(first), draw(again)) and not torch.equal(draw(first), draw(other))


@pytest.mark.parametrize("size", [32, SIDE, 96])
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_cover_the_area_of_their_formula(shape, size):
    scenes = scenes_of(Look(shape=shape, colour="red", background="white", position="middle"))
    pixels = draw(scenes, size)
    assert pixels.shape == (1, 3, size, size)
    # The green channel falls from the ground's 250 to the shape's 40.
    inside = ((250 / 127.5 - 1) - pixels[0, 1]).sum() / ((250 - 40) / 127.5)
    radius = scenes.radii.item() * size
    area = {
        "circle": torch.pi * radius**2,
        "square": (2 * 0.85 * radius) ** 2,
        "triangle": 3 * 3**0.5 / 4 * (1.2 * radius) ** 2,
    }[shape]
    assert inside.item() == pytest.approx(area, rel=0.03)


def test_triangles_point_up():
    pixels = draw(scenes_of(Look(shape="triangle", colour="red", background="white", position="middle")))
    rows, _ = (pixels[0, 1] < 0).nonzero(as_tuple=True)
    widths = [int((rows == row).sum()) for row in rows.unique()]
    assert widths == sorted(widths) and widths[0] <= 3 and widths[-1] > 15


def test_larger_pictures_show_the_same():
    scenes = place_scenes(looks()[::40], generator())
    small, large = draw(scenes, 64), draw(scenes, 256)
    assert (torch.nn.functional.avg_pool2d(large, 4) - small).abs().mean() < 0.01


def test_moved_scenes_are_drawn_elsewhere():
    scenes = scenes_of(MIDDLE)
    shifted = draw(moved(scenes, -8 / SIDE, 4 / SIDE))
    assert torch.allclose(shifted, torch.roll(draw(scenes), (4, -8), dims=(2, 3)), atol=1e-4)


def test_pictures_have_the_named_colours():
    (picture,) = pictures(draw(scenes_of(MIDDLE)))
    assert (picture.size, picture.mode) == ((SIDE, SIDE), "RGB")
    assert picture.getpixel((0, 0)) == BACKGROUNDS["white"]
    assert picture.getpixel((SIDE // 2, SIDE // 2)) == COLOURS["red"]


# Captions


def test_captions_name_everything_in_both_languages():
    for look in looks():
        texts = picture_captions(look)
        assert len(set(texts)) == 5
        english, chinese = [t for t in texts if t.isascii()], [t for t in texts if not t.isascii()]
        assert len(english) == 3 and len(chinese) == 2
        for text in english:
            assert all(word in text for word in (look.shape, look.colour, look.background, PLACES[look.position]))
        for text in chinese:
            words = (look.shape, look.colour, look.background, look.position)
            assert all(CHINESE[word] in text for word in words) and not any(c.isascii() for c in text)


def test_no_two_looks_have_the_same_caption():
    texts = [text for look in looks() for text in picture_captions(look)]
    assert len(set(texts)) == len(texts) == 5 * 360


def test_word_lists_hold_every_word():
    english, chinese = set(captions.english_words()), captions.chinese_words()
    for look in looks():
        of_clips = (text for direction in MOVES for text in clip_captions(look, direction))
        for text in (*picture_captions(look), *of_clips):
            if text.isascii():
                assert {word.strip(",") for word in text.split()} <= english
            else:
                for word in sorted(chinese, key=len, reverse=True):
                    text = text.replace(word, "")
                assert text == ""
    instructions = draw_all("recolour") + draw_all("dot") + draw_all("left") + draw_all("border")
    known = english | set(edits.english_words())
    assert all({*text.split()} <= known for text in instructions if text.isascii())


def draw_all(kind):
    """Instructions of all looks that allow the edit."""
    allowed = [look for look in looks() if allows(look, kind)]
    return draw_edits(kind, allowed, place_scenes(allowed, generator()), generator(1), size=8).instructions


# Edits


@pytest.mark.parametrize("kind", EDITS)
def test_every_edit_changes_the_picture_as_it_says(kind):
    allowed = [look for look in looks() if allows(look, kind)]
    scenes = place_scenes(allowed, generator())
    drawn = draw_edits(kind, allowed, scenes, generator(1))
    assert torch.equal(drawn.references, draw(scenes))
    assert (drawn.targets - drawn.references).abs().amax(dim=(1, 2, 3)).min() > 0.3
    assert any(text.isascii() for text in drawn.instructions) and not all(text.isascii() for text in drawn.instructions)
    for look, text, target in zip(allowed, drawn.instructions, drawn.targets, strict=True):
        assert text and "{" not in text
        if kind == "recolour":
            assert_colour_named(target, text, COLOURS, look)
        elif kind == "background":
            (name,) = [name for name, colour in BACKGROUNDS.items() if torch.equal(target[:, 0, 0], rgb(colour)[0])]
            assert name in text or CHINESE[name] in text


def assert_colour_named(target, text, names, look):
    """The named colour is in the picture, and it is another one than before."""
    (name,) = [name for name in names if (text.split()[-1] == name if text.isascii() else text.endswith(CHINESE[name]))]
    assert name != look.colour
    assert (target - rgb(names[name])[0][:, None, None]).abs().amax(dim=0).min() < 1e-5


def test_invert_is_exact_and_left_goes_left():
    drawn = draw_edits("invert", [MIDDLE], scenes_of(MIDDLE), generator())
    assert torch.equal(drawn.targets, -drawn.references)
    left = draw_edits("left", [MIDDLE], scenes_of(MIDDLE), generator()).targets
    red = (left[0, 1] < 0).nonzero()[:, 1].float().mean() + 0.5
    assert red.item() == pytest.approx(64 * (scenes_of(MIDDLE).centres[0, 0].item() - 0.2), abs=0.5)
    assert not allows(Look(shape="square", colour="red", background="white", position="left"), "left")


def test_the_border_is_blue_and_nothing_else_changes():
    drawn = draw_edits("border", looks(), place_scenes(looks(), generator()), generator())
    width = round(BORDER_WIDTH * SIDE)
    inner = slice(width, SIDE - width)
    assert torch.equal(drawn.targets[:, :, inner, inner], drawn.references[:, :, inner, inner])
    outside = torch.ones(SIDE, SIDE, dtype=torch.bool)
    outside[inner, inner] = False
    assert torch.allclose(drawn.targets[:, :, outside], rgb(COLOURS["blue"])[0][None, :, None], atol=1e-5)


def test_the_border_is_not_among_what_the_twin_knows():
    assert set(EDITS) - set(KNOWN) == {"border"}
    assert not any("border" in word for kind in KNOWN for word in EDITS[kind].wordings)
