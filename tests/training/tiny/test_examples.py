"""Examples as files: pairs, captioned pictures and clips, the same from the same seed, unseen ones of unseen looks."""

import numpy as np
import pytest
from comfyui_longcat.training.data.clips import read_clip
from comfyui_longcat.training.data.media import read_image, to_pixels
from comfyui_longcat.training.data.video_files import probe_video
from comfyui_longcat.training.errors import ConfigError
from comfyui_longcat.training.tiny.captions import MOVES, picture_captions
from comfyui_longcat.training.tiny.classifier import read_directions, read_pictures
from comfyui_longcat.training.tiny.clips import DIRECTIONS, TRAVEL
from comfyui_longcat.training.tiny.edits import EDITS
from comfyui_longcat.training.tiny.examples import (
    draw_example_clips,
    draw_example_pairs,
    draw_example_pictures,
    draw_moves,
    draw_pairs,
)
from comfyui_longcat.training.tiny.world import BACKGROUNDS, COLOURS, SHAPES, Look, looks
from PIL import Image


def look_of(picture) -> Look:
    """What the classifier sees in a picture."""
    (seen,) = read_pictures(to_pixels(picture, picture.size))
    return Look(shape=seen.shape, colour=seen.colour, background=seen.background, position=seen.position)


def test_writes_pairs_of_equal_names_with_instructions(tmp_path):
    targets, references = tmp_path / "targets", tmp_path / "references"
    draw_example_pairs(targets, references, count=5, size=32)
    stems = sorted(path.stem for path in references.iterdir())
    assert len(stems) == 5
    assert sorted(path.name for path in targets.iterdir()) == sorted(f"{s}{x}" for s in stems for x in (".png", ".txt"))
    texts = {(targets / f"{stem}.txt").read_text(encoding="utf-8") for stem in stems}
    assert texts == {f"{wording}\n" for wording in EDITS["border"].wordings}
    with Image.open(targets / f"{stems[0]}.png") as picture:
        assert (picture.size, picture.mode) == ((32, 32), "RGB")


def test_writes_pictures_whose_captions_say_what_is_drawn(tmp_path):
    folder = tmp_path / "pictures"
    draw_example_pictures(folder, seed=1)
    captions = {path.stem: path.read_text(encoding="utf-8").strip() for path in folder.glob("*.txt")}
    assert len(captions) == len(list(folder.glob("*.png"))) == 12
    assert 0 < sum(caption.isascii() for caption in captions.values()) < 12
    for name, caption in captions.items():
        look = look_of(read_image(folder / f"{name}.png"))
        assert caption in picture_captions(look) and name.split("-")[1:] == [look.colour, look.shape]


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("unseen", [False, True])
def test_pairs_are_of_the_looks_that_are_asked_for(edit, unseen):
    pairs = draw_pairs(8, edit=edit, unseen=unseen)
    for _, reference, target, instruction in pairs:
        assert look_of(reference) in looks(held_out=unseen)
        assert np.abs(np.array(reference).astype(int) - np.array(target)).max() > 30
        assert "{" not in instruction
    assert {instruction.isascii() for *_, instruction in pairs} == {True, False}


def test_same_seed_same_pairs_other_seed_other_pairs():
    def pixels(**arguments):
        return [np.array(picture) for pair in draw_pairs(size=32, **arguments) for picture in pair[1:3]]

    first = pixels(count=4, seed=7)
    assert all((a == b).all() for a, b in zip(first, pixels(count=6, seed=7)[:8], strict=True))
    assert not all((a == b).all() for a, b in zip(first, pixels(count=4, seed=8), strict=True))


def test_names_are_unique_and_a_dozen_shows_every_word():
    assert len({name for name, *_ in draw_pairs(30, size=16)}) == 30
    dozen = [look_of(reference) for _, reference, _, _ in draw_pairs(12)]
    for kind, words, each in (("shape", SHAPES, 4), ("colour", COLOURS, 2), ("background", BACKGROUNDS, 3)):
        shown = [getattr(look, kind) for look in dozen]
        assert {word: shown.count(word) for word in words} == dict.fromkeys(words, each)


@pytest.mark.parametrize("way", DIRECTIONS)
def test_clips_move_as_named(way):
    for name, pictures, caption in draw_moves(6, directions=(way,)):
        pixels = np.stack([to_pixels(picture, (64, 64)) for picture in pictures], axis=2)[0]
        assert read_directions(to_clip(pixels)) == [way]
        assert name.endswith(f"-{way}") and any(move in caption for move in MOVES[way])
        # Inside the picture from the first frame to the last.
        assert all((np.asarray(p)[[0, -1]] == np.asarray(p)[0, 0]).all() for p in pictures)


def to_clip(pixels):
    import torch

    return torch.from_numpy(pixels)[None]


def test_clips_follow_each_other_through_the_directions_in_both_languages():
    clips = list(draw_moves(7, directions=("up", "left")))
    assert [name.split("-")[-1] for name, *_ in clips] == ["up", "left", "up", "left", "up", "left", "up"]
    captions = [caption for *_, caption in draw_moves(4)]
    assert {caption.isascii() for caption in captions} == {True, False}


@pytest.mark.parametrize("unseen", [False, True])
def test_clips_are_of_the_looks_that_are_asked_for(unseen):
    def words(look):
        return (look.shape, look.colour, look.background)

    middle = {words(look) for look in looks(held_out=unseen) if look.position == "middle"}
    shown = [look_of(pictures[0]) for _, pictures, _ in draw_moves(8, unseen=unseen)]
    assert {words(look) for look in shown} <= middle


def test_same_seed_same_clips():
    first, again, other = (list(draw_moves(count, seed=seed)) for count, seed in ((2, 3), (4, 3), (2, 4)))
    assert [clip[1] for clip in first] == [clip[1] for clip in again[:2]]
    assert [clip[1] for clip in first] != [clip[1] for clip in other]


def test_more_frames_make_the_same_clip_slower():
    ((_, few, _),) = draw_moves(1, frames=3, seed=2)
    ((_, many, _),) = draw_moves(1, frames=9, seed=2)
    assert few == many[::4]
    assert TRAVEL * 64 < 64 / 2


def test_video_files_hold_what_was_drawn(tmp_path):
    clips, starts = tmp_path / "clips", tmp_path / "starts"
    draw_example_clips(clips, starts, count=3)
    names = sorted(path.stem for path in starts.iterdir())
    assert sorted(path.name for path in clips.iterdir()) == sorted(f"{n}{x}" for n in names for x in (".mp4", ".txt"))
    for name, pictures, caption in draw_moves(3):
        info = probe_video(clips / f"{name}.mp4")
        assert (info.size, info.frames, info.fps) == ((64, 64), 9, 15)
        pixels = read_clip(clips / f"{name}.mp4", 0, 9, 15, (64, 64))
        for index, picture in enumerate(pictures):
            assert (pixels[:, :, index] - to_pixels(picture, (64, 64))).abs().mean() < 0.03
        assert read_image(starts / f"{name}.png") == pictures[0]
        assert (clips / f"{name}.txt").read_text(encoding="utf-8") == f"{caption}\n"


def draw_pairs_at(home):
    draw_example_pairs(home / "first", home / "second", count=2, size=16)


def draw_clips_at(home):
    draw_example_clips(home / "first", home / "second", count=2, size=16, frames=5)


@pytest.mark.parametrize(("draw", "number"), [(draw_pairs_at, 2), (draw_clips_at, 2)])
def test_folders_that_hold_files_are_left_alone(tmp_path, draw, number):
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "mine.txt").write_text("kept", encoding="utf-8")
    draw(tmp_path)
    assert [path.name for path in (tmp_path / "first").iterdir()] == ["mine.txt"]
    assert len(list((tmp_path / "second").iterdir())) == number


def test_a_folder_of_pictures_is_left_alone(tmp_path):
    draw_example_pictures(tmp_path / "pictures", count=2, size=16)
    before = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    draw_example_pictures(tmp_path / "pictures", count=9, size=16)
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == before


@pytest.mark.parametrize("draw", [draw_pairs_at, draw_clips_at])
def test_an_interrupted_drawing_leaves_no_folder(tmp_path, monkeypatch, draw):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        draw(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_is_unknown_is_refused():
    with pytest.raises(ConfigError, match=r"'blur'.*recolour, background, invert, left, dot, border"):
        draw_pairs(1, edit="blur")
    with pytest.raises(ConfigError, match=r"'round'.*right, left, down, still, up"):
        next(draw_moves(1, directions=("round",)))
