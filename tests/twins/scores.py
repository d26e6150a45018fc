"""How well an image twin does what it has learnt, through the product's own loading, encoding and sampling.

Legend: N samples, S side in px.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from comfyui_longcat.training.models.image.family import LongCatImageFamily
from comfyui_longcat.training.sampling.euler import Guidance, sample_image
from comfyui_longcat.training.tiny.captions import picture_captions
from comfyui_longcat.training.tiny.classifier import Reading, psnr, read_pictures
from comfyui_longcat.training.tiny.edits import KNOWN, EditedPictures, allows, draw_edits
from comfyui_longcat.training.tiny.world import SIDE, Look, choose, looks, place_scenes
from comfyui_longcat.training.weights.spec import ModelSpec
from torch import Tensor

from .loading import Twin, open_twin

BATCH = 20

SEED = 10_000
"""Far from those of the trainings."""


@dataclass(frozen=True, kw_only=True)
class PictureScores:
    """Shares of the pictures in which what the caption says is right, 0..1."""

    colour_and_shape: float
    background_and_position: float


def unseen_captions(count: int, seed: int) -> list[tuple[Look, str]]:
    """Looks that no twin was trained on, each with one of its captions; in both languages."""
    generator = torch.Generator().manual_seed(seed)
    chosen = choose(looks(held_out=True), count, generator)
    return [(look, choose(picture_captions(look), 1, generator)[0]) for look in chosen]


def unseen_edits(kind: str, count: int, seed: int) -> tuple[list[Look], EditedPictures]:
    """Edits of one kind of looks that no twin was trained on."""
    generator = torch.Generator().manual_seed(seed)
    chosen = choose([look for look in looks(held_out=True) if allows(look, kind)], count, generator)
    return chosen, draw_edits(kind, chosen, place_scenes(chosen, generator), generator)


def score_t2i(spec: ModelSpec, count: int = 100, seed: int = SEED, guidance: float = 2.0) -> PictureScores:
    """How many pictures show what captions never trained on say, 20 steps each."""
    wanted = unseen_captions(count, seed)
    with open_twin(spec) as twin:
        samples = draw_captions(twin, [caption for _, caption in wanted], guidance, seed)
    return score_pictures(samples, [look for look, _ in wanted])


def score_edits(spec: ModelSpec, count: int = 20, seed: int = SEED, guidance: float = 1.0) -> dict[str, float]:
    """Mean PSNR (dB) to the drawn target for each kind of edit the twin knows, of looks never trained on."""
    with open_twin(spec) as twin:
        return {
            kind: edit_psnr(twin, unseen_edits(kind, count, seed)[1], guidance, seed).mean().item() for kind in KNOWN
        }


def score_pictures(samples: Tensor, wanted: Sequence[Look]) -> PictureScores:
    """Reads samples [N, 3, S, S] and compares them with what was asked for."""
    readings = read_pictures(samples)
    pairs = list(zip(readings, wanted, strict=True))
    return PictureScores(
        colour_and_shape=_share(
            _words(reading, "colour", "shape") == _words(look, "colour", "shape") for reading, look in pairs
        ),
        background_and_position=_share(
            _words(reading, "background", "position") == _words(look, "background", "position")
            for reading, look in pairs
        ),
    )


def draw_captions(
    twin: Twin, captions: Sequence[str], guidance: float, seed: int, num_inference_steps: int = 20
) -> Tensor:
    """Pixels [N, 3, S, S] that the twin draws for N captions."""
    return _sample(twin, list(captions), None, guidance, seed, num_inference_steps)


def draw_instructions(
    twin: Twin,
    instructions: Sequence[str],
    references: Tensor,
    guidance: float,
    seed: int,
    num_inference_steps: int = 20,
) -> Tensor:
    """Pixels [N, 3, S, S] that the twin makes of references [N, 3, S, S] by N instructions."""
    return _sample(twin, list(instructions), references, guidance, seed, num_inference_steps)


def edit_psnr(twin: Twin, edits: EditedPictures, guidance: float, seed: int) -> Tensor:
    """[N] dB, between what the twin makes and the drawn target."""
    return psnr(draw_instructions(twin, edits.instructions, edits.references, guidance, seed), edits.targets)


@torch.no_grad()
def _sample(
    twin: Twin, prompts: list[str], references: Tensor | None, guidance: float, seed: int, steps: int
) -> Tensor:
    family, generator = LongCatImageFamily(), torch.Generator().manual_seed(seed)
    samples = []
    for start in range(0, len(prompts), BATCH):
        texts = prompts[start : start + BATCH]
        pixels = None if references is None else references[start : start + BATCH]
        cond_latents = () if pixels is None else (family.encode_pixels(twin.vae, pixels),)
        noise = torch.randn(len(texts), 16, SIDE // 8, SIDE // 8, generator=generator)

        def inputs_of(texts: list[str], pixels: Tensor | None = pixels, shape=noise.shape, cond_latents=cond_latents):
            shown = [()] * len(texts) if pixels is None else [(one.unsqueeze(0),) for one in pixels]
            embeds = [family.encode_prompt(twin.text_encoder, *pair) for pair in zip(texts, shown, strict=True)]
            return family.prepare_inputs(shape, torch.cat(embeds), cond_latents)

        inputs = inputs_of(texts)
        negative = Guidance(inputs=inputs_of([""] * len(texts)), scale=guidance) if guidance > 1 else None
        latents = sample_image(family, twin.transformer, noise, inputs, steps, negative)
        samples.append(family.decode(twin.vae, latents))
    return torch.cat(samples)


def _words(described: Reading | Look, *kinds: str) -> tuple[str | None, ...]:
    return tuple(getattr(described, kind) for kind in kinds)


def _share(right: Iterator[bool]) -> float:
    answers = list(right)
    return sum(answers) / len(answers)
