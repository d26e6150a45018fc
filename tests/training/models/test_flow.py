"""Noise levels, noise and target against diffusers, the released schedules and their own formulas."""

import math

import pytest
import torch
from comfyui_longcat.training.errors import ConfigError
from comfyui_longcat.training.models.flow import (
    add_noise,
    distilled_video_sigmas,
    draw_sigmas,
    image_sigmas,
    resolution_mu,
    shift_sigmas,
    training_shift,
    velocity_target,
    video_sigmas,
)
from comfyui_longcat.training.models.image.family import LongCatImageFamily
from comfyui_longcat.training.models.video.family import LongCatVideoFamily
from comfyui_longcat.training.settings.run import TrainingOptions

DISTILLED = (1000, 994.7, 988.8, 982.0, 974.4, 965.5, 955.2, 943.1, 923.1, 904.1, 880.3, 849.6, 808.3, 750.0)


def test_noise_path_ends_and_slope():
    clean, noise = torch.randn(2, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    sigmas = torch.tensor([0.0, 0.25, 1.0])
    noisy = add_noise(clean, noise, sigmas)
    assert torch.equal(noisy[0], clean[0])
    assert torch.equal(noisy[2], noise[2])
    torch.testing.assert_close(noisy[1], 0.75 * clean[1] + 0.25 * noise[1])
    slope = (add_noise(clean, noise, sigmas + 0.5) - noisy) / 0.5
    torch.testing.assert_close(velocity_target(clean, noise), slope, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("tokens", "mu"), [(1024, 0.630), (2304, 0.84667), (4032, 1.13917), (4096, 1.15), (256, 0.5)])
def test_mu_of_known_sizes(tokens, mu):
    assert resolution_mu(tokens) == pytest.approx(mu, abs=5e-6)


def test_mu_equals_diffusers_and_is_not_clamped():
    from diffusers.pipelines.longcat_image.pipeline_longcat_image_edit import calculate_shift

    for tokens in (16, 64, 256, 1024, 2304, 4032, 4096, 8192):
        assert resolution_mu(tokens) == pytest.approx(calculate_shift(tokens), abs=1e-12)
    assert resolution_mu(8192) > 1.8


@pytest.mark.parametrize("tokens", [64, 1024, 2304, 4032, 4096])
@pytest.mark.parametrize("steps", [1, 8, 50])
def test_sampling_levels_are_shifted_once_as_the_released_scheduler_does(tokens, steps):
    import numpy
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(
        shift=3.0,
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    )
    mu = resolution_mu(tokens)
    scheduler.set_timesteps(sigmas=numpy.linspace(1.0, 1.0 / steps, steps), mu=mu)
    ours = image_sigmas(steps, math.exp(mu))
    difference = (ours - scheduler.sigmas).abs().max().item()
    print(f"{tokens} tokens, {steps} steps: max difference {difference:.2e}")
    assert ours.dtype == torch.float32
    assert len(ours) == steps + 1
    assert difference < 2e-7
    assert ours[0] == 1
    assert ours[-1] == 0


def test_known_sigmas_of_eight_steps_at_one_megapixel():
    # Worked out apart from s' = e^mu s / (1 + (e^mu - 1) s) with e^mu = 3.1582.
    expected = [1.0, 0.95674, 0.90453, 0.84034, 0.75951, 0.65456, 0.51283, 0.31089, 0.0]
    torch.testing.assert_close(image_sigmas(8, math.exp(1.15)), torch.tensor(expected), atol=2e-5, rtol=0)


def test_shift_one_leaves_sigmas_alone_and_shift_keeps_the_ends():
    sigmas = torch.tensor([0.0, 0.3, 0.7, 1.0])
    torch.testing.assert_close(shift_sigmas(sigmas, 1.0), sigmas)
    shifted = shift_sigmas(sigmas, 3.0)
    assert shifted[0] == 0
    assert shifted[-1] == 1
    assert (shifted[1:3] > sigmas[1:3]).all()


def test_fifty_steps_are_shifted_once_as_the_released_ones():
    sigmas = video_sigmas(50)
    assert sigmas.shape == (51,) and sigmas.dtype == torch.float32
    timesteps = 1000 * sigmas
    print(timesteps[:4].tolist(), timesteps[-5:].tolist())
    torch.testing.assert_close(timesteps[:4], torch.tensor([1000, 998.27, 996.47, 994.60]), atol=5e-3, rtol=0)
    torch.testing.assert_close(timesteps[-5:], torch.tensor([443.02, 343.47, 207.77, 11.87, 0]), atol=5e-3, rtol=0)


def test_distilled_steps_equal_the_released_ones():
    timesteps = 1000 * distilled_video_sigmas()
    print([round(timestep, 1) for timestep in timesteps.tolist()])
    torch.testing.assert_close(timesteps, torch.tensor([*DISTILLED, 661.4, 510.6, 0]), atol=0.05, rtol=0)


@pytest.mark.parametrize("steps", [1, 4, 50])
def test_levels_are_those_of_diffusers_when_given_explicitly(steps):
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=12.0, use_dynamic_shifting=False)
    scheduler.set_timesteps(sigmas=torch.linspace(1, 0.001, steps).numpy())
    difference = (video_sigmas(steps) - scheduler.sigmas).abs().max().item()
    print(f"{steps} steps: max difference {difference:.1e}")
    assert difference < 2e-7
    scheduler.set_timesteps(steps)
    assert steps == 1 or (video_sigmas(steps) - scheduler.sigmas).abs().max() > 0.01  # shifted twice


@pytest.mark.parametrize("make", [video_sigmas, distilled_video_sigmas])
@pytest.mark.parametrize("steps", [1, 2, 7, 16, 50])
def test_levels_fall_from_one_to_zero(make, steps):
    sigmas = make(steps)
    assert sigmas[0] == 1 and sigmas[-1] == 0 and len(sigmas) == steps + 1
    assert (sigmas.diff() < 0).all()


@pytest.mark.parametrize("steps", [0, 51])
def test_more_distilled_steps_than_there_are_levels_are_refused(steps):
    with pytest.raises(ConfigError, match=f"num_inference_steps is {steps}; .* between 1 and 50"):
        distilled_video_sigmas(steps)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_training_levels_are_logit_normal_and_shifted_once(shift):
    sigmas = draw_sigmas(20_000, shift, torch.Generator().manual_seed(0))
    logits = torch.logit(sigmas.double())
    # A shift multiplies sigma / (1 - sigma), so it moves the logit by its logarithm.
    wanted = torch.tensor(shift).log().item()
    print(f"shift {shift}: mean logit {logits.mean():.3f} (wanted {wanted:.3f}), deviation {logits.std():.3f}")
    assert abs(logits.mean().item() - wanted) < 0.03
    assert abs(logits.std().item() - 1) < 0.03
    assert sigmas.dtype == torch.float32
    assert 0 < sigmas.min() and sigmas.max() < 1


def test_training_levels_of_video_are_uniform_and_shifted_once():
    family = LongCatVideoFamily()
    shift = family.flow_shift((1, 16, 24, 60, 104))
    sigmas = draw_sigmas(20_000, shift, torch.Generator().manual_seed(0), family.sigma_distribution)
    below_half = (sigmas < 0.5).float().mean().item()
    print(f"median {sigmas.median():.3f}, share below 0.5: {below_half:.3f}")
    # A shift of 12 moves the middle of an even schedule to 12 / 13 and leaves 1 / 13 of it below a half.
    assert sigmas.median().item() == pytest.approx(12 / 13, abs=0.005)
    assert below_half == pytest.approx(1 / 13, abs=0.006)


def test_own_generator_only():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = draw_sigmas(4, 2.0, torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, draw_sigmas(4, 2.0, torch.Generator().manual_seed(1)))
    assert not torch.equal(first, draw_sigmas(4, 2.0, torch.Generator().manual_seed(2)))


def test_shift_is_the_samplers_unless_the_user_gives_one():
    family = LongCatImageFamily()
    shape = (1, 16, 96, 96)  # 768 px
    shift = training_shift(TrainingOptions(), family, shape)
    assert shift == pytest.approx(2.33, abs=0.01)
    # Half way down, an even schedule is at 0.5: logit 0, moved by log(shift).
    middle = image_sigmas(2, shift)[1].item()
    assert middle == pytest.approx(shift / (1 + shift))
    assert training_shift(TrainingOptions(flow_schedule_shift=3.0), family, shape) == 3.0
