import math

import pytest
import torch
from comfyui_longcat.training.models.flow import resolution_mu, sampling_sigmas, shift_sigmas


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
    ours = sampling_sigmas(steps, math.exp(mu))
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
    torch.testing.assert_close(sampling_sigmas(8, math.exp(1.15)), torch.tensor(expected), atol=2e-5, rtol=0)


def test_shift_one_leaves_sigmas_alone_and_shift_keeps_the_ends():
    sigmas = torch.tensor([0.0, 0.3, 0.7, 1.0])
    torch.testing.assert_close(shift_sigmas(sigmas, 1.0), sigmas)
    shifted = shift_sigmas(sigmas, 3.0)
    assert shifted[0] == 0
    assert shifted[-1] == 1
    assert (shifted[1:3] > sigmas[1:3]).all()
