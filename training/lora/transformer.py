"""The transformer with the LoRAs of its spec on it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ..events import Callbacks
from ..weights.components import open_base_transformer
from ..weights.spec import ModelSpec
from .file import put_on, read_lora


@contextlib.contextmanager
def open_transformer(
    spec: ModelSpec, device: torch.device, callbacks: Callbacks, training: bool = False
) -> Iterator[Any]:
    """As `components.open_base_transformer`, with each LoRA of `spec` as a frozen adapter beside the others.

    Raises:
        LoraFileError: one of the LoRAs cannot be read, before anything is loaded, or does not fit.
    """
    adapters = [read_lora(use.path) for use in spec.loras]

    def adapt(transformer: nn.Module) -> None:
        for number, (use, weights) in enumerate(zip(spec.loras, adapters, strict=True)):
            put_on(transformer, weights, use.path, use.strength, f"lora_{number}")

    with open_base_transformer(spec, device, callbacks, adapt, training) as transformer:
        yield transformer
