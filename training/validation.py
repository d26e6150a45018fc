"""Previews: pictures sampled from the model in training, which is then exactly as it was.

Legend of shapes: C channels, h w latent height and width, L text tokens, D embedding.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .caches.handle import Cache
from .caches.latents import cache_latents, load_latents
from .caches.text import cache_text, load_prompt_embeds
from .config import BUCKET_ALIGNMENT, ValidationConfig, parse_size
from .data.buckets import bucket_for
from .data.media import from_pixels, image_size
from .data.records import Record
from .errors import ConfigError, LongCatError, PreviewError, StoppedByUserError
from .files import replacing
from .loop.events import Callbacks, SamplesReady, StageProgress, WarningRaised
from .models.components import open_vae
from .models.family import Family, family_of
from .models.handle import ModelHandle
from .sampling.image import Guidance, initial_noise, sample_image

if TYPE_CHECKING:
    from PIL.Image import Image

FAILURES = (RuntimeError, OSError, ValueError, TypeError, LongCatError)
"""What a preview may die of without ending the training: out of memory (a RuntimeError), a full disk, a bad file."""


@dataclass(frozen=True, kw_only=True)
class PreviewInputs:
    """One preview, encoded, on the CPU."""

    name: str
    latents_shape: tuple[int, ...]
    """[1, C, h, w]"""
    ref_latents: tuple[Tensor, ...]
    """Each [1, C, h, w]"""
    prompt_embeds: Tensor
    """[1, L, D]"""
    empty_prompt_embeds: Tensor
    """[1, L, D]"""


@dataclass(kw_only=True)
class Previews:
    """The previews of one run."""

    config: ValidationConfig
    inputs: tuple[PreviewInputs, ...]
    handle: ModelHandle
    device: torch.device
    folder: Path
    """Where the pictures go."""

    def due(self, step: int, last_step: int) -> bool:
        """Before the first step, every `validation_steps`, after the last; not if they are there already."""
        asked = step % self.config.validation_steps == 0 or step == last_step
        return asked and len(list(self.folder.glob(f"{_prefix(step)}*.png"))) < len(self.inputs)

    def show(self, transformer: Any, step: int, callbacks: Callbacks) -> str | None:
        """Samples, decodes, saves and reports the pictures of `step`; returns what went wrong, or None.

        A failure before the first step ends the run, since every later preview would fail too; a later one is
        reported, and the training goes on.

        Raises:
            PreviewError: before the first step only.
            StoppedByUserError: asked to stop in the middle of it.
        """
        try:
            self._show(transformer, step, callbacks)
            return None
        except StoppedByUserError:
            raise
        except FAILURES as error:
            message = f"The previews of step {step} failed: {type(error).__name__}: {str(error).rstrip('.')}."
            if step == 0:
                raise PreviewError(
                    f"{message} Nothing is trained yet. Choose a smaller validation_resolution, or train without"
                    " LongCatValidation."
                ) from error
            callbacks.on_event(WarningRaised(message=f"{message} The training goes on."))
            return message

    def _show(self, transformer: Any, step: int, callbacks: Callbacks) -> None:
        family = family_of(self.handle.config.model_family)
        with torch.no_grad(), _evaluating(transformer):
            latents = [self._sample(family, transformer, index, callbacks) for index in range(len(self.inputs))]
            with open_vae(self.handle, self.device, callbacks) as vae:
                images = [from_pixels(family.decode(vae, each)) for each in latents]
        paths = [
            _save(image, self.folder / f"{_prefix(step)}{index:02d}-{_file_name(inputs.name)}.png")
            for index, (image, inputs) in enumerate(zip(images, self.inputs, strict=True))
        ]
        callbacks.on_event(SamplesReady(step=step, images=tuple(images), paths=tuple(paths)))

    def _sample(self, family: Family, transformer: Any, index: int, callbacks: Callbacks) -> Tensor:
        """-> latents [1, C, h, w]; the noise is the same at every step of the run, so that pictures compare."""
        inputs = self.inputs[index]
        references = [reference.to(self.device) for reference in inputs.ref_latents]
        positive, negative = (
            family.prepare_inputs(inputs.latents_shape, embeds.to(self.device), references)
            for embeds in (inputs.prompt_embeds, inputs.empty_prompt_embeds)
        )
        steps = self.config.validation_num_inference_steps

        def on_step(done: int, denoised: Tensor) -> None:
            total = steps * len(self.inputs)
            callbacks.on_event(StageProgress(stage="sampling previews", done=index * steps + done, total=total))
            if callbacks.should_stop():
                raise StoppedByUserError("Stopped while sampling previews.")

        return sample_image(
            family,
            transformer,
            initial_noise(inputs.latents_shape, self.config.validation_seed + index),
            positive,
            steps,
            # The released text-to-image pipeline renormalises, the edit pipeline does not.
            Guidance(inputs=negative, scale=self.config.validation_guidance, renorm=not references),
            on_step,
        )


def prepare_previews(
    config: ValidationConfig | None,
    handle: ModelHandle,
    cache: Cache,
    folder: Path,
    device: torch.device,
    callbacks: Callbacks,
) -> Previews:
    """Encodes what the previews need, into the folders of `cache`; if all of it is there, nothing is loaded.

    Args:
        config: None: there will be no previews.
        handle: the model; its VAE and text encoder are loaded one after the other, and released.
        cache: the pairs; the first `num_samples` are used.
        folder: where the pictures will go.

    Raises:
        ConfigError: the cache has no text folder.
        DataError, CacheError, ModelError: as the cache stages raise them.
        StoppedByUserError: asked to stop while encoding.
    """
    inputs: tuple[PreviewInputs, ...] = ()
    if config is not None:
        inputs = tuple(_inputs_of(cached) for cached in _encoded(config, handle, cache, device, callbacks).records)
    return Previews(config=config or ValidationConfig(), inputs=inputs, handle=handle, device=device, folder=folder)


def newest_pictures(folder: Path) -> tuple[Path, ...]:
    """The previews of the last step that has some."""
    pictures = sorted(folder.glob("step-*.png"))
    return tuple(path for path in pictures if path.name[:11] == pictures[-1].name[:11])


def preview_size(reference: tuple[int, int], resolution: str) -> tuple[int, int]:
    """(width, height) px of a preview for a reference of (width, height) px.

    The bucket of `resolution`'s area nearest to the reference's aspect; or the sides of `resolution` themselves, in
    the reference's orientation, where these are at least as near (they may be off the 64 px grid, e.g. 480x832).
    """
    sides = parse_size(resolution, "ValidationConfig.validation_resolution")
    bucket = bucket_for(*reference, round(math.sqrt(sides[0] * sides[1])), BUCKET_ALIGNMENT)
    if (reference[0] > reference[1]) != (sides[0] > sides[1]):
        sides = (sides[1], sides[0])
    return min((sides, bucket), key=lambda size: abs(math.log(size[0] / size[1] * reference[1] / reference[0])))


def _encoded(
    config: ValidationConfig, handle: ModelHandle, cache: Cache, device: torch.device, callbacks: Callbacks
) -> Cache:
    if cache.folders.text is None:
        raise ConfigError("The evaluation pairs have no cached instructions. Put LongCatCacheText before them.")
    records = [cached.record for cached in cache.records[: config.num_samples]]
    chosen = tuple(_preview_record(config, record, index) for index, record in enumerate(records))
    dataset = replace(cache.dataset, records=chosen)
    latents, _ = cache_latents(dataset, handle, cache.folders, device, callbacks)
    return cache_text(latents, handle, cache.folders.text, device, callbacks)[0]


def _preview_record(config: ValidationConfig, record: Record, index: int) -> Record:
    prompts = [line.strip() for line in config.validation_prompt.splitlines() if line.strip()]
    caption = prompts[min(index, len(prompts) - 1)] if prompts else record.caption
    shown = record.references[0] if record.references else record.target
    return replace(record, caption=caption, bucket=preview_size(image_size(shown), config.validation_resolution))


def _inputs_of(cached: Any) -> PreviewInputs:
    # Clones: memory of our own, whatever becomes of the cache files.
    return PreviewInputs(
        name=cached.record.name,
        latents_shape=tuple(load_latents(cached.latents).shape),
        ref_latents=tuple(load_latents(path).clone() for path in cached.ref_latents),
        prompt_embeds=load_prompt_embeds(cached.prompt_embeds).clone(),
        empty_prompt_embeds=load_prompt_embeds(cached.empty_prompt_embeds).clone(),
    )


@contextlib.contextmanager
def _evaluating(transformer: Any) -> Iterator[None]:
    training = transformer.training
    transformer.eval()
    try:
        yield
    finally:
        transformer.train(training)


def _prefix(step: int) -> str:
    return f"step-{step:06d}-"


def _file_name(name: str) -> str:
    return re.sub(r'[<>:"/\\|?*\x00-\x1f]', "_", name)[:60]


def _save(image: Image, path: Path) -> Path:
    with replacing(path) as temporary:
        image.save(temporary, format="PNG")
    return path
