"""The parts of the image twins that learn nothing: text encoder, tokenizer, schedule."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from comfyui_longcat.training.weights.qwen_file import IMAGE_PROCESSOR

from ..image_checkpoint import SEED, build_scheduler, build_text_encoder, own_random_numbers, write_settings
from ..tokenizer import write_tokenizer
from .training import Log


def write_text_parts(folder: Path, log: Log) -> dict[str, Any]:
    """Writes text_encoder (bf16), tokenizer, text_processor and scheduler into `folder`.

    The encoder stays as it was drawn: a word's identity survives in what it makes of it, and that is all the
    transformers need.
    """
    with torch.no_grad(), own_random_numbers():
        text_encoder = build_text_encoder().to(torch.bfloat16)
    text_encoder.save_pretrained(folder / "text_encoder")
    _add_older_spelling(folder / "text_encoder" / "config.json")
    build_scheduler().save_pretrained(folder / "scheduler")
    for name in ("tokenizer", "text_processor"):
        write_tokenizer(folder / name)
    write_settings(folder / "text_processor" / "preprocessor_config.json", IMAGE_PROCESSOR)
    log("text encoder drawn")
    return {"seed": SEED}


def _add_older_spelling(path: Path) -> None:
    """transformers 5 saves the rotary settings in its own spelling alone, which transformers 4 does not read."""
    config = json.loads(path.read_text(encoding="utf-8"))
    older = dict(config["text_config"]["rope_parameters"])
    config["text_config"] |= {"rope_theta": older.pop("rope_theta"), "rope_scaling": older}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
