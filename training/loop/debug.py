"""What the trainer sees, as pictures: the best way to find a fault in data, noise levels or signs.

Legend of shapes: B batch, C channels, h w latent height and width.
"""

from __future__ import annotations

from pathlib import Path

import torch
from PIL.Image import Image
from torch import Tensor

from ..data.contact_sheet import image_grid
from ..data.media import from_pixels
from ..events import Callbacks
from ..files import replacing
from ..models.flow import add_noise
from ..weights.components import open_vae
from ..weights.spec import ModelSpec
from .batches import Batch, load_batch
from .state import TrainState
from .step import Draws, draw, forward_step

BATCHES = 3
LARGEST_CELL = 512
"""Px; a picture of a larger bucket is shown smaller."""


def write_debug_images(state: TrainState, spec: ModelSpec, folder: Path, callbacks: Callbacks) -> None:
    """Writes `batch-000001.png` and so on: the next batches, each with the random numbers that the training will draw.

    The predictions are all of the model as it is now; nothing of `state` is changed.
    """
    # A copy: the training draws the same again.
    generator = torch.Generator("cpu").set_state(state.generator.get_state())
    folder.mkdir(parents=True, exist_ok=True)
    with torch.no_grad(), open_vae(spec, state.transformer.device, callbacks) as vae:
        for number in range(state.batches_done, state.batches_done + BATCHES):
            batch = load_batch(state.order.batch(number))
            draws = draw(state.family, state.config.options, batch.latents.shape, generator)
            picture = _draw_batch(state, vae, batch, draws)
            with replacing(folder / f"batch-{number + 1:06d}.png") as temporary:
                picture.save(temporary, format="PNG")


def _still(pixels: Tensor) -> Tensor:
    """[1, 3, H, W], of a clip [1, 3, F, H, W] the middle frame."""
    return pixels if pixels.ndim == 4 else pixels[:, :, pixels.shape[2] // 2]


def _draw_batch(state: TrainState, vae: object, batch: Batch, draws: Draws) -> Image:
    """One row a sample."""
    result = forward_step(state.family, state.transformer, batch, draws)
    prediction, target = result.prediction.cpu(), result.target.cpu()
    noisy = add_noise(batch.latents, draws.noise, draws.sigmas)  # [B, C, h, w], like all of them
    recovered = noisy - draws.sigmas.view(-1, *[1] * (noisy.ndim - 1)) * prediction
    columns = {
        "latents": batch.latents,
        "noise": draws.noise,
        "noisy": noisy,
        "prediction": prediction,
        "target": target,
        "recovered": recovered,
    }
    rows = [
        [from_pixels(_still(state.family.decode(vae, latents[row : row + 1]))) for latents in columns.values()]
        for row in range(len(batch.names))
    ]
    captions = [
        f"{name}, sigma {sigma:.3f}{', empty instruction' if dropped else ''}"
        for name, sigma, dropped in zip(batch.names, draws.sigmas.tolist(), draws.dropped.tolist(), strict=True)
    ]
    return image_grid(rows, (*columns, f"loss {result.loss.item():.4f}"), captions, min(LARGEST_CELL, *batch.bucket))
