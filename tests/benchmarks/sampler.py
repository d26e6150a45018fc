"""Our sampler against diffusers' LongCatImageEditPipeline on the same tiny model; the goal is a ratio of at most 1.0.

Run: python tests/benchmarks/sampler.py

Both go from one picture to its edited latents with the same embeddings, noise, steps and guidance, by turns in one
process; the medians are compared, and the results too, so that both are known to do the same work. Times are CPU
seconds of one thread, which other programs on the machine disturb least.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

WIDTH, HEIGHT = 96, 64
PROMPT_TOKENS = 518
STEPS = 5
GUIDANCE = 4.5
ROUNDS = 21


class Processor:
    """Stands in for Qwen2VLProcessor, which cannot be made without torchvision; only prompt encoding would use it."""

    image_processor = None


def build_pipeline(folder: Path):
    """diffusers' edit pipeline on the tiny twin, held to our picture size and to embeddings made beforehand."""
    import torch
    from comfyui_longcat.tests.twins.image_checkpoint import build_tiny_image_checkpoint
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, LongCatImageTransformer2DModel
    from diffusers.pipelines.longcat_image import pipeline_longcat_image_edit as module
    from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

    build_tiny_image_checkpoint(folder)
    pipeline = module.LongCatImageEditPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
        vae=AutoencoderKL.from_pretrained(folder / "vae"),
        text_encoder=Qwen2_5_VLForConditionalGeneration.from_pretrained(folder / "text_encoder"),
        tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer"),
        text_processor=Processor(),
        transformer=LongCatImageTransformer2DModel.from_pretrained(folder / "transformer"),
    )
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    embeds = {prompt: torch.randn(1, PROMPT_TOKENS, 64, generator=generator) for prompt in ("edit", "")}

    def encode_prompt(prompt, image, prompt_embeds, num_images_per_prompt):
        ids = module.prepare_pos_ids(modality_id=0, type="text", start=(0, 0), num_token=PROMPT_TOKENS)
        return embeds[prompt], ids

    pipeline.encode_prompt = encode_prompt
    module.calculate_dimensions = lambda area, ratio: (WIDTH, HEIGHT)
    return pipeline, embeds


def build_contestants(folder: Path) -> tuple[Callable, Callable]:
    """(ours, theirs): each returns packed latents."""
    import torch
    from comfyui_longcat.training.data.media import to_pixels
    from comfyui_longcat.training.models.image.latents import pack_latents
    from comfyui_longcat.training.models.registry import family_of
    from comfyui_longcat.training.sampling.euler import Guidance, initial_noise, sample_image
    from PIL import Image

    pipeline, embeds = build_pipeline(folder)
    family = family_of("longcat_image")
    noise = initial_noise((1, 16, HEIGHT // 8, WIDTH // 8), seed=0)
    levels = torch.randint(0, 256, (HEIGHT, WIDTH, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    picture = Image.fromarray(levels.numpy())

    def ours() -> torch.Tensor:
        references = [family.encode_pixels(pipeline.vae, to_pixels(picture, (WIDTH, HEIGHT)))]
        inputs = family.prepare_inputs(noise.shape, embeds["edit"], references)
        guidance = Guidance(inputs=family.prepare_inputs(noise.shape, embeds[""], references), scale=GUIDANCE)
        return pack_latents(sample_image(family, pipeline.transformer, noise, inputs, STEPS, guidance))

    def theirs() -> torch.Tensor:
        return pipeline(
            picture,
            "edit",
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            latents=pack_latents(noise),
            output_type="latent",
        ).images

    return ours, theirs


def seconds(work: Callable) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> int:
    """Prints the medians, their ratio and the largest difference of the results; 1 when the goal is missed."""
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = build_contestants(Path(folder) / "tiny-edit")
        difference = (ours() - theirs()).abs().max().item()
        times = [(seconds(ours), seconds(theirs)) for _ in range(ROUNDS)]
    own, other = (statistics.median(column) for column in zip(*times, strict=True))
    print(f"{STEPS} steps, guidance {GUIDANCE}, {WIDTH}x{HEIGHT}, median of {ROUNDS} by turns:")
    print(f"ours {own:.4f} s, diffusers {other:.4f} s, ratio {own / other:.3f} (goal: at most 1.0)")
    print(f"largest difference of the latents: {difference:.2e}")
    return int(own > other)


if __name__ == "__main__":
    sys.exit(main())
