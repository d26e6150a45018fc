"""What a model family must be able to do, and the table of families and flavours.

Legend of shapes: B batch, C channels, h w latent height and width, S packed tokens, L text tokens, D embedding.
Names of spaces: `pixels` are -1..1; `latents` are normalised (after shift and scale); `raw_latents` are as the VAE
gives them. A clip's latents are [B, C, T, h, w] with T latent frames, wherever [B, C, h, w] is said here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from ..config import ModelConfig
    from ..data.records import Record


@dataclass(frozen=True, kw_only=True)
class ModelInputs:
    """Everything the transformer gets besides the noisy latents and the noise level: made once per sample or run."""

    prompt_embeds: Tensor
    """[B, L, D]"""
    ref_tokens: Tensor | None
    """[B, S_ref, 64], the packed reference latents; None without a reference."""
    txt_ids: Tensor
    """[L, 3], float32"""
    img_ids: Tensor
    """[S + S_ref, 3], float32; target tokens first"""

    @property
    def num_cond_latents(self) -> int:
        """How many latent frames are given and not learned: those of a reference stand beside the latents."""
        return 0


class Family(Protocol):
    """The differences between model families; everything else is shared functions.

    `predict` returns the velocity dx/dsigma = noise - latents whatever the sign of the released transformer,
    so that the training target and the Euler step are the same for every family.
    """

    name: str
    reads_references: bool
    """Whether the text encoder sees the references; else they are none of what embeddings depend on."""
    noise_levels: str
    """A key of `sigmas.DISTRIBUTIONS`: how they are drawn in training, before the shift."""

    def encode_prompt(self, text_encoder: Any, prompt: str, references: Sequence[Tensor]) -> Tensor:
        """Prompt embeddings.

        Args:
            text_encoder: as `components.open_text_encoder` yields it.
            prompt: may be empty.
            references: pixels, each [1, 3, H, W]; the pictures the instruction speaks of, at their bucket size. None:
                the prompt describes a picture (text-to-image).

        Returns:
            prompt_embeds: [1, L, D] in the text encoder's dtype.
        """
        ...

    def encode_pixels(self, vae: Any, pixels: Tensor) -> Tensor:
        """pixels [B, 3, H, W], sides multiples of 16 -> latents [B, C, h, w], the distribution's mode, float32."""
        ...

    def latents_shape(self, vae_config: Mapping[str, Any], size: tuple[int, int], frames: int) -> tuple[int, ...]:
        """Shape of one sample's latents; `size` is (width, height) px, and pictures pass over `frames`."""
        ...

    def prepare_inputs(
        self, latents_shape: Sequence[int], prompt_embeds: Tensor, ref_latents: Sequence[Tensor]
    ) -> ModelInputs:
        """Packs references and builds position ids for noisy latents of `latents_shape` [B, C, h, w]."""
        ...

    def predict(self, transformer: Any, latents: Tensor, sigmas: Tensor, inputs: ModelInputs) -> Tensor:
        """Velocity at noisy `latents` [B, C, h, w] and `sigmas` [B] in 0..1 (float32) -> [B, C, h, w], float32."""
        ...

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """latents [B, C, h, w] -> pixels [B, 3, H, W] in -1..1, float32."""
        ...

    def flow_shift(self, latents_shape: Sequence[int]) -> float:
        """Shift of the noise levels that the released schedule has for latents of this shape."""
        ...

    def lora_targets(self, preset: str) -> list[str]:
        """Suffixes of the linears that `TrainingOptions.lora_target` names.

        Raises:
            ConfigError: no such preset for this family.
        """
        ...


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


TEXT_TO_IMAGE = "LongCatImagePipeline"
EDIT = "LongCatImageEditPipeline"
VIDEO = "LongCatVideoPipeline"

IMAGE_FAMILY, VIDEO_FAMILY = "longcat_image", "longcat_video"

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
    from ..errors import ConfigError

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
    from ..errors import ConfigError

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
    from ..data.records import ClipRecord
    from ..errors import ConfigError
    from ..sizes import FRAME_STEP, check_frames

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


def family_of(name: str) -> Family:
    """The family called `name` (a key of `ModelConfig.model_family`).

    Raises:
        ModelError: there is no such family.
    """
    from ..errors import ModelError

    if name == IMAGE_FAMILY:
        from .longcat_image import LongCatImageFamily

        return LongCatImageFamily()
    if name == VIDEO_FAMILY:
        from .longcat_video import LongCatVideoFamily

        return LongCatVideoFamily()
    raise ModelError(f"model_family is {name!r}; known families: {IMAGE_FAMILY}, {VIDEO_FAMILY}.")
