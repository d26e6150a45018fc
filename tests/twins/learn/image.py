"""Trains the image twins: pictures from captions (`tiny`), and edits (`tiny-edit`).

Legend: B batch, M examples, P kept slots and K sampled pads (see pads), D embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from comfyui_longcat.training.models.contract import ModelInputs, TextEncoder
from comfyui_longcat.training.models.flow import add_noise, shift_sigmas, velocity_target
from comfyui_longcat.training.models.image.family import LongCatImageFamily
from comfyui_longcat.training.models.image.latents import (
    REFERENCE,
    TARGET,
    image_position_ids,
    pack_latents,
    text_position_ids,
)
from comfyui_longcat.training.settings.flavours import EDIT, TEXT_TO_IMAGE
from comfyui_longcat.training.settings.geometry import PROMPT_SLOTS
from comfyui_longcat.training.weights.components import from_folder
from comfyui_longcat.training.weights.qwen_file import image_processor
from comfyui_longcat.training.weights.twins import SHARED
from torch import Generator, Tensor, nn

from ..image_checkpoint import MODEL_PARTS, write_settings
from .image_pool import VISION, Pool, edit_pool, t2i_pool
from .pads import BiasedProcessor, Slots, all_slots, sample_slots, use_biased_attention
from .training import Log, train

TRANSFORMER = {
    "patch_size": 1,
    "in_channels": 64,
    "num_layers": 2,
    "num_single_layers": 3,
    # Heads this wide have enough frequencies to tell places apart.
    "attention_head_dim": 64,
    "num_attention_heads": 2,
    "joint_attention_dim": 64,
    "pooled_projection_dim": 64,
    "axes_dims_rope": [8, 28, 28],
}

SEED = 1
POOL_SEED = 7

T2I_STEPS, T2I_EXAMPLES = 10_000, 12_000
EDIT_STEPS, EDIT_EXAMPLES = 9_000, 10_000

LEARNING_RATE = 1.5e-3
BATCH, FULL_BATCH = 24, 8
FULL_SHARE = 0.02
"""Share of the steps, at their end, that see all 512 slots; each costs as much as seven others."""

EMPTY_SHARE = 0.1
"""Of the prompts, for guidance."""

SIGMA_SHIFT = 3.0
QUERY_KEY_SIZE = 1.3


def train_t2i(twins: Path, log: Log, steps: int = T2I_STEPS, examples: int = T2I_EXAMPLES) -> dict[str, Any]:
    """Trains `tiny` with the parts in `twins`/image and writes its folder; returns seed, steps, CPU seconds."""
    pool = t2i_pool(*_encoders(twins / SHARED), examples, torch.Generator().manual_seed(POOL_SEED))
    return _train(pool, twins, "tiny", TEXT_TO_IMAGE, steps, log)


def train_edit(twins: Path, log: Log, steps: int = EDIT_STEPS, examples: int = EDIT_EXAMPLES) -> dict[str, Any]:
    """Trains `tiny-edit` with the parts in `twins`/image and writes its folder; returns seed, steps, CPU seconds."""
    pool = edit_pool(*_encoders(twins / SHARED), examples, torch.Generator().manual_seed(POOL_SEED))
    return _train(pool, twins, "tiny-edit", EDIT, steps, log)


def _encoders(folder: Path) -> tuple[Any, TextEncoder]:
    from diffusers import AutoencoderKL
    from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

    text_encoder = TextEncoder(
        model=from_folder(Qwen2_5_VLForConditionalGeneration, folder / "text_encoder", torch.float32).eval(),
        tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer"),
        image_processor=image_processor(),
    )
    return from_folder(AutoencoderKL, folder / "vae", torch.float32).eval(), text_encoder


def _train(pool: Pool, twins: Path, name: str, pipeline: str, steps: int, log: Log) -> dict[str, Any]:
    transformer, seconds = train_transformer(pool, steps, SEED, log)
    folder = twins / name
    transformer.to(torch.bfloat16).save_pretrained(folder / "transformer")
    write_settings(folder / "model_index.json", {"_class_name": pipeline, **MODEL_PARTS})
    return {"seed": SEED, "steps": steps, "cpu_seconds": round(seconds)}


def train_transformer(pool: Pool, steps: int, seed: int, log: Log) -> tuple[nn.Module, float]:
    """Trains a transformer from nothing on `pool`; returns it in eval mode, and the CPU seconds."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    transformer = build_transformer(shared_text_bias=pool.references is None)
    processor = use_biased_attention(transformer)
    return train(transformer, _losses(transformer, processor, pool, steps, generator), steps, LEARNING_RATE, log)


def build_transformer(shared_text_bias: bool) -> nn.Module:
    """The untrained LongCatImageTransformer2DModel, whose attention starts as a kernel of rotary distance.

    Equal queries and keys with one shared bias: a token sees its own place, its neighbours, and the reference's token
    of the same row and column, which is what an edit copies from. With `shared_text_bias` text tokens are near, too.
    """
    from diffusers import LongCatImageTransformer2DModel

    transformer = LongCatImageTransformer2DModel(**TRANSFORMER)
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
            if ".norm" in f".{name}" or name == "proj_out":
                nn.init.zeros_(module.weight)
            else:
                nn.init.xavier_uniform_(module.weight)
    for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
        _look_at_own_place(block.attn, shared_text_bias)
    return transformer


@torch.no_grad()
def _look_at_own_place(attention: nn.Module, shared_text_bias: bool) -> None:
    bias = torch.randn_like(attention.to_q.bias)
    pairs = [(attention.to_q, attention.to_k)]
    if attention.added_kv_proj_dim is not None:
        pairs.append((attention.add_q_proj, attention.add_k_proj))
    for queries, keys in pairs if shared_text_bias else pairs[:1]:
        keys.weight.copy_(queries.weight)
        for linear in (queries, keys):
            linear.bias.copy_(bias)
    for name, module in attention.named_modules():
        if name.startswith("norm_"):
            module.weight.fill_(QUERY_KEY_SIZE)


def _losses(
    transformer: nn.Module, processor: BiasedProcessor, pool: Pool, steps: int, generator: Generator
) -> Iterator[Tensor]:
    family = LongCatImageFamily()
    kept = pool.prompts.shape[1] - 1
    total = _slots_of(pool)
    for step in range(steps):
        full = step >= (1 - FULL_SHARE) * steps
        slots = all_slots(total) if full else sample_slots(kept, total, step / steps, generator)
        chosen = torch.randint(len(pool.targets), (FULL_BATCH if full else BATCH,), generator=generator)
        latents = pool.targets[chosen]
        noise = torch.randn(latents.shape, generator=generator)
        sigmas = _sigmas(len(chosen), generator)
        inputs = _inputs(pool, chosen, slots, generator)
        processor.bias = _attention_bias(slots, inputs)
        prediction = family.predict(transformer, add_noise(latents, noise, sigmas), sigmas, inputs)
        yield F.mse_loss(prediction, velocity_target(latents, noise))


def _slots_of(pool: Pool) -> int:
    """All slots that the transformer sees: the prompt's, and an edit's vision tokens."""
    return PROMPT_SLOTS + (0 if pool.references is None else VISION)


def _sigmas(count: int, generator: Generator) -> Tensor:
    """[B], logit-normal and shifted, as the trainer draws them by default."""
    return shift_sigmas(torch.randn(count, generator=generator).sigmoid(), SIGMA_SHIFT)


def _inputs(pool: Pool, chosen: Tensor, slots: Slots, generator: Generator) -> ModelInputs:
    """What the transformer gets about the chosen examples, with the given slots at their true positions."""
    wording = torch.randint(pool.wordings.shape[1], chosen.shape, generator=generator)
    empty = torch.rand(chosen.shape, generator=generator) < EMPTY_SHARE
    rows = torch.where(empty, pool.empty[chosen], pool.wordings[chosen, wording])
    # Every slot behind the kept ones holds the last row, the pad.
    places = slots.places.clamp(max=pool.prompts.shape[1] - 1)
    references = None if pool.references is None else pool.references[chosen]
    return _with_positions(pool.prompts[rows][:, places], references, slots, _slots_of(pool), pool.targets.shape[-1])


def _with_positions(
    prompt_embeds: Tensor, references: Tensor | None, slots: Slots, total: int, side: int
) -> ModelInputs:
    """prompt_embeds [B, P + K, D], references [B, 16, h, w] or None -> as `prepare_inputs` gives it for all slots."""
    img_ids = [image_position_ids(TARGET, side, side, total)]
    if references is not None:
        img_ids.append(image_position_ids(REFERENCE, side, side, total))
    return ModelInputs(
        prompt_embeds=prompt_embeds,
        packed_cond_latents=None if references is None else pack_latents(references),
        txt_ids=text_position_ids(total)[slots.places],
        img_ids=torch.cat(img_ids),
    )


def _attention_bias(slots: Slots, inputs: ModelInputs) -> Tensor | None:
    """[1, 1, 1, keys]: the text's bias, then zeros for the picture tokens."""
    if slots.bias is None:
        return None
    return torch.cat([slots.bias, torch.zeros(len(inputs.img_ids))])[None, None, None]
