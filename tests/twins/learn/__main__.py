"""Builds the twins from nothing: `python -m comfyui_longcat.tests.twins.learn`; see twins/README.md for how long."""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from comfyui_longcat.training.files import sha256_of_file, write_json
from comfyui_longcat.training.settings.model import ModelConfig
from comfyui_longcat.training.weights.components import no_progress_bars
from comfyui_longcat.training.weights.spec import ModelSpec
from comfyui_longcat.training.weights.twins import MARK, PARTS, SHARED, TWINS, write_twin

from ..scores import score_edits, score_t2i
from .image import train_edit, train_t2i
from .image_vae import train_image_vae
from .text import write_text_parts
from .training import Log
from .video import train_video
from .video_vae import train_video_vae

STAGES: dict[str, Callable[[Path, Log], dict[str, Any]]] = {
    "text": lambda twins, log: write_text_parts(twins / SHARED, log),
    "image-vae": lambda twins, log: train_image_vae(twins / SHARED, log),
    "t2i": train_t2i,
    "edit": train_edit,
    "image-scores": lambda twins, log: image_scores(twins),
    "video-vae": lambda twins, log: train_video_vae(twins / "tiny-video", log),
    "video": lambda twins, log: train_video(twins / "tiny-video", log),
}
"""In the order in which each finds what it needs; `text` and `image-vae` serve both image twins."""

RECORD = "record.json"


def main() -> None:
    """Runs the stages asked for and writes their records beside the twins."""
    parser = argparse.ArgumentParser(prog="python -m comfyui_longcat.tests.twins.learn", description=__doc__)
    parser.add_argument("stages", nargs="*", metavar="stage", help=f"some of {', '.join(STAGES)}; all if none is named")
    parser.add_argument("--into", type=Path, default=TWINS, help="folder of the twins (default: the pack's own)")
    chosen = parser.parse_args()
    unknown = set(chosen.stages) - set(STAGES)
    if unknown:
        parser.error(f"no such stage: {', '.join(sorted(unknown))}; there are {', '.join(STAGES)}")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # Matrices this small gain nothing from a second thread; independent stages can run side by side instead.
    torch.set_num_threads(1)
    for name, stage in STAGES.items():
        if not chosen.stages or name in chosen.stages:
            _run(name, stage, chosen.into)
    _mark(chosen.into)


def _run(name: str, stage: Callable[[Path, Log], dict[str, Any]], twins: Path) -> None:
    logger = logging.getLogger(__name__)
    with no_progress_bars():
        record = stage(twins, lambda text: logger.info("%s | %s", name, text))
    logger.info("%s | %s", name, record)
    path = twins / RECORD
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    write_json(path, known | {name: record})


def _mark(twins: Path) -> None:
    """Notes in each twin which weights it has, so that written-out twins of other weights are known as outdated."""
    for name, parts in PARTS.items():
        weights = sorted(path for part in parts for path in (twins / part).rglob("*.safetensors"))
        hashes = {path.relative_to(twins).as_posix(): sha256_of_file(path) for path in weights}
        if (twins / name).is_dir():
            write_json(twins / name / MARK, hashes)


def image_scores(twins: Path) -> dict[str, Any]:
    """What both image twins can do, written out and loaded as users do."""
    with tempfile.TemporaryDirectory() as temporary:
        handles = {}
        for name in ("tiny", "tiny-edit"):
            folder = Path(temporary) / name
            write_twin(folder, twins)
            config = ModelConfig(model_flavour=name, base_model_precision="fp32")
            handles[name] = ModelSpec(config=config, models_dirs=(folder.parent,), folder=folder)
        edits = score_edits(handles["tiny-edit"])
        return asdict(score_t2i(handles["tiny"])) | {f"psnr_{kind}": round(psnr, 1) for kind, psnr in edits.items()}


if __name__ == "__main__":
    main()
