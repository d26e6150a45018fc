"""ComfyUI's IMAGE (float32, [B, H, W, C], 0..1) to and from pictures and pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..training.errors import ConfigError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

GREY = 0.5
EMPTY_SIDE = 64
"""Px; side of the picture that stands for "there is none"."""


def one_picture(image: Tensor, where: str) -> Image.Image:
    """IMAGE [1, H, W, 3 or 4] -> RGB picture; transparency is flattened on white, as in datasets.

    Args:
        image: may be an inference tensor; it is not changed.
        where: node and input, to begin the message with.

    Raises:
        ConfigError: a batch of several pictures, or none.
    """
    import numpy as np
    from PIL import Image

    if image.ndim != 4 or image.shape[0] != 1:
        raise ConfigError(
            f"{where} has shape {list(image.shape)}; it must be one picture, [1, height, width, 3]. Choose one of a"
            " batch with core's ImageFromBatch."
        )
    values = (image[0].float().clamp(0, 1) * 255).round().byte().cpu().numpy()
    picture = Image.fromarray(np.ascontiguousarray(values))
    if picture.mode != "RGBA":
        return picture.convert("RGB")
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")


def to_image(pictures: Sequence[Image.Image]) -> Tensor:
    """RGB pictures -> IMAGE [B, H, W, 3]; smaller ones get a grey margin, since a batch has one size."""
    import numpy as np
    import torch
    from PIL import Image

    size = max(picture.width for picture in pictures), max(picture.height for picture in pictures)
    sheets = []
    for picture in pictures:
        sheet = Image.new("RGB", size, (round(GREY * 255),) * 3)
        sheet.paste(picture, ((size[0] - picture.width) // 2, (size[1] - picture.height) // 2))
        sheets.append(np.asarray(sheet, dtype=np.float32) / 255)
    return torch.from_numpy(np.stack(sheets))


def pixels_to_image(pixels: Tensor) -> Tensor:
    """pixels [B, 3, H, W] in -1..1 -> IMAGE [B, H, W, 3]."""
    return ((pixels.float() + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1).contiguous().cpu()


def clip_to_image(pixels: Tensor) -> Tensor:
    """pixels [1, 3, F, H, W] in -1..1 of a clip -> IMAGE [F, H, W, 3]."""
    return pixels_to_image(pixels[0].movedim(1, 0))


def image_to_clip(image: Tensor) -> Tensor:
    """IMAGE [F, H, W, 3 or 4], the frames of a clip -> pixels [1, 3, F, H, W] in -1..1; transparency is left out."""
    return image[..., :3].float().cpu().mul(2).sub(1).permute(3, 0, 1, 2).unsqueeze(0).contiguous()


def grey_image() -> Tensor:
    """IMAGE [1, 64, 64, 3] that stands for "there is none": an output must hold something."""
    import torch

    return torch.full((1, EMPTY_SIDE, EMPTY_SIDE, 3), GREY)


def shown_in_ui(paths: Sequence[Path], output_dir: Path) -> list[dict[str, str]]:
    """What lets ComfyUI show picture files on a node; files outside the output folder cannot be shown."""
    return [
        {
            "filename": path.name,
            "subfolder": path.parent.resolve().relative_to(output_dir.resolve()).as_posix(),
            "type": "output",
        }
        for path in paths
        if path.resolve().is_relative_to(output_dir.resolve())
    ]
