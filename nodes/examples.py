"""The drawn examples: datasets that need not exist before they are read, so that the shipped workflows run as they are.

Each name is a value of instance_data_dir. Sizes are those of the shipped workflows, so that nothing is enlarged.
"""

from __future__ import annotations

from pathlib import Path

EDIT_TARGETS, EDIT_REFERENCES = "longcat-example/targets", "longcat-example/references"
"""For an edit: pictures after it, with instructions, and before it."""

EDIT_SIZE = 768
"""Px"""

CAPTIONED = "longcat-example-captioned"
"""For text-to-image: pictures whose captions say what is drawn."""

CAPTIONED_SIZE = 1024
"""Px"""

CLIPS, START_FRAMES = "longcat-example-clips/clips", "longcat-example-clips/start-frames"
"""For video: captioned clips and their start frames."""

CLIP_SIZE, CLIP_FRAMES = 480, 93
"""Px, and frames of a clip."""

EXAMPLES = (EDIT_TARGETS, EDIT_REFERENCES, CAPTIONED, CLIPS, START_FRAMES)


def draw_example(name: str, folder: Path) -> None:
    """Draws the example that `name` belongs to below `folder`; one that is there stays as it is."""
    if name not in EXAMPLES:
        return
    from ..training.files import replacing_folder
    from ..training.tiny.examples import draw_example_clips, draw_example_pairs, draw_example_pictures

    example = folder / name.partition("/")[0]
    if name == CAPTIONED:
        # Other shapes than the pairs': a workflow may train on both.
        draw_example_pictures(example, size=CAPTIONED_SIZE, seed=1)
    elif not example.exists():
        with replacing_folder(example) as temporary:
            if name in (CLIPS, START_FRAMES):
                sides = (temporary / Path(side).name for side in (CLIPS, START_FRAMES))
                draw_example_clips(*sides, size=CLIP_SIZE, frames=CLIP_FRAMES)
            else:
                sides = (temporary / Path(side).name for side in (EDIT_TARGETS, EDIT_REFERENCES))
                draw_example_pairs(*sides, size=EDIT_SIZE)
