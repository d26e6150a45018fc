"""What the trainings of all twins share: optimiser, schedule, average of the weights, report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

Log = Callable[[str], None]

WARM_UP_STEPS = 60
DECAY_SHARE = 0.4
"""The learning rate falls to nothing over so much of the steps, at their end."""

AVERAGE_DECAY = 0.995
"""A larger one would hide hundreds of steps of progress in runs this short."""

REPORT_STEPS = 100


def train(
    model: nn.Module,
    losses: Iterable[Tensor],
    steps: int,
    learning_rate: float,
    log: Log,
    report: Callable[[nn.Module, int], str] = lambda average, step: "",
) -> tuple[nn.Module, float]:
    """Minimises `losses`, one a step, computed on `model`.

    Args:
        losses: each is computed when it is asked for.
        learning_rate: its height between warm-up and decay.
        report: (averaged model, step) -> text that is logged every 1,000 steps.

    Returns:
        The exponential average of the model, in eval mode, and the CPU seconds of this process.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step, steps))
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE_DECAY))
    start, mean_loss = time.process_time(), None
    for step, loss in zip(range(1, steps + 1), losses, strict=False):
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        average.update_parameters(model)
        mean_loss = loss.detach() if mean_loss is None else mean_loss.lerp(loss.detach(), 0.02)
        if step % REPORT_STEPS == 0 or step == steps:
            seconds = time.process_time() - start
            extra = report(average.module, step) if step % (10 * REPORT_STEPS) == 0 else ""
            log(f"step {step:05d}/{steps:05d} | loss {mean_loss.item():.4f} | {seconds:.0f} s | {extra}")
    return average.module.eval(), time.process_time() - start


def rate_at(step: int, steps: int) -> float:
    """Share of the learning rate at `step`: linear warm-up, level, linear decay."""
    return min(1.0, (step + 1) / WARM_UP_STEPS, max(0.0, (steps - step) / (DECAY_SHARE * steps)))
