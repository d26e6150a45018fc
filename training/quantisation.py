"""Storing frozen weights in 8 bits, so that the 6 B transformer fits a 16 to 24 GB card."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from .errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

INT8_QUANTO = "int8-quanto"

KEPT_WHOLE = ("proj_out", "x_embedder", "context_embedder", "norm_out*", "time_embed*", "lm_head", "model.visual.*")
"""Full names (as fnmatch patterns) of the layers that stay in full precision: the transformer's ways in and out, which
are small and carry every token, and of the text encoder the unused head and the eyes."""


def ensure_available(precision: str) -> None:
    """Refuses a precision whose package is not installed; imports nothing.

    Raises:
        ConfigError: naming the package.
    """
    if precision == INT8_QUANTO and not _is_installed("optimum", "quanto"):
        raise ConfigError(
            f"precision {precision} needs the package optimum-quanto, which is not installed. Install it into the"
            " Python that runs this (pip install optimum-quanto), or choose bf16."
        )


def quantise(model: nn.Module, precision: str) -> None:
    """Quantises the linears of `model` in place and freezes it; its dtype is fixed from then on.

    Adapters are added afterwards: quanto would quantise them too, and merging into its layers loses them silently.

    Raises:
        ConfigError: the package is missing, or `precision` is no quantised one.
    """
    ensure_available(precision)
    if precision != INT8_QUANTO:
        raise ConfigError(f"precision {precision!r} is no quantised one; known: {INT8_QUANTO}.")
    from optimum.quanto import freeze, qint8, quantize

    quantize(model, weights=qint8, exclude=list(KEPT_WHOLE))
    freeze(model)
    # freeze makes every weight trainable again.
    model.requires_grad_(False)


def _is_installed(package: str, module: str) -> bool:
    # Asking for the module alone would raise where the package is missing.
    return importlib.util.find_spec(package) is not None and importlib.util.find_spec(f"{package}.{module}") is not None
