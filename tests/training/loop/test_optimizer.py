"""The optimisers' settings, the course of the learning rate, and clipping."""

import math

import pytest
import torch
from comfyui_longcat.training.errors import ConfigError
from comfyui_longcat.training.loop.optimizer import clip_gradients, make_optimizer, make_scheduler
from comfyui_longcat.training.settings.run import TrainConfig, TrainingOptions


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


@pytest.mark.parametrize(
    ("options", "betas", "epsilon"),
    [
        (TrainingOptions(weight_decay=0.25), (0.9, 0.999), 1e-8),
        (TrainingOptions(weight_decay=0.25, adam_beta1=0.8, adam_beta2=0.99, adam_epsilon=1e-6), (0.8, 0.99), 1e-6),
    ],
)
def test_adamw_settings(options, betas, epsilon):
    optimizer = make_optimizer([torch.nn.Parameter(torch.zeros(2))], TrainConfig(learning_rate=3e-4, options=options))
    group = optimizer.param_groups[0]
    assert isinstance(optimizer, torch.optim.AdamW)
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (3e-4, betas, epsilon, 0.25)


def test_adafactor_moves_weights_of_zero_by_the_learning_rate():
    # torch's own Adafactor would move them by a thousandth of it.
    parameter = torch.nn.Parameter(torch.zeros(4, 3))
    options = TrainingOptions(optimizer="adafactor", weight_decay=0.25)
    optimizer = make_optimizer([parameter], TrainConfig(learning_rate=1e-3, options=options))
    parameter.grad = torch.full((4, 3), -2.0)
    optimizer.step()
    assert parameter.detach().numpy() == pytest.approx(1e-3, rel=1e-4)
    assert optimizer.param_groups[0]["weight_decay"] == 0.25


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


@pytest.mark.parametrize(
    ("options", "course"),
    [
        (TrainingOptions(lr_scheduler="linear"), lambda done: 1 - done),
        (TrainingOptions(lr_scheduler="polynomial", lr_power=2.0), lambda done: (1 - done) ** 2),
        (
            TrainingOptions(lr_scheduler="cosine_with_restarts", lr_num_cycles=2),
            lambda done: (1 + math.cos(math.pi * (2 * done % 1))) / 2,
        ),
    ],
)
def test_courses_of_the_other_schedules(options, course):
    found = rates(TrainConfig(learning_rate=1.0, max_train_steps=10, options=options))
    assert found == pytest.approx([course(done / 10) for done in range(10)], abs=1e-6)


@pytest.mark.parametrize("scheduler", ["constant", "constant_with_warmup"])
def test_both_constant_schedules_warm_up(scheduler):
    options = TrainingOptions(lr_scheduler=scheduler, lr_warmup_steps=2)
    assert rates(TrainConfig(learning_rate=1.0, max_train_steps=4, options=options)) == [0, 0.5, 1, 1]


def test_polynomial_must_start_above_its_end():
    with pytest.raises(ConfigError, match="learning_rate .* is 1e-07, but lr_scheduler polynomial ends at 1e-07"):
        TrainConfig(learning_rate=1e-7, options=TrainingOptions(lr_scheduler="polynomial"))


@pytest.mark.parametrize(("max_norm", "after"), [(1.0, 1.0), (0.0, 5.0), (10.0, 5.0)])
def test_clips_to_the_norm_and_reports_it_as_it_was(max_norm, after):
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, 4.0])
    assert clip_gradients([parameter], max_norm).item() == pytest.approx(5.0)
    assert parameter.grad.norm().item() == pytest.approx(after, abs=1e-4)
