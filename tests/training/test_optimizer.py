"""AdamW's settings, the course of the learning rate, and clipping."""

import math

import pytest
import torch
from comfyui_longcat.training.config import TrainConfig, TrainingOptions
from comfyui_longcat.training.loop.optimizer import clip_gradients, make_optimizer, make_scheduler


def rates(config):
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = make_optimizer([parameter], config)
    scheduler = make_scheduler(optimizer, config)
    used = []
    for _ in range(config.max_train_steps):
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return used


def test_settings():
    config = TrainConfig(learning_rate=3e-4, options=TrainingOptions(weight_decay=0.25))
    optimizer = make_optimizer([torch.nn.Parameter(torch.zeros(2))], config)
    group = optimizer.param_groups[0]
    assert isinstance(optimizer, torch.optim.AdamW)
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (3e-4, (0.9, 0.999), 1e-8, 0.25)


def test_constant_after_the_warm_up():
    config = TrainConfig(learning_rate=1.0, max_train_steps=6, options=TrainingOptions(lr_warmup_steps=4))
    assert rates(config) == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1])


def test_constant_from_the_first_step_without_warm_up():
    assert rates(TrainConfig(learning_rate=0.5, max_train_steps=3)) == [0.5] * 3


def test_cosine_falls_to_zero_after_the_last_step():
    options = TrainingOptions(lr_scheduler="cosine", lr_warmup_steps=2)
    found = rates(TrainConfig(learning_rate=1.0, max_train_steps=10, options=options))
    expected = [0, 0.5] + [(1 + math.cos(math.pi * done / 8)) / 2 for done in range(8)]
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(("max_norm", "after"), [(1.0, 1.0), (0.0, 5.0), (10.0, 5.0)])
def test_clips_to_the_norm_and_reports_it_as_it_was(max_norm, after):
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, 4.0])
    assert clip_gradients([parameter], max_norm).item() == pytest.approx(5.0)
    assert parameter.grad.norm().item() == pytest.approx(after, abs=1e-4)
