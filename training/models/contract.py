"""What a model family must be able to do.

Legend of shapes: B batch, C channels, h w latent height and width, S packed tokens, L text tokens, D embedding. A
clip's latents are [B, C, T, h, w] with T latent frames, wherever [B, C, h, w] is said here.

Names of spaces: `pixels` are -1..1; `latents` are normalised (after shift and scale); `raw_latents` are as the VAE
gives them; packed latents are the tokens of LongCat-Image's transformer. `cond_latents` are clean latents that are
given: an edit's reference, a clip's first frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor


UMT5, QWEN = "umt5", "qwen2_5_vl"
"""`model_type` of the text encoders that checkpoints have."""


@dataclass(kw_only=True)
class TextEncoder:
    """What turns an instruction and its reference into embeddings."""

    model: Any
    """Qwen2_5_VLForConditionalGeneration; for LongCat-Video UMT5EncoderModel or that"""
    tokenizer: Any
    image_processor: Any
    """None for LongCat-Video, whose prompts see no picture.

    Qwen2VLImageProcessor, the one that works on PIL pictures: needs no torchvision, the same result everywhere."""


@dataclass(frozen=True, kw_only=True)
class ModelInputs:
    """Everything the transformer gets besides the noisy latents and the noise level: made once per sample or run."""

    prompt_embeds: Tensor
    """[B, L, D]"""
    packed_cond_latents: Tensor | None
    """[B, S_cond, 64]: a reference's latents, packed; None without a reference."""
    txt_ids: Tensor
    """[L, 3], float32"""
    img_ids: Tensor
    """[S + S_cond, 3], float32; target tokens first"""

    @property
    def num_cond_latents(self) -> int:
        """How many latent frames are given and not learned: a reference stands beside the latents, not among them."""
        return 0


class Family(Protocol):
    """The differences between model families; everything else is shared functions.

    `predict` returns the velocity dx/dsigma = noise - latents whatever the sign of the released transformer,
    so that the training target and the Euler step are the same for every family.
    """

    name: str
    reads_references: bool
    """Whether the text encoder sees the references; else they are none of what embeddings depend on."""
    sigma_distribution: str
    """How sigmas are drawn in training, before the shift: a key of `flow.DISTRIBUTIONS`."""

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
        self, latents_shape: Sequence[int], prompt_embeds: Tensor, cond_latents: Sequence[Tensor]
    ) -> ModelInputs:
        """Everything that `predict` needs beside noisy latents of `latents_shape` [B, C, h, w]."""
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
