"""The optimiser, the schedule of its learning rate, and the moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from ..errors import ConfigError
from ..settings.run import TrainConfig, TrainingOptions

if TYPE_CHECKING:
    from diffusers.training_utils import EMAModel


def make_optimizer(parameters: Iterable[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    options = config.options
    if options.optimizer == "adamw":
        return torch.optim.AdamW(
            parameters,
            lr=config.learning_rate,
            betas=(options.adam_beta1, options.adam_beta2),
            eps=options.adam_epsilon,
            weight_decay=options.weight_decay,
        )
    if options.optimizer == "adafactor":
        # Not torch's: it multiplies the learning rate by the size of the weights, and an adapter's B begins at 0.
        from transformers.optimization import Adafactor

        return Adafactor(
            parameters,
            lr=config.learning_rate,
            weight_decay=options.weight_decay,
            scale_parameter=False,
            relative_step=False,
        )
    raise ConfigError(f"optimizer is {options.optimizer!r}; it must be adamw or adafactor.")


def make_scheduler(optimizer: torch.optim.Optimizer, config: TrainConfig) -> LambdaLR:
    """Rises linearly from 0 over the warm-up, then stays or falls as `lr_scheduler` says (diffusers' schedules)."""
    from diffusers.optimization import get_scheduler

    options = config.options
    # diffusers' own "constant" would leave out the warm-up.
    name = "constant_with_warmup" if options.lr_scheduler == "constant" else options.lr_scheduler
    return get_scheduler(
        name,
        optimizer,
        num_warmup_steps=options.lr_warmup_steps,
        num_training_steps=config.max_train_steps,
        num_cycles=options.lr_num_cycles,
        power=options.lr_power,
    )


def make_ema(parameters: Iterable[nn.Parameter], options: TrainingOptions) -> EMAModel | None:
    """The moving average of the weights, on their device; None without `use_ema`.

    Its decay is (1 + step) / (10 + step) until that reaches `ema_decay`, so that the start is soon forgotten.
    """
    from diffusers.training_utils import EMAModel

    return EMAModel(parameters, decay=options.ema_decay, foreach=True) if options.use_ema else None


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> torch.Tensor:
    """Scales all gradients down to a common norm of `max_norm` (0: leaves them); returns the norm before that."""
    return nn.utils.clip_grad_norm_(parameters, max_norm or float("inf"))
