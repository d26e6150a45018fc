"""Which records each flavour can be trained on."""

from __future__ import annotations

from collections.abc import Sequence

from ..data.records import ClipRecord, Record
from ..errors import ConfigError
from ..settings.flavours import Flavour
from ..settings.geometry import FRAME_STEP, check_frames
from ..settings.model import ModelConfig, flavour_of


def check_training_data(model: ModelConfig, records: Sequence[Record]) -> None:
    """Refuses a flavour that nothing can be trained on, and records that are not of its kind; loads nothing.

    Raises:
        ConfigError: naming the flavour, the records and what to change.
    """
    flavour, flavour_name = flavour_of(model), model.model_flavour
    _check_media(flavour, records)
    if flavour.draws_clips:
        return
    if flavour.distilled_steps:
        raise ConfigError(
            f"model_flavour {flavour_name} cannot be trained on: it was distilled to draw in {flavour.distilled_steps}"
            " steps without guidance, and training on noise levels of the ordinary kind would undo that. Train on"
            f" model_flavour edit; the LoRA can then be used on {flavour_name}."
        )
    if flavour.needs_reference:
        wrong = [record.name for record in records if not record.references]
        what, remedy = "have none", "Give Pair Datasets a folder of references, or choose a text-to-image flavour."
    else:
        wrong = [record.name for record in records if record.references]
        what, remedy = "have one", "Leave out the folder of references, or choose model_flavour edit."
    if wrong:
        task = "edits a reference picture" if flavour.needs_reference else "draws from text alone, without a reference"
        raise ConfigError(
            f"model_flavour {flavour_name} {task}, but {len(wrong)} of {len(records)} samples {what}:"
            f" {', '.join(wrong[:10])}. {remedy}"
        )


def _check_media(flavour: Flavour, records: Sequence[Record]) -> None:
    wrong = [record.name for record in records if isinstance(record, ClipRecord) != flavour.draws_clips]
    if wrong:
        wanted, given, remedy = (
            ("clips", "pictures", "Set dataset_type of the LongCat Dataset to video")
            if flavour.draws_clips
            else ("pictures", "clips of videos", "Set dataset_type of the LongCat Dataset to image")
        )
        raise ConfigError(
            f"{flavour.family} is trained on {wanted}, but {len(wrong)} of {len(records)} samples are {given}:"
            f" {', '.join(wrong[:10])}. {remedy}, or choose another model_family."
        )
    for record in records:
        if not isinstance(record, ClipRecord):
            continue
        check_frames(f"The number of frames of clip {record.name}", record.clip.frames)
        if record.is_i2v and record.clip.frames <= FRAME_STEP:
            raise ConfigError(
                f"Clip {record.name} has {record.clip.frames} frame, and its first one is given: nothing is left to"
                f" learn. Set num_frames to {FRAME_STEP + 1} or more, or train it as text-to-video, without start"
                " frames and is_i2v."
            )
