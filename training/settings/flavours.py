"""The released models and their tiny twins, in one table."""

from __future__ import annotations

from dataclasses import dataclass

IMAGE_FAMILY, VIDEO_FAMILY = "longcat_image", "longcat_video"

TEXT_TO_IMAGE, EDIT, VIDEO = "LongCatImagePipeline", "LongCatImageEditPipeline", "LongCatVideoPipeline"
"""`Flavour.pipeline`"""


@dataclass(frozen=True, kw_only=True)
class Flavour:
    """One released (or tiny) checkpoint of a family."""

    family: str
    repo_id: str | None
    """Hub id; None for the tiny twins, which come with the pack."""
    folder_name: str
    """Name of its folder below models/longcat."""
    pipeline: str
    """Class in model_index.json: the transformers of text-to-image and edit are alike, only this differs."""
    mark: str = "model_index.json"
    """File that every complete folder of this layout has."""
    distilled_steps: int = 0
    """Above 0: made for so many steps without guidance, so no base for training."""
    training_hint: str = ""
    """Shown once when a training on it begins."""

    @property
    def is_twin(self) -> bool:
        return self.repo_id is None

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
            " Load LongCat. A LoRA trained on dev can be used on final."
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
        distilled_steps=8,
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

FAMILY_NAMES = tuple(dict.fromkeys(family for family, _ in FLAVOURS))
FLAVOUR_NAMES = tuple(dict.fromkeys(name for _, name in FLAVOURS))


def names_of(pipeline: str) -> str:
    """The flavours of a pipeline, for messages: "edit, edit-turbo or tiny-edit"."""
    *others, last = (name for (_, name), flavour in FLAVOURS.items() if flavour.pipeline == pipeline)
    return f"{', '.join(others)} or {last}"


def released_repo_id(flavour: Flavour) -> str:
    """Its hub id; for a twin, which has none, that of a model that does the same work."""
    kin = (each.repo_id for each in FLAVOURS.values() if each.pipeline == flavour.pipeline and each.repo_id)
    return flavour.repo_id or next(kin)


def twin_of(flavour: Flavour) -> str:
    """Name of the tiny twin that does the same work."""
    return next(name for (_, name), each in FLAVOURS.items() if each.is_twin and each.pipeline == flavour.pipeline)
