"""The drawn world: real files that teach one edit, the same from the same seed."""

import numpy as np
import pytest
from comfyui_longcat.training.errors import ConfigError
from comfyui_longcat.training.tiny.world import BLUE, COLOURS, draw_example_pairs, draw_example_pictures, draw_pairs
from PIL import Image


def test_writes_pairs_of_equal_names_with_instructions(tmp_path):
    targets, references = tmp_path / "targets", tmp_path / "references"
    draw_example_pairs(targets, references, count=5, size=32)
    stems = sorted(path.stem for path in references.iterdir())
    assert len(stems) == 5
    assert sorted(path.name for path in targets.iterdir()) == sorted(f"{s}{x}" for s in stems for x in (".png", ".txt"))
    texts = [(targets / f"{stem}.txt").read_text(encoding="utf-8").strip() for stem in stems]
    assert len(set(texts)) == 5
    assert any(text.isascii() for text in texts) and any("\u8fb9\u6846" in text for text in texts)
    with Image.open(targets / f"{stems[0]}.png") as picture:
        assert (picture.size, picture.mode) == ((32, 32), "RGB")


def test_writes_pictures_whose_captions_say_what_is_drawn(tmp_path):
    folder = tmp_path / "pictures"
    draw_example_pictures(folder, count=6, size=32, seed=1)
    captions = {path.stem: path.read_text(encoding="utf-8").strip() for path in folder.glob("*.txt")}
    assert len(captions) == len(list(folder.glob("*.png"))) == len(set(captions.values())) == 6
    for name, caption in captions.items():
        number, colour, shape = name.split("-")
        if int(number) % 3:
            article = "an" if colour == "orange" else "a"
            assert caption.startswith(f"{article} {colour} {shape} on a ") and caption.endswith(" background")
        else:
            assert "\u80cc\u666f\u4e0a\u7684" in caption and not any(c.isascii() for c in caption)
        with Image.open(folder / f"{name}.png") as picture:
            assert COLOURS[colour] in {pixel for _, pixel in picture.getcolors(4096)}
    (folder / "mine.txt").write_text("mine", encoding="utf-8")
    before = sorted(path.name for path in folder.iterdir())
    draw_example_pictures(folder, count=9)
    assert sorted(path.name for path in folder.iterdir()) == before


def test_the_edit_is_a_blue_border_and_nothing_else():
    _, reference, target, _ = draw_pairs(1, size=64)[0]
    before, after = np.array(reference), np.array(target)
    assert (after[:8] == BLUE).all() and (after[-8:] == BLUE).all()
    assert (after[:, :8] == BLUE).all() and (after[:, -8:] == BLUE).all()
    assert (after[8:-8, 8:-8] == before[8:-8, 8:-8]).all()
    assert not (before == BLUE).all(axis=-1).any()


@pytest.mark.parametrize("edit", ["border", "recolour", "invert"])
def test_every_edit_changes_the_picture(edit):
    for _, reference, target, instruction in draw_pairs(4, size=32, edit=edit):
        assert np.abs(np.array(reference).astype(int) - np.array(target)).max() > 60
        assert instruction and "{" not in instruction


def test_recolour_names_the_shape_and_invert_is_exact():
    name, _, _, instruction = draw_pairs(1, edit="recolour")[0]
    assert name.split("-")[-1] in instruction
    _, reference, target, _ = draw_pairs(1, edit="invert")[0]
    assert np.abs(255 - np.array(reference).astype(int) - np.array(target)).max() <= 1


def test_same_seed_same_pairs_other_seed_other_pairs():
    def pixels(**arguments):
        return [np.array(picture) for pair in draw_pairs(size=32, **arguments) for picture in pair[1:3]]

    first = pixels(count=4, seed=7)
    assert all((a == b).all() for a, b in zip(first, pixels(count=6, seed=7)[:8], strict=True))
    assert not all((a == b).all() for a, b in zip(first, pixels(count=4, seed=8), strict=True))


def test_names_are_unique_and_looks_vary():
    names = [name for name, *_ in draw_pairs(30, size=16)]
    assert len(set(names)) == 30
    assert {name.split("-")[2] for name in names} == {"circle", "square", "triangle"}
    assert {name.split("-")[1] for name in names} == set(COLOURS)


def test_folders_that_hold_files_are_left_alone(tmp_path):
    targets, references = tmp_path / "targets", tmp_path / "references"
    targets.mkdir()
    (targets / "mine.txt").write_text("kept", encoding="utf-8")
    draw_example_pairs(targets, references, count=2, size=16)
    assert [path.name for path in targets.iterdir()] == ["mine.txt"]
    assert len(list(references.iterdir())) == 2


def test_an_interrupted_drawing_leaves_no_folder(tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        draw_example_pairs(tmp_path / "targets", tmp_path / "references", count=2, size=16)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_edit_is_refused():
    with pytest.raises(ConfigError, match=r"'blur'.*border, recolour, invert"):
        draw_pairs(1, edit="blur")
