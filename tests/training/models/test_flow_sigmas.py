"""The noise levels of training: their distribution, and that training and sampling shift them alike."""

import pytest
import torch
from comfyui_longcat.training.models.flow import draw_sigmas, sampling_sigmas, training_shift
from comfyui_longcat.training.models.image.family import LongCatImageFamily
from comfyui_longcat.training.models.video.family import LongCatVideoFamily
from comfyui_longcat.training.settings.run import TrainingOptions


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
    middle = sampling_sigmas(2, shift)[1].item()
    assert middle == pytest.approx(shift / (1 + shift))
    assert training_shift(TrainingOptions(flow_schedule_shift=3.0), family, shape) == 3.0
