"""What can be known to fail before any model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..caches.cache import Cache
from ..data.records import Record
from ..errors import CacheError, ConfigError
from ..models.registry import family_of
from ..models.training_data import check_training_data
from ..settings.model import flavour_of
from ..settings.run import TrainConfig, check_video_shift
from ..weights.spec import ModelSpec
from ..weights.streaming import check_streaming


def check_run(config: TrainConfig, spec: ModelSpec, cache: Cache, validation_cache: Cache | None) -> None:
    """Refuses settings, model and data that do not fit each other.

    Raises:
        ConfigError: naming the settings and what to change.
        CacheError: cache files are gone.
        ModelError: no such family.
    """
    for check in SETTINGS_CHECKS:
        check(config, spec)
    _check_cache(spec, cache, "cache")
    if config.validation is not None and validation_cache is not None:
        _check_cache(spec, validation_cache, "validation cache")
    check_batch_size(config, [cached.record for cached in cache.records])


def check_batch_size(config: TrainConfig, records: Sequence[Record]) -> None:
    """
    Raises:
        ConfigError: an epoch of `records` has fewer samples than a batch.
    """
    samples = sum(1 + record.repeats for record in records)
    if config.train_batch_size > samples:
        raise ConfigError(
            f"train_batch_size is {config.train_batch_size}, but an epoch has only {samples} samples. Use at most"
            f" {samples}, more data or more repeats, or gradient_accumulation_steps for a larger batch."
        )


def _check_targets(config: TrainConfig, spec: ModelSpec) -> None:
    family_of(spec.config.model_family).lora_targets(config.options.lora_target)


def _check_shift(config: TrainConfig, spec: ModelSpec) -> None:
    if flavour_of(spec.config).draws_clips:
        check_video_shift(config.options.flow_schedule_shift)


def _check_streaming(config: TrainConfig, spec: ModelSpec) -> None:
    check_streaming(spec.config, config.options.gradient_checkpointing)


def check_steps(config: TrainConfig) -> None:
    """Refuses numbers of steps that exclude each other; needs no data.

    Raises:
        ConfigError: naming the settings and what to change.
    """
    if config.options.lr_warmup_steps >= config.max_train_steps:
        raise ConfigError(
            f"lr_warmup_steps is {config.options.lr_warmup_steps} and max_train_steps {config.max_train_steps}; the"
            " warm-up must end before the training does. Lower lr_warmup_steps."
        )


def _check_steps(config: TrainConfig, spec: ModelSpec) -> None:
    check_steps(config)


SETTINGS_CHECKS = (_check_targets, _check_shift, _check_streaming, _check_steps)
"""Each raises ConfigError; they need no data."""


def training_hints(spec: ModelSpec) -> tuple[str, ...]:
    """What a user should know before training on this model, although it is allowed."""
    hint = flavour_of(spec.config).training_hint
    return (hint,) if hint else ()


def _check_cache(spec: ModelSpec, cache: Cache, what: str) -> None:
    if cache.model_family != spec.config.model_family:
        raise ConfigError(
            f"The {what} was made for {cache.model_family}, the model is {spec.config.model_family}. Wire the same"
            " model into the cache nodes and Train LoRA."
        )
    if not cache.records:
        raise ConfigError(f"The {what} holds no sample. Check the folders of the dataset.")
    check_training_data(spec.config, [cached.record for cached in cache.records])
    if not cache.has_text:
        raise ConfigError(
            f"The {what} has no embedded instructions. Put Cache Text between Cache VAE Latents and Train LoRA."
        )
    _check_files(cache, what)


def _check_files(cache: Cache, what: str) -> None:
    wanted: dict[Path, None] = {}
    for cached in cache.records:
        for path in (cached.latents, *cached.cond_latents, cached.prompt_embeds, cached.empty_prompt_embeds):
            if path is not None:
                wanted[path] = None
    gone = [path for path in wanted if not path.is_file()]
    if gone:
        raise CacheError(
            f"{len(gone)} of {len(wanted)} files of the {what} are gone, the first is {gone[0]}. Run Cache VAE Latents"
            " and Cache Text again; they make only what is missing."
        )
