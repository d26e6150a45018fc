"""The released models and their tiny twins, in one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..data.records import ClipRecord, Record
from ..errors import ConfigError
from ..settings.geometry import FRAME_STEP, check_frames
from ..settings.model import ModelConfig

TEXT_TO_IMAGE = "LongCatImagePipeline"


EDIT = "LongCatImageEditPipeline"


VIDEO = "LongCatVideoPipeline"


IMAGE_FAMILY, VIDEO_FAMILY = "longcat_image", "longcat_video"


@dataclass(frozen=True, kw_only=True)
class Flavour:
    """One released (or tiny) checkpoint of a family."""

    family: str
    repo_id: str | None
    """Hub id; None for the tiny twins, which come with the pack."""
    folder_name: str
    """Name of its folder below models/longcat."""
    pipeline: str
    """Class in model_index.json: text-to-image and edit have equal transformers, only this tells them apart."""
    mark: str = "model_index.json"
    """File that every complete folder of this layout has."""
    distilled: bool = False
    """Made for few steps without guidance: no base for training."""
    training_hint: str = ""
    """Said once when a training on it begins."""

    @property
    def needs_reference(self) -> bool:
        """True: every sample is about a reference picture. False: none may be; of a clip, any may be a start frame."""
        return self.pipeline == EDIT

    @property
    def draws_clips(self) -> bool:
        return self.pipeline == VIDEO


FLAVOURS: dict[tuple[str, str], Flavour] = {
    (IMAGE_FAMILY, "final"): Flavour(
        family=IMAGE_FAMILY,
        repo_id="meituan-longcat/LongCat-Image",
        folder_name="LongCat-Image",
        pipeline=TEXT_TO_IMAGE,
        training_hint=(
            "model_flavour final is the finished model, polished for sampling. The official trainer starts from dev,"
            " which is meant for fine-tuning and usually the better base of a LoRA: choose model_flavour dev in"
            " LoadLongCat. A LoRA trained on dev can be used on final."
        ),
    ),
    (IMAGE_FAMILY, "dev"): Flavour(
        family=IMAGE_FAMILY,
        repo_id="meituan-longcat/LongCat-Image-Dev",
        folder_name="LongCat-Image-Dev",
        pipeline=TEXT_TO_IMAGE,
    ),
    (IMAGE_FAMILY, "edit"): Flavour(
        family=IMAGE_FAMILY,
        repo_id="meituan-longcat/LongCat-Image-Edit",
        folder_name="LongCat-Image-Edit",
        pipeline=EDIT,
    ),
    (IMAGE_FAMILY, "edit-turbo"): Flavour(
        family=IMAGE_FAMILY,
        repo_id="meituan-longcat/LongCat-Image-Edit-Turbo",
        folder_name="LongCat-Image-Edit-Turbo",
        pipeline=EDIT,
        distilled=True,
    ),
    (IMAGE_FAMILY, "tiny"): Flavour(family=IMAGE_FAMILY, repo_id=None, folder_name="tiny", pipeline=TEXT_TO_IMAGE),
    (IMAGE_FAMILY, "tiny-edit"): Flavour(family=IMAGE_FAMILY, repo_id=None, folder_name="tiny-edit", pipeline=EDIT),
    (VIDEO_FAMILY, "final"): Flavour(
        family=VIDEO_FAMILY,
        repo_id="meituan-longcat/LongCat-Video",
        folder_name="LongCat-Video",
        pipeline=VIDEO,
        mark="dit/config.json",
    ),
    (VIDEO_FAMILY, "tiny-video"): Flavour(
        family=VIDEO_FAMILY,
        repo_id=None,
        folder_name="tiny-video",
        pipeline=VIDEO,
        mark="dit/config.json",
    ),
}
"""By model_family and model_flavour."""


def flavour_of(config: ModelConfig) -> Flavour:
    """The flavour that `config` means.

    Raises:
        ConfigError: its family has no such flavour; names those that it has.
    """

    flavour = FLAVOURS.get((config.model_family, config.model_flavour))
    if flavour is None:
        known = ", ".join(name for family, name in FLAVOURS if family == config.model_family)
        others = " and ".join(family for family, name in FLAVOURS if name == config.model_flavour)
        raise ConfigError(
            f"model_flavour is {config.model_flavour!r}, but {config.model_family} has no such flavour: choose one of"
            f" {known} in LoadLongCat, or model_family {others}."
        )
    return flavour


def check_training_data(model: ModelConfig, records: Sequence[Record]) -> None:
    """Refuses a flavour that nothing can be trained on, and records that are not of its kind; loads nothing.

    Raises:
        ConfigError: naming the flavour, the records and what to change.
    """

    flavour, flavour_name = flavour_of(model), model.model_flavour
    _check_media(flavour, records)
    if flavour.draws_clips:
        return
    if flavour.distilled:
        raise ConfigError(
            f"model_flavour {flavour_name} cannot be trained on: it was distilled to draw in 8 steps without guidance,"
            " and training on noise levels of the ordinary kind would undo that. Train on model_flavour edit; the LoRA"
            f" can then be used on {flavour_name}."
        )
    if flavour.needs_reference:
        wrong = [record.name for record in records if not record.references]
        what, remedy = "have none", "Give PairDatasets a folder of references, or choose a text-to-image flavour."
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
    from ..errors import ConfigError

    wrong = [record.name for record in records if isinstance(record, ClipRecord) != flavour.draws_clips]
    if wrong:
        wanted, given, remedy = (
            ("clips", "pictures", "Set dataset_type of the LongCatDataset to video")
            if flavour.draws_clips
            else ("pictures", "clips of videos", "Set dataset_type of the LongCatDataset to image")
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
