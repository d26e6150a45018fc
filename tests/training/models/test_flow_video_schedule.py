"""Noise levels of LongCat-Video against the released schedule's numbers and diffusers' scheduler."""

import pytest
import torch
from comfyui_longcat.training.errors import ConfigError
from comfyui_longcat.training.models.flow import distill_sigmas, video_sigmas

DISTILLED = (1000, 994.7, 988.8, 982.0, 974.4, 965.5, 955.2, 943.1, 923.1, 904.1, 880.3, 849.6, 808.3, 750.0)


def test_fifty_steps_are_shifted_once_as_the_released_ones():
    sigmas = video_sigmas(50)
    assert sigmas.shape == (51,) and sigmas.dtype == torch.float32
    timesteps = 1000 * sigmas
    print(timesteps[:4].tolist(), timesteps[-5:].tolist())
    torch.testing.assert_close(timesteps[:4], torch.tensor([1000, 998.27, 996.47, 994.60]), atol=5e-3, rtol=0)
    torch.testing.assert_close(timesteps[-5:], torch.tensor([443.02, 343.47, 207.77, 11.87, 0]), atol=5e-3, rtol=0)


def test_distilled_steps_equal_the_released_ones():
    timesteps = 1000 * distill_sigmas()
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


@pytest.mark.parametrize("make", [video_sigmas, distill_sigmas])
@pytest.mark.parametrize("steps", [1, 2, 7, 16, 50])
def test_levels_fall_from_one_to_zero(make, steps):
    sigmas = make(steps)
    assert sigmas[0] == 1 and sigmas[-1] == 0 and len(sigmas) == steps + 1
    assert (sigmas.diff() < 0).all()


@pytest.mark.parametrize("make", [video_sigmas, distill_sigmas])
@pytest.mark.parametrize("shift", [0.0, -1.0, float("nan")])
def test_a_shift_that_ends_all_noise_is_refused(make, shift):
    with pytest.raises(ConfigError, match="shift of the noise levels is .* must be above 0"):
        make(4, shift)


@pytest.mark.parametrize("steps", [0, 51])
def test_more_distilled_steps_than_there_are_levels_are_refused(steps):
    with pytest.raises(ConfigError, match=f"num_inference_steps is {steps}; .* between 1 and 50"):
        distill_sigmas(steps)
