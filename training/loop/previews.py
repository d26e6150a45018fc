"""Previews: pictures or clips sampled from the model in training, which is then exactly as it was.

Legend of shapes: C channels, T latent frames, h w latent height and width, L text tokens, D embedding.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from ..caches.cache import Cache
from ..caches.latents import cache_latents, load_latents
from ..caches.text import Prompt, cache_prompts, load_prompt_embeds, prompt_of
from ..data.buckets import bucket_for
from ..data.media import from_pixels, image_size, read_image
from ..data.records import ClipRecord, Record
from ..errors import ConfigError, DataError, LongCatError, PreviewError, StoppedByUserError
from ..events import Callbacks, SamplesReady, StageProgress, WarningRaised
from ..files import replacing
from ..models.contract import Family
from ..models.flow import video_sigmas
from ..models.registry import family_of
from ..sampling.euler import Guidance, ZeroStarGuidance, decode, initial_noise, sample_image, sample_video
from ..sampling.preview_clips import save_clip, starting_record, strip_of
from ..settings.geometry import BUCKET_ALIGNMENT, FRAME_RATE, parse_size
from ..settings.model import flavour_of
from ..settings.validation import ValidationConfig
from ..weights.components import open_vae
from ..weights.source import component_config
from ..weights.spec import ModelSpec

FAILURES = (RuntimeError, OSError, ValueError, TypeError, LongCatError)
"""What a preview may die of without ending the training: out of memory (a RuntimeError), a full disk, a bad file."""


@dataclass(frozen=True, kw_only=True)
class PreviewInputs:
    """One preview, encoded, on the CPU."""

    name: str
    latents_shape: tuple[int, ...]
    """[1, C, h, w], of a clip [1, C, T, h, w]"""
    cond_latents: tuple[Tensor, ...]
    """Each [1, C, h, w], a clip's start [1, C, 1, h, w]"""
    prompt_embeds: Tensor
    """[1, L, D]"""
    negative_prompt_embeds: Tensor
    """[1, L, D]"""


@dataclass(kw_only=True)
class Previews:
    """The previews of one run."""

    config: ValidationConfig
    inputs: tuple[PreviewInputs, ...]
    spec: ModelSpec
    device: torch.device
    folder: Path
    """Where the pictures go, and the clips beside them."""
    fps: float = FRAME_RATE
    """Of clips."""

    def due(self, step: int, last_step: int) -> bool:
        """Before the first step, every `validation_steps`, after the last; not if they are there already."""
        asked = step % self.config.validation_steps == 0 or step == last_step
        return asked and len(list(self.folder.glob(f"{_prefix(step)}*.png"))) < len(self.inputs)

    def show(self, transformer: Any, step: int, callbacks: Callbacks) -> str | None:
        """Samples, decodes, saves and reports the pictures of `step`; returns what went wrong, or None.

        A failure before the first step ends the run, since every later preview would fail too; a later one is
        reported, and the training continues.

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
                    " LongCat Validation."
                ) from error
            callbacks.on_event(WarningRaised(message=f"{message} The training continues."))
            return message

    def _show(self, transformer: Any, step: int, callbacks: Callbacks) -> None:
        family = family_of(self.spec.config.model_family)
        with torch.no_grad(), _evaluating(transformer):
            latents = [self._sample(family, transformer, index, callbacks) for index in range(len(self.inputs))]
            with open_vae(self.spec, self.device, callbacks) as vae:
                pixels = [decode(family, vae, each) for each in latents]
        paths = [
            self.folder / f"{_prefix(step)}{index:02d}-{_file_name(inputs.name)}.png"
            for index, inputs in enumerate(self.inputs)
        ]
        images = [self._save(each, path) for each, path in zip(pixels, paths, strict=True)]
        callbacks.on_event(SamplesReady(step=step, images=tuple(images), paths=tuple(paths)))

    def _save(self, pixels: Tensor, path: Path) -> Image:
        """Writes a picture, or a clip and the picture that shows it, last: it says that both are there."""
        is_clip = pixels.ndim == 5
        if is_clip:
            save_clip(pixels, path.with_suffix(".mp4"), self.fps)
        image = strip_of(pixels) if is_clip else from_pixels(pixels)
        with replacing(path) as temporary:
            image.save(temporary, format="PNG")
        return image

    def _sample(self, family: Family, transformer: Any, index: int, callbacks: Callbacks) -> Tensor:
        """-> latents [1, C, h, w] or [1, C, T, h, w]; the noise is the same at every step, so that pictures compare."""
        inputs = self.inputs[index]
        cond_latents = [given.to(self.device) for given in inputs.cond_latents]
        positive, negative = (
            family.prepare_inputs(inputs.latents_shape, embeds.to(self.device), cond_latents)
            for embeds in (inputs.prompt_embeds, inputs.negative_prompt_embeds)
        )
        steps = self.config.validation_num_inference_steps

        def on_step(done: int, denoised: Tensor) -> None:
            total = steps * len(self.inputs)
            callbacks.on_event(StageProgress(stage="sampling previews", done=index * steps + done, total=total))
            if callbacks.should_stop():
                raise StoppedByUserError("Stopped while sampling previews.")

        scale = self.config.validation_guidance
        noise = initial_noise(inputs.latents_shape, self.config.validation_seed + index)
        if flavour_of(self.spec.config).draws_clips:
            guidance = ZeroStarGuidance(inputs=negative, scale=scale)
            return sample_video(family, transformer, noise, positive, video_sigmas(steps), guidance, on_step)
        # The released text-to-image pipeline renormalises, the edit pipeline does not.
        guidance = Guidance(inputs=negative, scale=scale, renorm=not cond_latents)
        return sample_image(family, transformer, noise, positive, steps, guidance, on_step)


def prepare_previews(
    config: ValidationConfig | None,
    spec: ModelSpec,
    cache: Cache,
    folder: Path,
    device: torch.device,
    callbacks: Callbacks,
) -> Previews:
    """Encodes what the previews need, into the folders of `cache`; if all of it is there, nothing is loaded.

    Args:
        config: None: there will be no previews.
        spec: the model; its VAE and text encoder are loaded one after the other, and released.
        cache: the first `num_samples` pairs are used; for text-to-image the prompts of `config`, else the captions.
        folder: where the pictures will go.

    Raises:
        ConfigError: the cache has no text folder.
        DataError, CacheError, ModelError: as the cache stages raise them.
        StoppedByUserError: asked to stop while encoding.
    """
    inputs: tuple[PreviewInputs, ...] = ()
    if config is not None:
        inputs = _encoded(config, spec, cache, device, callbacks)
    rates = [cached.record.clip.fps for cached in cache.records if isinstance(cached.record, ClipRecord)]
    return Previews(
        config=config or ValidationConfig(),
        inputs=inputs,
        spec=spec,
        device=device,
        folder=folder,
        fps=rates[0] if rates else FRAME_RATE,
    )


def newest_pictures(folder: Path, callbacks: Callbacks) -> tuple[Path, ...]:
    """The previews of the last step that has some; those that cannot be read are left out, with a warning."""
    pictures = sorted(folder.glob("step-*.png"))
    found = []
    for path in pictures:
        if path.name[:11] != pictures[-1].name[:11]:
            continue
        try:
            read_image(path)
        except DataError as error:
            callbacks.on_event(WarningRaised(message=f"A preview is left out: {error}"))
            continue
        found.append(path)
    return tuple(found)


def preview_size(reference: tuple[int, int], resolution: str) -> tuple[int, int]:
    """(width, height) px of a preview for a reference of (width, height) px.

    The bucket of `resolution`'s area nearest to the reference's aspect; or the sides of `resolution` themselves, in
    the reference's orientation, where these are at least as near (they may be off the 64 px grid, e.g. 480x832).
    """
    sides = parse_size(resolution, ValidationConfig.named("validation_resolution"))
    bucket = bucket_for(*reference, round(math.sqrt(sides[0] * sides[1])), BUCKET_ALIGNMENT)
    if (reference[0] > reference[1]) != (sides[0] > sides[1]):
        sides = (sides[1], sides[0])
    return min((sides, bucket), key=lambda size: abs(math.log(size[0] / size[1] * reference[1] / reference[0])))


def _encoded(
    config: ValidationConfig, spec: ModelSpec, cache: Cache, device: torch.device, callbacks: Callbacks
) -> tuple[PreviewInputs, ...]:
    if cache.folders.text is None:
        raise ConfigError("The evaluation data has no cached instructions. Put Cache Text before it.")
    if _has_references(spec, cache):
        records = _preview_records(config, cache)
        dataset = replace(cache.dataset, records=records)
        cached = cache_latents(dataset, spec, cache.folders, device, callbacks)[0].records
        # A clip without a picture of its start has been cached as its first frame alone.
        cond_paths = [each.cond_latents or (each.latents,) for each in cached]
        prompts = [prompt_of(record, "instruction", record.caption) for record in records]
    else:
        prompts = _text_prompts(config, cache)
        cond_paths = [()] * len(prompts)
    negatives = [replace(each, kind="negative prompt", caption=config.validation_negative_prompt) for each in prompts]
    # A prompt and its negative follow each other: their reference is read once.
    pairs = [each for pair in zip(prompts, negatives, strict=True) for each in pair]
    paths, _ = cache_prompts(pairs, spec, cache.folders.text, device, callbacks)
    family, vae_config = family_of(spec.config.model_family), component_config(spec, "vae", callbacks)
    shapes = [family.latents_shape(vae_config, each.bucket, config.validation_num_video_frames) for each in prompts]
    return tuple(_inputs_of(*each) for each in zip(prompts, shapes, cond_paths, paths[0::2], paths[1::2], strict=True))


def _has_references(spec: ModelSpec, cache: Cache) -> bool:
    """Whether previews are about pictures of the data: references, or starts of clips."""
    starts = [cached.record.is_i2v for cached in cache.records if isinstance(cached.record, ClipRecord)]
    return flavour_of(spec.config).needs_reference or any(starts)


def _preview_records(config: ValidationConfig, cache: Cache) -> tuple[Record, ...]:
    """The first pairs, each once although several resolutions make several records of it, at the preview's size."""
    usable = [each.record for each in cache.records if not isinstance(each.record, ClipRecord) or each.record.is_i2v]
    pairs = {record.target: record for record in reversed(usable)}
    records = [pairs[target] for target in dict.fromkeys(record.target for record in usable)]
    return tuple(
        _preview_record(record, _line(config, index) or record.caption, config)
        for index, record in enumerate(records[: config.num_samples])
    )


def _preview_record(record: Record, caption: str, config: ValidationConfig) -> Record:
    if isinstance(record, ClipRecord):
        return starting_record(record, caption, config)
    size = preview_size(image_size(record.references[0]), config.validation_resolution)
    return replace(record, caption=caption, bucket=size)


def _text_prompts(config: ValidationConfig, cache: Cache) -> list[Prompt]:
    """Every line of `validation_prompt`, else the first different captions."""
    size = parse_size(config.validation_resolution, ValidationConfig.named("validation_resolution"))
    lines = _lines(config)
    if lines:
        return [
            Prompt(name=f"prompt-{number}", kind="prompt", origin=f"preview {number}", caption=line, bucket=size)
            for number, line in enumerate(lines, start=1)
        ]
    first_of = {cached.record.caption: cached.record for cached in reversed(cache.records)}
    captions = list(dict.fromkeys(cached.record.caption for cached in cache.records))[: config.num_samples]
    return [replace(prompt_of(first_of[caption], "caption", caption), bucket=size) for caption in captions]


def _lines(config: ValidationConfig) -> list[str]:
    return [line.strip() for line in config.validation_prompt.splitlines() if line.strip()]


def _line(config: ValidationConfig, index: int) -> str | None:
    lines = _lines(config)
    return lines[min(index, len(lines) - 1)] if lines else None


def _inputs_of(
    prompt: Prompt,
    latents_shape: tuple[int, ...],
    cond_latents: tuple[Path, ...],
    prompt_embeds: Path,
    negative_prompt_embeds: Path,
) -> PreviewInputs:
    # Clones: memory of our own, whatever becomes of the cache files.
    return PreviewInputs(
        name=prompt.name,
        latents_shape=latents_shape,
        cond_latents=tuple(load_latents(path).clone() for path in cond_latents),
        prompt_embeds=load_prompt_embeds(prompt_embeds).clone(),
        negative_prompt_embeds=load_prompt_embeds(negative_prompt_embeds).clone(),
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
