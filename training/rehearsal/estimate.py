"""What a run needs at full size, counted before anything of it is loaded: memory on the card, and disk.

Weights, adapters and files are counted exactly, from the released sizes. What a computation keeps for its backward pass
is counted per token and channel on small models of the same classes (a test counts them again). None of it has been
compared with a card yet, so the sums get a margin.

Legend: tokens of a sample are those that run through the transformer's blocks; E embedding width of a prompt.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..data.records import ClipRecord, Record
from ..models.registry import family_of
from ..models.video.transformer import LongCatVideoTransformer3DModel
from ..settings.flavours import IMAGE_FAMILY, VIDEO_FAMILY
from ..settings.geometry import PROMPT_SLOTS, latent_frames, latent_sides, parse_size, picture_tokens
from ..settings.model import QUANTISED_PRECISIONS, ModelConfig
from ..settings.run import TrainConfig
from ..settings.validation import ValidationConfig
from ..weights.quantisation import linears_to_quantise
from ..weights.streaming import blocks_of, streamed_blocks

GB = 1e9

MARGIN = 1.1
"""For what the allocator cannot use: pieces between the tensors."""

CONTEXT = 0.9 * GB
"""CUDA's own context and the workspaces of its libraries; a usual size, not measured here."""

GRADIENTS = 1.3
"""A block's backward pass holds what was kept of its forward pass, and gradients on their way through it."""

CHECKPOINT = 2.0
"""Bytes per token and channel that a checkpointed block keeps: its input, in bfloat16."""

SAMPLING = 30.0
"""Bytes per token and channel of a block that keeps nothing: the widest layers and their neighbours."""

ADAPTER = 16
"""Bytes per weight of the adapter: weight, gradient and two moments, float32."""

VISION_PIXELS = 28
"""Px; side of the patch that Qwen2.5-VL makes one token of."""

TEXT_ACTIVATIONS = 1.0 * GB
"""Of a text encoder that reads one prompt; generous."""

VIDEO_TILE = 256
"""Px; LongCat-Video's VAE decodes in tiles of this side (diffusers' default), and encodes whole pictures."""

BYTES_PER_WEIGHT = {"bf16": 2.0, "fp32": 4.0, "int8-quanto": 1.0, "int8-torchao": 1.0, "fp8-torchao": 1.0}
INT4_WEIGHT = 0.53
"""Bytes: half of one, and a scale and a shift in bfloat16 for every 128 weights."""


@dataclass(frozen=True, kw_only=True)
class _Sizes:
    """Counted sizes of one released model."""

    text_weights: int
    text_quantised: int
    """Weights of the linears that a quantised text encoder has quantised."""
    text_width: int
    """E"""
    vae_weights: int
    latent_channels: int
    encode: int
    """Bytes per px that the VAE needs to encode, in float32; of clips per px of one frame."""
    decode: int
    kept: dict[str, float]
    """Bytes per token and channel that the largest block keeps for its backward pass, by `lora_target`."""
    hidden: int


SIZES = {
    IMAGE_FAMILY: _Sizes(
        text_weights=8_292_166_656,
        text_quantised=6_525_288_448,
        text_width=3584,
        vae_weights=83_819_683,
        latent_channels=16,
        encode=2600,
        decode=3300,
        kept={"simpletuner": 43, "official": 65},
        hidden=3072,
    ),
    VIDEO_FAMILY: _Sizes(
        text_weights=5_680_910_336,
        text_quantised=4_630_511_616,
        text_width=4096,
        vae_weights=126_892_531,
        latent_channels=16,
        encode=14_500,
        decode=19_800,
        kept={"simpletuner": 80, "attention": 80, "attention+ffn": 100},
        hidden=4096,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Needs:
    """Bytes."""

    memory: dict[str, int]
    """On the card, by what is going on."""
    caches: int
    checkpoint: int
    """One of them."""
    checkpoints: int
    """All that are kept, one more while it is being written, and the LoRA's two copies."""
    download: int
    """The model, as far as a run reads it, in bfloat16."""


def needs_of(config: TrainConfig, model: ModelConfig, records: Sequence[Record]) -> Needs:
    """What the run of `config` on the released model needs.

    Args:
        model: of a released flavour.
        records: of the whole training data.
    """
    adapter = adapter_weights(model.model_family, config)
    checkpoint = adapter * (4 + _optimizer_bytes(config))
    return Needs(
        memory=_memory(config, model, records, adapter),
        caches=sum(_cache_bytes(model, record) for record in records),
        checkpoint=checkpoint,
        checkpoints=(_kept_checkpoints(config) + 1) * checkpoint + 2 * 4 * adapter,
        download=2 * (_weights(released_transformer(model.model_family)) + _all_other_weights(model.model_family)),
    )


@functools.cache
def released_transformer(family: str) -> nn.Module:
    """The transformer of the released size, without memory behind its weights.

    Image: 10 double and 20 single blocks, counted from the released files; video: the class's own defaults.
    """
    from diffusers import LongCatImageTransformer2DModel

    with torch.device("meta"):
        if family == VIDEO_FAMILY:
            return LongCatVideoTransformer3DModel()
        return LongCatImageTransformer2DModel(num_layers=10, num_single_layers=20)


def adapter_weights(family: str, config: TrainConfig) -> int:
    """Weights of the adapter that the run trains."""

    targets = family_of(family).lora_targets(config.options.lora_target)
    sides = (
        module.in_features + module.out_features
        for name, module in released_transformer(family).named_modules()
        if isinstance(module, nn.Linear) and any(name == each or name.endswith(f".{each}") for each in targets)
    )
    return config.lora_rank * sum(sides)


def tokens_of(record: Record) -> int:
    """Tokens of one sample; of a picture with its prompt's and its reference's."""
    picture = picture_tokens(record.bucket)
    if isinstance(record, ClipRecord):
        return picture * latent_frames(record.clip.frames)
    return picture * (1 + len(record.references)) + _prompt_tokens(record)


def _memory(config: TrainConfig, model: ModelConfig, records: Sequence[Record], adapter: int) -> dict[str, int]:
    sizes, wide = SIZES[model.model_family], 2 if model.base_model_precision == "fp32" else 1
    largest = max((tokens_of(record) for record in records), default=0)
    blocks = len(blocks_of(released_transformer(model.model_family)))
    tokens = config.train_batch_size * largest * sizes.hidden * wide
    kept = sizes.kept[config.options.lora_target]
    earlier = CHECKPOINT * blocks if config.options.gradient_checkpointing else kept * (blocks - 1)
    activations = tokens * (earlier + kept * GRADIENTS)
    resident = resident_bytes(model) + adapter * (ADAPTER + 4 * config.options.use_ema)
    phases = {
        "training": resident + activations,
        "encoding prompts": text_encoder_bytes(model) + TEXT_ACTIVATIONS * wide,
        "encoding pictures": 4 * sizes.vae_weights + max((_encoding(model, record) for record in records), default=0),
    }
    if config.validation is not None:
        phases["validation"] = resident + _preview_bytes(config.validation, model)
    return {name: round(MARGIN * count + CONTEXT) for name, count in phases.items()}


def resident_bytes(model: ModelConfig) -> float:
    """Of the transformer's weights, those that are on the card while it trains."""
    transformer = released_transformer(model.model_family)
    blocks = [weight_bytes(block, model.base_model_precision, name) for name, block in blocks_of(transformer).items()]
    streamed = min(streamed_blocks(model, training=True), len(blocks))
    here = model.group_offload_blocks_per_group + 1
    away = sum(blocks[: int(streamed)]) - here * max(blocks) if streamed > here else 0
    return weight_bytes(transformer, model.base_model_precision) - max(away, 0)


def weight_bytes(module: nn.Module, precision: str, name: str = "") -> float:
    """Bytes of a part of a model in `precision`; `name` is its full name within the model."""

    quantised = 0
    if precision in QUANTISED_PRECISIONS:
        quantised = sum(module.get_submodule(each).weight.numel() for each in linears_to_quantise(module, name))
    whole = 4.0 if precision == "fp32" else 2.0
    return (_weights(module) - quantised) * whole + quantised * BYTES_PER_WEIGHT.get(precision, INT4_WEIGHT)


def text_encoder_bytes(model: ModelConfig) -> float:
    """Bytes of the text encoder's weights."""
    sizes, precision = SIZES[model.model_family], model.text_encoder_1_precision
    whole = 4.0 if model.base_model_precision == "fp32" else 2.0
    quantised = sizes.text_quantised if precision in QUANTISED_PRECISIONS else 0
    return (sizes.text_weights - quantised) * whole + quantised * BYTES_PER_WEIGHT.get(precision, INT4_WEIGHT)


def _preview_bytes(settings: ValidationConfig, model: ModelConfig) -> float:
    """Drawing one preview, then decoding it, whichever is more; the transformer stays where it is meanwhile."""
    sizes = SIZES[model.model_family]
    size = parse_size(settings.validation_resolution, "validation_resolution")
    if model.model_family == VIDEO_FAMILY:
        frames = settings.validation_num_video_frames
        tokens = picture_tokens(size) * latent_frames(frames)
        decoding = min(math.prod(size), VIDEO_TILE**2) * sizes.decode + 2 * 12 * math.prod(size) * frames
    else:
        # As if it had a reference, which that of an edit has.
        tokens = 2 * picture_tokens(size) + PROMPT_SLOTS
        decoding = math.prod(size) * sizes.decode
    return max(tokens * sizes.hidden * SAMPLING, decoding + 4 * sizes.vae_weights)


def _encoding(model: ModelConfig, record: Record) -> float:
    frames = record.clip.frames if isinstance(record, ClipRecord) else 1
    # The pixels of a whole clip, float32, before and after they come onto the card.
    return math.prod(record.bucket) * (SIZES[model.model_family].encode + 2 * 12 * frames)


def _cache_bytes(model: ModelConfig, record: Record) -> int:
    """Latents in float32, embeddings of the caption and of the empty one in the text encoder's dtype."""
    sizes = SIZES[model.model_family]
    plane = math.prod(latent_sides(record.bucket)) * sizes.latent_channels * 4
    frames = latent_frames(record.clip.frames) if isinstance(record, ClipRecord) else 1
    embeds = _prompt_tokens(record) * sizes.text_width * (4 if model.base_model_precision == "fp32" else 2)
    # Without a reference all captions share one empty twin.
    return plane * (frames + len(record.references)) + embeds * (2 if _sees_reference(record) else 1)


def _optimizer_bytes(config: TrainConfig) -> int:
    """Per weight of the adapter in optimizer.safetensors: the weight, its moments, its average."""
    # Adafactor keeps a row and a column of each matrix: next to nothing.
    moments = 0 if config.options.optimizer == "adafactor" else 8
    return 4 + moments + 4 * config.options.use_ema


def _kept_checkpoints(config: TrainConfig) -> int:
    made = math.ceil(config.max_train_steps / config.options.checkpoint_step_interval)
    return min(made, config.options.checkpoints_total_limit or made)


def _all_other_weights(family: str) -> int:
    return SIZES[family].text_weights + SIZES[family].vae_weights


def _prompt_tokens(record: Record) -> int:
    """Slots, and the reference as the text encoder sees it: half its size, in patches, between two marks."""
    if not _sees_reference(record):
        return PROMPT_SLOTS
    width, height = (max(round(side / 2 / VISION_PIXELS), 1) for side in record.bucket)
    return PROMPT_SLOTS + width * height + 2


def _sees_reference(record: Record) -> bool:
    return bool(record.references) and not isinstance(record, ClipRecord)


def _weights(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
