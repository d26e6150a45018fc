"""Storing frozen weights in 8 or 4 bits, so that the 6 B transformer fits smaller cards.

All kinds are weight-only: a linear expands its weight when it computes. Quantised activations, which SimpleTuner's
fp8-torchao has, would cut the gradients of the layers before them without a word.
"""

from __future__ import annotations

import os
from fnmatch import fnmatch

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..errors import ConfigError
from ..settings.model import QUANTISED_PRECISIONS
from .precisions import INT4, ensure_available, search_path
from .streaming import return_freed_memory

KEPT_WHOLE = (
    *("proj_out", "x_embedder", "context_embedder", "norm_out*", "time_embed*"),
    *("x_embedder.*", "t_embedder.*", "y_embedder.*", "final_layer.*", "*adaLN_modulation.*"),
    *("lm_head", "model.visual.*"),
)
"""Full names (as fnmatch patterns) of the layers that stay in full precision: the ways in and out of LongCat-Image's
transformer, which are small and carry every token; the same of LongCat-Video's, with what it computes in float32; and
of the text encoder the unused head and the eyes."""


def quantise(module: nn.Module, precision: str, name: str = "") -> None:
    """Quantises the linears of `module` in place and freezes it; its dtype is fixed from then on.

    Adapters are added afterwards: quanto would quantise them too, and merging into its layers loses them silently.

    Args:
        module: a model, or a part of one: parts can be quantised one after another while a model is loaded.
        precision: one of `QUANTISED_PRECISIONS`.
        name: the full name of the part within its model, by which `KEPT_WHOLE` knows what to leave; "" for a model.

    Raises:
        ConfigError: the package is missing, or `precision` is no quantised one.
    """
    if precision not in QUANTISED_PRECISIONS:
        raise ConfigError(f"precision {precision!r} is no quantised one; known: {', '.join(QUANTISED_PRECISIONS)}.")
    ensure_available(precision)
    linears = linears_to_quantise(module, name)
    if not linears:
        return
    quantise_linear = _quantise_with_quanto if precision.endswith("quanto") else _quantise_with_torchao
    for linear in linears:
        quantise_linear(module, precision, linear)
        return_freed_memory()
    # quanto makes every weight trainable again.
    module.requires_grad_(False)


def _quantise_with_quanto(module: nn.Module, precision: str, linear: str) -> None:
    from optimum.quanto import freeze, qint4, qint8, quantize

    if precision == INT4:
        _load_extension(module)
    quantize(module, weights={"int8-quanto": qint8, INT4: qint4}[precision], include=linear)
    freeze(module.get_submodule(linear))


def _load_extension(module: nn.Module) -> None:
    """Compiles now what quanto would compile at the first forward pass, in the middle of the first step."""
    path = os.environ.get("PATH", "")
    try:
        # ninja comes with quanto, but a Python that is started by its full path does not have its scripts on the PATH.
        os.environ["PATH"] = search_path()
        torch.ops.quanto.unpack(torch.zeros(1, 1, dtype=torch.uint8, device=next(module.parameters()).device), 4)
    finally:
        os.environ["PATH"] = path


def _quantise_with_torchao(module: nn.Module, precision: str, linear: str) -> None:
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

    # Otherwise torchao changes the settings of torch.compile for the whole process.
    configs = {
        "fp8-torchao": Float8WeightOnlyConfig(set_inductor_config=False),
        "int8-torchao": Int8WeightOnlyConfig(set_inductor_config=False, version=2),
    }
    quantize_(module, configs[precision], filter_fn=lambda _, name: name == linear)


def linears_to_quantise(module: nn.Module, name: str) -> list[str]:
    """Names within `module` of the linears to quantise; not of those that are quantised already."""

    def full_name(inner: str) -> str:
        # `module` may be such a linear itself: its inner name is empty.
        return ".".join(part for part in (name, inner) if part)

    whole = [
        inner
        for inner, part in module.named_modules()
        if isinstance(part, nn.Linear) and not is_traceable_wrapper_subclass(part.weight)
    ]
    return [inner for inner in whole if not any(fnmatch(full_name(inner), pattern) for pattern in KEPT_WHOLE)]
