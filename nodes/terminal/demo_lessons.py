"""What `longcat demo` teaches: an edit from 12 pairs of pictures, and a movement from 12 clips."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...training.rehearsal.scale import FRAMES, SIDE
from ...training.settings.model import ModelConfig
from ..examples import CLIPS, EDIT_REFERENCES, EDIT_TARGETS, START_FRAMES
from ..graph.catalogue import longcat_image_edit_train, longcat_video_i2v_train
from ..graph.sampling import Sampling
from ..images import image_to_clip, one_picture
from .demo import Lesson, Scores, Taught

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

SHOWN_PAIRS, SHOWN_CLIPS = 6, 3
"""Of the contact sheets; a clip has three rows there."""

SHOWN_FRAMES = range(0, FRAMES, 2)

UNSEEN_PICTURES, UNSEEN_STARTS = "unseen-pictures", "unseen-start-frames"
"""Folders below the input folder."""

INNER = 5
"""Px from the picture's side to where the border certainly is no longer."""

DIRECTION = "up"


@dataclass(frozen=True, kw_only=True)
class BorderEdit:
    """The tiny edit model, which knows five edits, learns to add a blue border. Fulfils `Lesson`."""

    steps: int = 300
    """Of training."""
    unseen: int = 12
    """Pictures that are judged; none of their looks is among the pairs or known to the model."""

    name = "edit"
    model = ModelConfig(model_flavour="tiny-edit", base_model_precision="fp32")
    workflow = staticmethod(longcat_image_edit_train)

    def draw(self, input_dir: Path) -> None:
        from ...training.tiny.examples import draw_example_pairs

        draw_example_pairs(input_dir / EDIT_TARGETS, input_dir / EDIT_REFERENCES, size=SIDE)
        (input_dir / UNSEEN_PICTURES).mkdir(exist_ok=True)
        for name, reference, _, _ in self.pairs:
            reference.save(input_dir / UNSEEN_PICTURES / f"{name}.png")

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
                picture=f"{UNSEEN_PICTURES}/{name}.png",
                width=SIDE,
                height=SIDE,
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
        return image_grid(
            rows[:SHOWN_PAIRS], titles, [instruction for *_, instruction in self.pairs[:SHOWN_PAIRS]], cell=128
        )

    def verdict(self, taught: Taught) -> str:
        return (
            f"edit: on {self.unseen} unseen pictures {taught.before.psnr:.1f} dB to the target at strength 0,"
            f" {taught.after.psnr:.1f} dB at strength 1: a gain of {taught.gain:.1f} dB; the shape inside the border is"
            f" recognised in {taught.after.right:.0%}"
        )

    @functools.cached_property
    def pairs(self) -> list[tuple[str, Image, Image, str]]:
        from ...training.tiny.examples import draw_pairs

        return draw_pairs(self.unseen, SIDE, unseen=True)


@dataclass(frozen=True, kw_only=True)
class MovesUp:
    """The tiny video model, whose shapes never went up, learns that they do. Fulfils `Lesson`."""

    steps: int = 500
    """Of training."""
    unseen: int = 12
    """Start frames that are judged; none of their looks is among the clips or known to the model."""

    name = "video"
    model = ModelConfig(model_family="longcat_video", model_flavour="tiny-video", base_model_precision="fp32")
    workflow = staticmethod(longcat_video_i2v_train)

    def draw(self, input_dir: Path) -> None:
        from ...training.tiny.examples import draw_example_clips

        folders = (input_dir / CLIPS, input_dir / START_FRAMES)
        draw_example_clips(*folders, size=SIDE, frames=FRAMES, directions=(DIRECTION,))
        (input_dir / UNSEEN_STARTS).mkdir(exist_ok=True)
        for name, frames, _ in self._clips:
            frames[0].save(input_dir / UNSEEN_STARTS / f"{name}.png")

    def settings(self) -> Sequence[str]:
        return (
            "TrainLoRA.learning_rate=2e-3",
            "TrainLoRA.lora_rank=16",
            "TrainLoRA.train_batch_size=4",
            "LongCatTrainingOptions.lora_target=attention+ffn",
            "LongCatTrainingOptions.adam_beta2=0.99",
            "LongCatTrainingOptions.lr_scheduler=cosine",
            f"LongCatTrainingOptions.lr_warmup_steps={self.steps // 15}",
        )

    def samples(self) -> list[Sampling]:
        return [
            Sampling(
                prompt=caption,
                picture=f"{UNSEEN_STARTS}/{name}.png",
                width=SIDE,
                height=SIDE,
                num_frames=FRAMES,
                num_inference_steps=20,
                guidance_scale=2.0,
                filename_prefix=f"{self.name}/{name}",
            )
            for name, _, caption in self._clips
        ]

    def score(self, sampled: Sequence[Tensor]) -> Scores:
        import torch

        from ...training.tiny.classifier import psnr, read_directions

        clips = torch.cat([image_to_clip(image) for image in sampled])
        targets = torch.cat([_clip(frames) for _, frames, _ in self._clips])
        right = [direction == DIRECTION for direction in read_directions(clips)]
        # The first frame is given.
        quality = psnr(clips[:, :, 1:], targets[:, :, 1:]).mean().item()
        return Scores(psnr=quality, right=sum(right) / len(right))

    def sheet(self, before: Sequence[Tensor], after: Sequence[Tensor]) -> Image:
        from ...training.data.contact_sheet import image_grid

        rows, captions = [], []
        for (_, target, caption), without, with_lora in list(zip(self._clips, before, after, strict=True))[
            :SHOWN_CLIPS
        ]:
            for kind, frames in (
                ("strength 0", frames_of(without)),
                ("strength 1", frames_of(with_lora)),
                ("target", target),
            ):
                rows.append([frames[number] for number in SHOWN_FRAMES])
                captions.append(f"{kind}\n{caption}")
        titles = (*(f"frame {number}" for number in SHOWN_FRAMES), "prompt (unseen start frames)")
        return image_grid(rows, titles, captions, cell=96)

    def verdict(self, taught: Taught) -> str:
        return (
            f"video: of {self.unseen} unseen start frames {taught.before.right:.0%} move up at strength 0,"
            f" {taught.after.right:.0%} at strength 1; {taught.before.psnr:.1f} dB to the target become"
            f" {taught.after.psnr:.1f} dB: a gain of {taught.gain:.1f} dB"
        )

    @functools.cached_property
    def _clips(self) -> list[tuple[str, list[Image], str]]:
        from ...training.tiny.examples import draw_moves

        return list(draw_moves(self.unseen, SIDE, FRAMES, directions=(DIRECTION,), unseen=True))


LESSONS: tuple[Lesson, ...] = (BorderEdit(), MovesUp())


def _clip(frames: Sequence[Image]) -> Tensor:
    """Pictures -> pixels [1, 3, F, H, W] in -1..1."""
    import torch

    from ...training.data.media import to_pixels

    return torch.stack([to_pixels(frame, frame.size) for frame in frames], dim=2)


def frames_of(image: Tensor) -> list[Image]:
    """IMAGE [F, H, W, 3] -> pictures."""
    from ...training.data.media import from_pixels

    return [from_pixels(frame) for frame in image_to_clip(image).movedim(2, 0)]
