"""Trains the video twin's transformer on drawn clips that go right, left, down, or stay; never up.

Its text encoder stays as it is drawn: what tells words apart is enough. The twin's autoencoder has to be there.

Legend: N clips, B batch, C latent channels (16), T latent frames, h w latent sides, L text tokens, D embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from comfyui_longcat.training.models.flow import VIDEO_SHIFT, add_noise, shift_sigmas, velocity_target
from comfyui_longcat.training.settings.model import ModelConfig
from comfyui_longcat.training.tiny.captions import clip_captions
from comfyui_longcat.training.tiny.clips import KNOWN, clip_looks, moving_scenes
from comfyui_longcat.training.tiny.world import choose, draw
from comfyui_longcat.training.weights.spec import ModelSpec
from comfyui_longcat.training.weights.video_components import load_transformer
from torch import Generator, Tensor, nn

from ..loading import open_twin
from ..video_checkpoint import TEXT_WIDTH, build_scheduler, build_umt5
from ..video_scores import FAMILY, encode_prompts, sample_clips, score_clips, score_looks, unseen_clips
from ..video_tokenizer import write_video_tokenizer
from .training import Log, train

TRANSFORMER = {
    "in_channels": 16,
    "out_channels": 16,
    "hidden_size": 128,
    "depth": 4,
    "num_heads": 2,
    "caption_channels": TEXT_WIDTH,
    # An inner width of 256; the released 4 would be rounded up to 512.
    "mlp_ratio": 3,
    "adaln_tembed_dim": 64,
    "frequency_embedding_size": 64,
    "patch_size": (1, 2, 2),
    "text_tokens_zero_pad": True,
}

SEED = 30
LEARNING_RATE = 1.5e-3
BATCH = 16
CLIPS = 3072
"""Drawn and encoded once for each part."""

FAR = 0.18
"""Share of a side, how far from a frame's middle the middles of far clips' ways lie at most, along x and along y."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Of the training; each goes on from what the one before has written."""

    steps: int
    start_given: float
    """Share of the steps that are image-to-video; the others are text-to-video"""
    far: float
    """Share of the clips that may begin far from the middle"""


PARTS = (
    Part(steps=16_000, start_given=0.75, far=0.5),
    # Without a start there is more to learn, and places in the middle are enough for that.
    Part(steps=6_000, start_given=0.3, far=0.2),
    Part(steps=8_000, start_given=0.15, far=0.0),
)

EMPTY_PROMPTS = 0.1
SHIFTS = (VIDEO_SHIFT, 3.0)
"""Of the noise levels, half of the clips each: with 12 alone, only 8 % of the levels lie below a half."""

QUERY_KEY_SIZE = 1.3


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Clips and captions, encoded."""

    latents: Tensor
    """[N, C, T, h, w]"""
    prompts: Tensor
    """[P, L, D], every caption once, filled up with zeros; the last one is empty"""
    told: Tensor
    """[N], which of `prompts` tells a clip"""


def train_video(folder: Path, log: Log) -> dict[str, Any]:
    """Trains from nothing and writes all but the autoencoder to `folder`, bf16; every 1,000 steps what there is, too.

    Args:
        folder: of the twin; holds vae.

    Returns:
        The record: seed, steps, CPU seconds, parameters, and of clips of looks that were never trained on the share
        whose way is right and their PSNR (dB), by way.
    """

    write_text_encoder(folder)
    transformer, seconds = new_transformer(SEED), 0.0
    for number, part in enumerate(PARTS):
        # Written also before it has learnt anything, so that the twin is whole and opens.
        _save(transformer, folder)
        seconds += train_part(folder, transformer, part, SEED + number, log)
        transformer = stored_transformer(folder)
    return {
        "seed": SEED,
        "steps": [part.steps for part in PARTS],
        "cpu_seconds": round(seconds),
        "parameters": sum(parameter.numel() for parameter in transformer.parameters()),
        "right_and_psnr": score(folder, 32),
        "right_and_looks_from_text": score_from_text(folder, 32),
    }


def train_part(folder: Path, transformer: nn.Module, part: Part, seed: int, log: Log) -> float:
    """Trains and writes the transformer, float32 as it is given, bf16 as it is written; returns the CPU seconds."""

    def report(average: nn.Module, step: int) -> str:
        _save(average, folder)
        return ", ".join(f"{way} {right:.2f} {near:.1f} dB" for way, (right, near) in score(folder, 8).items())

    generator = torch.Generator().manual_seed(seed)
    pool = encode_pool(folder, part, generator)
    log(f"{len(pool.latents)} clips and {len(pool.prompts)} prompts are encoded")
    losses = _losses(transformer, pool, part, generator)
    average, seconds = train(transformer, losses, part.steps, LEARNING_RATE, log, report)
    _save(average, folder)
    return seconds


def stored_transformer(folder: Path) -> nn.Module:
    """The twin's transformer as it is written, in float32, to be trained on."""
    return load_transformer(folder, torch.float32).requires_grad_(True)


def write_text_encoder(folder: Path) -> None:
    """Writes text_encoder, tokenizer and scheduler; the text encoder is random, from `SEED`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        build_umt5().to(torch.bfloat16).save_pretrained(folder / "text_encoder")
    build_scheduler().save_pretrained(folder / "scheduler")
    write_video_tokenizer(folder / "tokenizer")


def spec_of(folder: Path) -> ModelSpec:
    """The twin in `folder`, computed in float32."""
    config = ModelConfig(model_family="longcat_video", model_flavour="tiny-video", base_model_precision="fp32")
    return ModelSpec(config=config, models_dirs=(), folder=folder)


@torch.no_grad()
def encode_pool(folder: Path, part: Part, generator: Generator) -> Pool:
    """Draws `CLIPS` clips of what the twin may know and encodes them as a run's caches would."""
    captions = [text for look in clip_looks(held_out=False) for way in KNOWN for text in clip_captions(look, way)]
    places = {text: place for place, text in enumerate(captions)}
    latents, told = [], []
    with open_twin(spec_of(folder)) as twin:
        prompts = encode_prompts(twin.text_encoder, [*captions, ""])
        for _ in range(CLIPS // BATCH):
            pixels, texts = draw_known_clips(BATCH, part.far, generator)
            latents.append(FAMILY.encode_pixels(twin.vae, pixels))
            told.extend(places[text] for text in texts)
    longest = int((prompts != 0).any(dim=-1).sum(dim=1).max())
    return Pool(latents=torch.cat(latents), prompts=prompts[:, :longest].clone(), told=torch.tensor(told))


def draw_known_clips(count: int, far_share: float, generator: Generator) -> tuple[Tensor, list[str]]:
    """Pixels [N, 3, F, S, S] and captions of what the twin may know; some clips begin far from the middle.

    So the twin knows shapes in all parts of a frame, and a LoRA that sends them somewhere new need not teach that.
    """
    chosen = choose(clip_looks(held_out=False), count, generator)
    ways = choose(list(KNOWN), count, generator)
    frames = moving_scenes(chosen, ways, generator)
    middles = (frames[0].centres + frames[-1].centres) / 2
    elsewhere = 0.5 + FAR * (2 * torch.rand(count, 2, generator=generator) - 1)
    far = torch.rand(count, 1, generator=generator) < far_share
    away = torch.where(far, elsewhere - middles, 0.0)
    pixels = torch.stack([draw(replace(scenes, centres=scenes.centres + away)) for scenes in frames], dim=2)
    return pixels, [choose(clip_captions(look, way), 1, generator)[0] for look, way in zip(chosen, ways, strict=True)]


def new_transformer(seed: int) -> nn.Module:
    """The untrained transformer, float32, whose attention knows places from the start.

    Equal queries and keys with one shared bias make it a kernel of rotary distance: a token sees its own place and its
    neighbours, in the start frame too. Without that, it takes many times as long until clips hold a shape.
    """
    from comfyui_longcat.training.models.video.transformer import LongCatVideoTransformer3DModel

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        transformer = LongCatVideoTransformer3DModel(**TRANSFORMER)
        for module in transformer.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for block in transformer.blocks:
            _look_at_own_place(block.attn)
        silent = [transformer.final_layer.linear, transformer.final_layer.adaLN_modulation[1]]
        for linear in (*silent, *(block.adaLN_modulation[1] for block in transformer.blocks)):
            nn.init.zeros_(linear.weight)
    return transformer


def _look_at_own_place(attention: nn.Module) -> None:
    queries, keys, _ = attention.qkv.weight.chunk(3)
    keys.copy_(queries)
    query_bias, key_bias, _ = attention.qkv.bias.chunk(3)
    nn.init.normal_(query_bias)
    key_bias.copy_(query_bias)
    nn.init.constant_(attention.q_norm.weight, QUERY_KEY_SIZE)
    nn.init.constant_(attention.k_norm.weight, QUERY_KEY_SIZE)


def _losses(transformer: nn.Module, pool: Pool, part: Part, generator: Generator) -> Iterator[Tensor]:
    empty = len(pool.prompts) - 1
    while True:
        chosen = torch.randint(len(pool.latents), (BATCH,), generator=generator)
        latents = pool.latents[chosen]
        dropped = torch.rand(BATCH, generator=generator) < EMPTY_PROMPTS
        prompts = pool.prompts[pool.told[chosen].masked_fill(dropped, empty)]
        given = torch.rand((), generator=generator) < part.start_given
        inputs = FAMILY.prepare_inputs(latents.shape, prompts, [latents[:, :, :1]] if given else [])
        levels = torch.rand(len(SHIFTS), BATCH // len(SHIFTS), generator=generator)
        sigmas = torch.cat([shift_sigmas(some, shift) for some, shift in zip(levels, SHIFTS, strict=True)])
        noise = torch.randn(latents.shape, generator=generator)
        velocity = FAMILY.predict(transformer, add_noise(latents, noise, sigmas), sigmas, inputs)
        learned = slice(inputs.num_cond_latents, None)
        yield F.mse_loss(velocity[:, :, learned], velocity_target(latents, noise)[:, :, learned])


def _save(transformer: nn.Module, folder: Path) -> None:
    from copy import deepcopy

    deepcopy(transformer).to(torch.bfloat16).save_pretrained(folder / "dit")


def score(folder: Path, clips: int, ways: tuple[str, ...] = KNOWN) -> dict[str, tuple[float, float]]:
    """Of `clips` clips a way, given their first frame: share that goes there, and PSNR in dB; see `ClipScores`."""
    results = {}
    with open_twin(spec_of(folder)) as twin:
        for number, way in enumerate(ways):
            _, drawn = unseen_clips(way, clips, 1000 * SEED + number)
            found = score_clips(sample_clips(twin, drawn, SEED), drawn, way)
            results[way] = round(found.right, 2), round(found.psnr, 1)
    return results


def score_from_text(folder: Path, clips: int) -> dict[str, tuple[float, float]]:
    """Of `clips` clips a way without a first frame: shares that go there and that have the right look."""
    results = {}
    with open_twin(spec_of(folder)) as twin:
        for number, way in enumerate(KNOWN):
            wanted, drawn = unseen_clips(way, clips, 1000 * SEED + number)
            pixels = sample_clips(twin, drawn, SEED, start_given=False)
            results[way] = round(score_clips(pixels, drawn, way).right, 2), round(score_looks(pixels, wanted), 2)
    return results
