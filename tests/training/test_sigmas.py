"""The noise levels of training: their distribution, and that training and sampling shift them alike."""

import pytest
import torch
from comfyui_longcat.training.config import TrainingOptions
from comfyui_longcat.training.loop.sigmas import draw_sigmas, training_shift
from comfyui_longcat.training.models.longcat_image import LongCatImageFamily
from comfyui_longcat.training.sampling.schedule import sampling_sigmas


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_logit_normal_around_the_shifted_middle(shift):
    sigmas = draw_sigmas(20_000, shift, torch.Generator().manual_seed(0))
    logits = torch.logit(sigmas.double())
    # A shift multiplies sigma / (1 - sigma), so it moves the logit by its logarithm.
    wanted = torch.tensor(shift).log().item()
    print(f"shift {shift}: mean logit {logits.mean():.3f} (wanted {wanted:.3f}), deviation {logits.std():.3f}")
    assert abs(logits.mean().item() - wanted) < 0.03
    assert abs(logits.std().item() - 1) < 0.03
    assert sigmas.dtype == torch.float32
    assert 0 < sigmas.min() and sigmas.max() < 1


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
