"""The drawn clips: real files in which the shape does what the caption says."""

import numpy as np
import pytest
from comfyui_longcat.training.data.clips import read_clip
from comfyui_longcat.training.data.media import read_image, to_pixels
from comfyui_longcat.training.data.video_files import probe_video
from comfyui_longcat.training.tiny.clips_world import CHINESE_MOVES, ENGLISH_MOVES, draw_clips, draw_example_clips


def centre(picture) -> np.ndarray:
    """(x, y) of what differs from the ground, in px."""
    pixels = np.asarray(picture).astype(int)
    differs = np.abs(pixels - pixels[0, 0]).sum(axis=-1) > 60
    rows, columns = np.nonzero(differs)
    return np.array([columns.mean(), rows.mean()])


@pytest.mark.parametrize(
    ("way", "towards"), [("right", (1, 0)), ("left", (-1, 0)), ("up", (0, -1)), ("down", (0, 1)), ("still", (0, 0))]
)
def test_shapes_move_as_named(way, towards):
    clips = [pictures for name, pictures, _ in draw_clips(10) if name.endswith(f"-{way}")]
    assert len(clips) == 2
    for pictures in clips:
        travelled = centre(pictures[-1]) - centre(pictures[0])
        assert travelled == pytest.approx(np.array(towards) * 0.4 * 64, abs=1.5)
        # Inside the picture from the first frame to the last.
        assert all((np.asarray(p)[[0, -1]] == np.asarray(p)[0, 0]).all() for p in pictures)


def test_captions_name_the_way_in_both_languages():
    captions = {name: caption for name, _, caption in draw_clips(12)}
    chinese = [caption for caption in captions.values() if not caption.isascii()]
    assert 0 < len(chinese) < len(captions)
    for name, caption in captions.items():
        colour, _, way = name.split("-")[1:]
        moves = ENGLISH_MOVES if caption.isascii() else CHINESE_MOVES
        assert moves[way] in caption
        assert not caption.isascii() or colour in caption


def test_same_seed_same_clips():
    first, again, other = draw_clips(2, seed=3), draw_clips(4, seed=3), draw_clips(2, seed=4)
    assert [c[1] for c in first] == [c[1] for c in again[:2]]
    assert [c[1] for c in first] != [c[1] for c in other]


def test_files_hold_what_was_drawn(tmp_path):
    clips, starts = tmp_path / "clips", tmp_path / "starts"
    draw_example_clips(clips, starts, count=3)
    names = sorted(path.stem for path in starts.iterdir())
    assert sorted(path.name for path in clips.iterdir()) == sorted(f"{n}{x}" for n in names for x in (".mp4", ".txt"))
    for name, pictures, _ in draw_clips(3):
        info = probe_video(clips / f"{name}.mp4")
        assert (info.size, info.frames, info.fps) == ((64, 64), 9, 15)
        pixels = read_clip(clips / f"{name}.mp4", 0, 9, 15, (64, 64))
        for index, picture in enumerate(pictures):
            assert (pixels[:, :, index] - to_pixels(picture, (64, 64))).abs().mean() < 0.03
        assert read_image(starts / f"{name}.png") == pictures[0]


def test_folders_that_hold_files_are_left_alone(tmp_path):
    clips = tmp_path / "clips"
    clips.mkdir()
    (clips / "mine.mp4").write_bytes(b"kept")
    draw_example_clips(clips, tmp_path / "starts", count=2)
    assert [path.name for path in clips.iterdir()] == ["mine.mp4"]
    assert len(list((tmp_path / "starts").iterdir())) == 2
