"""The pictures of README and templates, from lessons of two steps: what they show and how large they are."""

import pytest
from comfyui_longcat.nodes.graph.catalogue import WORKFLOWS
from comfyui_longcat.nodes.terminal.demo_lessons import BorderEdit, MovesUp
from comfyui_longcat.nodes.terminal.host import TerminalHost
from comfyui_longcat.tests.twins.showcase import make_pictures, thumbnail
from PIL import Image


@pytest.mark.slow
def test_every_workflow_gets_its_picture_and_the_page_its_sheets(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    lessons = BorderEdit(steps=2, unseen=2), MovesUp(steps=2, unseen=2)
    grids = make_pictures(TerminalHost(tmp_path / "home", device="cpu"), images, *lessons)
    assert sorted(path.name for path in images.iterdir()) == ["demo_edit.png", "demo_video.png"]
    assert grids.keys() == WORKFLOWS.keys()
    for grid in grids.values():
        assert len({len(row) for row in grid}) == 1
        assert {picture.size for row in grid for picture in row} == {(64, 64)}
        picture = thumbnail(grid)
        assert 390 <= picture.width <= 400 and len(picture.getcolors(picture.width * picture.height)) > 100
    reference, before, after = grids["longcat_image_edit_sample"][0]
    with Image.open(tmp_path / "home" / "input" / "unseen-pictures" / f"{lessons[0].pairs[0][0]}.png") as shown:
        assert reference.tobytes() == shown.convert("RGB").tobytes()
    assert before.tobytes() != after.tobytes(), "strength 0 and 1 must differ"
