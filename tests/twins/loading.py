"""A twin with all its parts in memory at once: they are small."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from comfyui_longcat.training.events import NoCallbacks
from comfyui_longcat.training.lora.transformer import open_transformer
from comfyui_longcat.training.models.contract import TextEncoder
from comfyui_longcat.training.weights.components import open_text_encoder, open_vae
from comfyui_longcat.training.weights.spec import ModelSpec


@dataclass(frozen=True, kw_only=True)
class Twin:
    """The parts of any twin, as the product loads them."""

    vae: Any
    text_encoder: TextEncoder
    transformer: Any


@contextlib.contextmanager
def open_twin(spec: ModelSpec) -> Iterator[Twin]:
    """All parts of the spec's model on the CPU, with its LoRAs.

    Raises:
        ModelError: the folder is incomplete or damaged.
        LoraFileError: one of the LoRAs cannot be read or does not fit.
    """
    device, callbacks = torch.device("cpu"), NoCallbacks()
    with (
        open_vae(spec, device, callbacks) as vae,
        open_text_encoder(spec, device, callbacks) as text_encoder,
        open_transformer(spec, device, callbacks) as transformer,
    ):
        yield Twin(vae=vae, text_encoder=text_encoder, transformer=transformer)
