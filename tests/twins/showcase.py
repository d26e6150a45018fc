"""The pictures of README and of the workflow templates: `python -m comfyui_longcat.tests.twins.showcase [FOLDER]`.

All of them are results of the demo, whose finished runs below FOLDER (default: demo_output) are reused, and of the same
tiny models without a LoRA.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from comfyui_longcat.nodes.graph.sampling import Sampling, sampling_graph
from comfyui_longcat.nodes.images import one_picture
from comfyui_longcat.nodes.lora import NO_LORA
from comfyui_longcat.nodes.terminal.demo import one_thread, run_sampling, teach
from comfyui_longcat.nodes.terminal.demo_lessons import SHOWN_FRAMES, BorderEdit, MovesUp, frames_of
from comfyui_longcat.nodes.terminal.generate import ROOT
from comfyui_longcat.nodes.terminal.host import TerminalHost, say
from comfyui_longcat.training.files import replacing
from comfyui_longcat.training.rehearsal.scale import FRAMES, SIDE
from comfyui_longcat.training.settings.model import ModelConfig

if TYPE_CHECKING:
    from PIL.Image import Image

WORKFLOWS_DIR, IMAGES_DIR = ROOT / "workflows", ROOT / "docs" / "images"

WIDTH = 400
"""Px, about, of a thumbnail."""

SEED = 3
"""Of what is drawn and sampled without a lesson; any will do."""

Grid = Sequence[Sequence["Image"]]


def main() -> None:
    host = TerminalHost(Path(sys.argv[1] if len(sys.argv) > 1 else "demo_output"), device="cpu")
    with one_thread():
        for name, grid in make_pictures(host, IMAGES_DIR, BorderEdit(), MovesUp()).items():
            with replacing(WORKFLOWS_DIR / f"{name}.jpg") as temporary:
                thumbnail(grid).save(temporary, format="JPEG", quality=85, optimize=True)


def make_pictures(host: TerminalHost, images_dir: Path, edit: BorderEdit, clips: MovesUp) -> dict[str, Grid]:
    """Writes the contact sheets of the lessons into `images_dir`; returns what each workflow's thumbnail shows."""
    grids: dict[str, Grid] = {}
    taught = teach(edit, host)
    say(edit.verdict(taught))
    shutil.copyfile(taught.files[0], images_dir / "demo_edit.png")
    before, after = ([one_picture(image, edit.name) for image in images] for images in taught.samples)
    references = [pair[1] for pair in edit.pairs]
    grids["longcat_image_edit_sample"] = list(zip(references, before, after, strict=True))[:2]
    taught = teach(clips, host)
    say(clips.verdict(taught))
    shutil.copyfile(taught.files[0], images_dir / "demo_video.png")
    grids["longcat_video_i2v_sample"] = [_strip(frames_of(image)) for image in taught.samples[1][:3]]
    return grids | _examples() | _from_text(host)


def thumbnail(grid: Grid) -> Image:
    """Rows of pictures, about `WIDTH` px wide together."""
    from comfyui_longcat.training.data.contact_sheet import MARGIN, image_grid

    return image_grid(grid, cell=(WIDTH - MARGIN) // max(map(len, grid)) - MARGIN)


def _examples() -> dict[str, Grid]:
    """What the training workflows learn from."""
    from comfyui_longcat.training.tiny.clips import DIRECTIONS
    from comfyui_longcat.training.tiny.examples import draw_moves, draw_pairs

    pairs = draw_pairs(8, SIDE, SEED)
    upwards = [frames for _, frames, _ in draw_moves(3, SIDE, FRAMES, SEED)]
    others = [frames for _, frames, _ in draw_moves(3, SIDE, FRAMES, SEED + 1, tuple(DIRECTIONS))]
    return {
        "longcat_image_edit_train": [[pair[side] for pair in pairs[:4]] for side in (1, 2)],
        "longcat_image_t2i_train": [[pair[1] for pair in row] for row in (pairs[:4], pairs[4:])],
        "longcat_video_i2v_train": [_strip(frames) for frames in upwards],
        "longcat_video_t2v_train": [_strip(frames) for frames in others],
    }


def _from_text(host: TerminalHost) -> dict[str, Grid]:
    """What the tiny models draw from words alone."""
    from comfyui_longcat.training.tiny.captions import clip_captions, picture_captions
    from comfyui_longcat.training.tiny.clips import KNOWN
    from comfyui_longcat.training.tiny.world import looks

    chosen = looks(held_out=True)[SEED :: 44 // 8][:8]
    picture = {"width": SIDE, "height": SIDE, "num_inference_steps": 20, "guidance_scale": 2.0}
    pictures = [Sampling(prompt=picture_captions(look)[0], filename_prefix="t2i", **picture) for look in chosen]
    model = ModelConfig(model_flavour="tiny", base_model_precision="fp32")
    drawn = [one_picture(image, "t2i") for image in run_sampling(sampling_graph("t2i", model, NO_LORA, pictures), host)]
    clips = [
        Sampling(prompt=clip_captions(look, way)[0], filename_prefix="t2v", num_frames=FRAMES, **picture)
        for look, way in zip(chosen, KNOWN[:3], strict=False)
    ]
    model = ModelConfig(model_family="longcat_video", model_flavour="tiny-video", base_model_precision="fp32")
    moving = run_sampling(sampling_graph("t2v", model, NO_LORA, clips), host)
    return {
        "longcat_image_t2i_sample": [drawn[:4], drawn[4:]],
        "longcat_video_t2v_sample": [_strip(frames_of(image)) for image in moving],
    }


def _strip(frames: Sequence[Image]) -> list[Image]:
    return [frames[number] for number in SHOWN_FRAMES]


if __name__ == "__main__":
    main()
