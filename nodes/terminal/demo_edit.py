"""The demo's first lesson: the tiny edit model, which knows five edits, learns to add a blue border from 12 pairs."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...training.settings.model import ModelConfig
from ..data import EXAMPLE_FOLDER, EXAMPLE_SIDES
from ..graph.catalogue import longcat_image_edit_train
from ..graph.sampling import Sampling
from ..graph.tiny import TINY_SIDE
from ..images import image_to_clip, one_picture
from .demo_lesson import Scores, Taught

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

SHOWN = 6
"""Rows of the contact sheet."""

UNSEEN_FOLDER = "unseen-pictures"

INNER = 5
"""Px from the picture's side to where the border certainly is no longer."""


@dataclass(frozen=True, kw_only=True)
class BorderEdit:
    """Fulfils `Lesson`."""

    steps: int = 300
    """Of training."""
    unseen: int = 12
    """Pictures that are judged; none of their looks is among the pairs or known to the model."""

    name = "edit"
    model = ModelConfig(model_flavour="tiny-edit", base_model_precision="fp32")
    workflow = staticmethod(longcat_image_edit_train)

    def draw(self, input_dir: Path) -> None:
        from ...training.tiny.examples import draw_example_pairs

        draw_example_pairs(*(input_dir / EXAMPLE_FOLDER / side for side in EXAMPLE_SIDES), size=TINY_SIDE)
        (input_dir / UNSEEN_FOLDER).mkdir(exist_ok=True)
        for name, reference, _, _ in self.pairs:
            reference.save(input_dir / UNSEEN_FOLDER / f"{name}.png")

    def settings(self) -> Sequence[str]:
        return (
            # Far above what a released model wants: small as it is, the twin has to change much in few steps.
            "TrainLoRA.learning_rate=6e-3",
            "TrainLoRA.lora_rank=32",
            "TrainLoRA.train_batch_size=2",
            "LongCatTrainingOptions.lora_target=official",
            "LongCatTrainingOptions.adam_beta2=0.99",
            "LongCatTrainingOptions.flow_schedule_shift=3",
            "LongCatTrainingOptions.lr_scheduler=cosine",
            f"LongCatTrainingOptions.lr_warmup_steps={self.steps // 15}",
        )

    def samples(self) -> list[Sampling]:
        return [
            Sampling(
                prompt=instruction,
                picture=f"{UNSEEN_FOLDER}/{name}.png",
                width=TINY_SIDE,
                height=TINY_SIDE,
                num_inference_steps=20,
                guidance_scale=1.0,
                filename_prefix=f"{self.name}/{name}",
            )
            for name, _, _, instruction in self.pairs
        ]

    def score(self, sampled: Sequence[Tensor]) -> Scores:
        import torch

        from ...training.data.media import to_pixels
        from ...training.tiny.classifier import psnr, read_pictures

        pixels = torch.cat([image_to_clip(image)[:, :, 0] for image in sampled])
        targets = torch.cat([to_pixels(target, target.size) for _, _, target, _ in self.pairs])
        readings, wanted = read_pictures(pixels, margin=INNER), read_pictures(targets, margin=INNER)
        right = [reading.shape == want.shape for reading, want in zip(readings, wanted, strict=True)]
        return Scores(psnr=psnr(pixels, targets).mean().item(), right=sum(right) / len(right))

    def sheet(self, before: Sequence[Tensor], after: Sequence[Tensor]) -> Image:
        from ...training.data.contact_sheet import image_grid

        rows = [
            (reference, one_picture(without, self.name), one_picture(with_lora, self.name), target)
            for (_, reference, target, _), without, with_lora in zip(self.pairs, before, after, strict=True)
        ]
        titles = ("reference", "strength 0", "strength 1", "target", "instruction (unseen pictures)")
        return image_grid(rows[:SHOWN], titles, [instruction for *_, instruction in self.pairs[:SHOWN]], cell=128)

    def verdict(self, taught: Taught) -> str:
        return (
            f"edit: on {self.unseen} unseen pictures {taught.before.psnr:.1f} dB to the target at strength 0,"
            f" {taught.after.psnr:.1f} dB at strength 1: a gain of {taught.gain:.1f} dB; the shape inside the border is"
            f" recognised in {taught.after.right:.0%}"
        )

    @functools.cached_property
    def pairs(self) -> list[tuple[str, Image, Image, str]]:
        from ...training.tiny.examples import draw_pairs

        return draw_pairs(self.unseen, TINY_SIDE, unseen=True)
