"""Putting LoRA adapters into a transformer: the trained one here, finished ones by `lora.file`.

Legend of shapes: r rank, in and out the sides of the linear that an adapter belongs to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from peft import LoraConfig

TRAINED_ADAPTER = "trained"
"""Name of the adapter that a run trains; any other adapter is part of the frozen model."""


def inject_lora(
    transformer: nn.Module, targets: Sequence[str], rank: int, alpha: float, seed: int
) -> dict[str, nn.Parameter]:
    """Adds the adapter that will be trained; everything else of `transformer` ends up frozen.

    A is gaussian with standard deviation 1 / rank and B zero (official trainers), so the model's output is unchanged
    until the first step. The weights are float32 whatever the base's precision: steps of 1e-5 would vanish in bf16.

    Args:
        transformer: any diffusers model, quantised or not, with or without other adapters.
        targets: suffixes of the linears' names, as `Family.lora_targets` gives them.
        alpha: the adapter's output is scaled by alpha / rank; 0 means alpha = rank.
        seed: of A; the global random state is left as it was.

    Returns:
        The trainable parameters by name, in the model's order.
    """
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig

    transformer.requires_grad_(False)
    config = LoraConfig(r=rank, lora_alpha=alpha or rank, init_lora_weights="gaussian", target_modules=list(targets))
    add_adapter(transformer, config, TRAINED_ADAPTER, seed)
    parameters = {name: p for name, p in transformer.named_parameters() if f".{TRAINED_ADAPTER}." in name}
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    cast_training_params(transformer, torch.float32)
    return parameters


def add_adapter(transformer: Any, config: LoraConfig, name: str, seed: int = 0) -> None:
    """Adds adapter `name`, frozen, and lets it act together with those that are already there.

    The random state is put back, because peft draws initial weights from torch's global generator.
    """
    with torch.random.fork_rng(devices=[]):
        # Only the CPU's: torch.manual_seed would reseed every GPU as well, and peft initialises on the CPU.
        torch.default_generator.manual_seed(seed)
        transformer.add_adapter(config, adapter_name=name)
    for layer in lora_layers(transformer).values():
        # diffusers leaves only the newest adapter active.
        layer.set_adapter(list(layer.lora_A), inference_mode=True)


def lora_layers(transformer: nn.Module, adapter: str | None = None) -> dict[str, Any]:
    """The linears that carry adapters (peft LoraLayer) by their diffusers name; only those with `adapter` if given."""
    from peft.tuners.lora import LoraLayer

    return {
        name: module
        for name, module in transformer.named_modules()
        if isinstance(module, LoraLayer) and (adapter is None or adapter in module.lora_A)
    }
