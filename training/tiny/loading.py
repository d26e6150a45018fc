"""A twin with all its parts in memory at once: they are small."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ..loop.events import NoCallbacks
from ..models.components import TextEncoder, open_text_encoder, open_transformer, open_vae
from ..models.handle import ModelHandle


@dataclass(frozen=True, kw_only=True)
class Twin:
    """The parts of any twin, as the product loads them."""

    vae: Any
    text_encoder: TextEncoder
    transformer: Any


@contextlib.contextmanager
def open_twin(handle: ModelHandle) -> Iterator[Twin]:
    """All parts of the handle's model on the CPU, with its LoRAs.

    Raises:
        ModelError: the folder is incomplete or damaged.
        LoraFileError: one of the LoRAs cannot be read or does not fit.
    """
    device, callbacks = torch.device("cpu"), NoCallbacks()
    with (
        open_vae(handle, device, callbacks) as vae,
        open_text_encoder(handle, device, callbacks) as text_encoder,
        open_transformer(handle, device, callbacks) as transformer,
    ):
        yield Twin(vae=vae, text_encoder=text_encoder, transformer=transformer)
