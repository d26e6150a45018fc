"""AdamW and the course of its learning rate."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from ..config import TrainConfig

BETAS = (0.9, 0.999)
EPSILON = 1e-8
"""Both as in the official trainers, which are also torch's defaults."""


def make_optimizer(parameters: Iterable[nn.Parameter], config: TrainConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        parameters, lr=config.learning_rate, betas=BETAS, eps=EPSILON, weight_decay=config.options.weight_decay
    )


def make_scheduler(optimizer: torch.optim.Optimizer, config: TrainConfig) -> LambdaLR:
    """Rises linearly from 0 over the warm-up, then stays, or falls to 0 at the last step along half a cosine."""
    from diffusers.optimization import get_scheduler

    names = {"constant": "constant_with_warmup", "cosine": "cosine"}
    return get_scheduler(
        names[config.options.lr_scheduler],
        optimizer,
        num_warmup_steps=config.options.lr_warmup_steps,
        num_training_steps=config.max_train_steps,
    )


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> torch.Tensor:
    """Scales all gradients down to a common norm of `max_norm` (0: leaves them); returns the norm before that."""
    return nn.utils.clip_grad_norm_(parameters, max_norm or float("inf"))
