"""What the image twins learn from: drawn pictures and edits, encoded once by the code that users' pictures go through.

Legend: M examples, T prompts, P kept slots (see pads), D embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from comfyui_longcat.training.models.contract import TextEncoder
from comfyui_longcat.training.models.image.family import LongCatImageFamily
from comfyui_longcat.training.models.image.prompt import (
    IMAGE_PAD,
    SUFFIX,
    build_sequence,
    half_size,
    position_ids,
)
from comfyui_longcat.training.settings.geometry import PROMPT_SLOTS
from comfyui_longcat.training.tiny.captions import picture_captions
from comfyui_longcat.training.tiny.edits import KNOWN, allows, draw_edits
from comfyui_longcat.training.tiny.world import choose, draw, looks, place_scenes
from torch import Generator, Tensor

T2I_KEPT = 12
"""Slots of the longest caption."""

VISION = 6
"""Of an edit's embeddings: vision_start, the 2 x 2 tokens of a reference of 64 px, vision_end."""

EDIT_KEPT = VISION + 8

VISION_SIDE = 2

BATCH = 100


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Encoded examples."""

    targets: Tensor
    """[M, 16, 8, 8], latents"""
    references: Tensor | None
    """The same; None: pictures from text."""
    prompts: Tensor
    """[T, P + 1, D]: the kept slots, and the pad that all others hold."""
    wordings: Tensor
    """[M, W] int64, rows of `prompts` that say what example M shows; one of them is chosen."""
    empty: Tensor
    """[M] int64, the row of the empty prompt"""


def t2i_pool(vae: Any, text_encoder: TextEncoder, count: int, generator: Generator) -> Pool:
    """Pictures of all looks that are not held out, with all wordings of their captions."""
    known = looks(held_out=False)
    captions = [caption for look in known for caption in picture_captions(look)]
    per_look = len(captions) // len(known)
    chosen = torch.randint(len(known), (count,), generator=generator)
    pixels = draw(place_scenes([known[number] for number in chosen.tolist()], generator))
    return Pool(
        targets=_encode(vae, pixels),
        references=None,
        prompts=read_prompts(text_encoder, [*captions, ""]),
        wordings=chosen[:, None] * per_look + torch.arange(per_look),
        empty=torch.full((count,), len(captions)),
    )


def edit_pool(vae: Any, text_encoder: TextEncoder, count: int, generator: Generator) -> Pool:
    """As many edits of each known kind, of looks that are not held out."""
    per_kind = count // len(KNOWN)
    drawn = []
    for kind in KNOWN:
        options = [look for look in looks(held_out=False) if allows(look, kind)]
        chosen = choose(options, per_kind, generator)
        drawn.append(draw_edits(kind, chosen, place_scenes(chosen, generator), generator))
    references = torch.cat([edits.references for edits in drawn])
    instructions = [instruction for edits in drawn for instruction in edits.instructions]
    rows = torch.arange(len(instructions))
    return Pool(
        targets=_encode(vae, torch.cat([edits.targets for edits in drawn])),
        references=_encode(vae, references),
        prompts=torch.cat(
            [
                read_instructions(text_encoder, instructions, references),
                read_instructions(text_encoder, [""] * len(instructions), references),
            ]
        ),
        wordings=rows[:, None],
        empty=len(rows) + rows,
    )


def _encode(vae: Any, pixels: Tensor) -> Tensor:
    return torch.cat([LongCatImageFamily().encode_pixels(vae, batch) for batch in pixels.split(BATCH)])


def read_prompts(text_encoder: TextEncoder, prompts: list[str]) -> Tensor:
    """[T, P + 1, D]: what `encode_prompt` gives, many at once and without computing 500 equal pads for each."""
    starts = range(0, len(prompts), BATCH)
    return torch.cat([_read_batch(text_encoder, prompts[start : start + BATCH], None) for start in starts])


def read_instructions(text_encoder: TextEncoder, instructions: list[str], references: Tensor) -> Tensor:
    """[M, P + 1, D]: the same about references, pixels [M, 3, 64, 64]."""
    batches = zip(range(0, len(instructions), BATCH), references.split(BATCH), strict=True)
    return torch.cat(
        [_read_batch(text_encoder, instructions[start : start + BATCH], batch) for start, batch in batches]
    )


@torch.no_grad()
def _read_batch(text_encoder: TextEncoder, prompts: list[str], references: Tensor | None) -> Tensor:
    tokenizer = text_encoder.tokenizer
    side = 0 if references is None else VISION_SIDE
    kept = T2I_KEPT if references is None else EDIT_KEPT
    picture = {}
    if references is not None:
        halves = [half_size(reference.unsqueeze(0)) for reference in references]
        picture = text_encoder.image_processor(images=halves, return_tensors="pt")
    rows = [_short_sequence(tokenizer, text, side, kept) for text in prompts]
    ids, masks, positions = (torch.stack(kind) for kind in zip(*rows, strict=True))
    output = text_encoder.model.model(
        input_ids=ids, attention_mask=masks, position_ids=positions.transpose(0, 1), use_cache=False, **picture
    )
    return output.last_hidden_state[:, -kept - 1 :].clone()


def _short_sequence(tokenizer: Any, prompt: str, side: int, kept: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids [L], mask [L] and positions [3, L] up to the first pad behind the kept slots.

    Tokens see only those before them, so what is left out changes nothing.
    """
    ids, mask = build_sequence(tokenizer, prompt, side**2)
    suffix = len(tokenizer(SUFFIX, add_special_tokens=False)["input_ids"])
    left_out = PROMPT_SLOTS + (VISION if side else 0) - kept - 1 + suffix
    ids, mask = ids[:-left_out], mask[:-left_out]
    is_image = ids == tokenizer.convert_tokens_to_ids(IMAGE_PAD)
    return ids, mask, position_ids(is_image, mask, side, side)[:, 0]
