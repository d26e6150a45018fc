"""The drawn loss: what is plotted where, for runs of any length."""

import pytest
from comfyui_longcat.training.loop.loss_curve import LINE, POINTS, _axis, _smoothed, _step_ticks, draw_loss_curve


def rows_of(picture, colour):
    width, height = picture.size
    return [y for y in range(height) for x in range(width) if picture.getpixel((x, y)) == colour]


@pytest.mark.parametrize("losses", [[], [1.0], [1.0, 1.0], [0.0, 0.0], [3.0, 1e-4], [float(n) for n in range(500)]])
def test_draws_runs_of_any_length_in_the_size_asked_for(losses):
    picture = draw_loss_curve(losses, (400, 240))
    assert picture.size == (400, 240)
    assert bool(rows_of(picture, LINE)) == bool(losses)


def test_a_falling_loss_falls_in_the_picture():
    picture = draw_loss_curve([10.0 - n / 10 for n in range(100)])
    width, height = picture.size
    left = [y for y in range(height) if picture.getpixel((width // 4, y)) == LINE]
    right = [y for y in range(height) if picture.getpixel((3 * width // 4, y)) == LINE]
    assert max(left) < min(right)


def test_noise_is_pale_and_its_mean_dark():
    picture = draw_loss_curve([1.0 + (n % 2) for n in range(200)])
    noise, mean = rows_of(picture, POINTS), rows_of(picture, LINE)
    assert max(noise) - min(noise) > 5 * (max(mean) - min(mean))


@pytest.mark.parametrize(("low", "high"), [(0.4, 2.9), (1.0, 1.0), (0.0, 0.0), (1e-5, 2e-5), (3.0, 4000.0)])
def test_axis_holds_the_values_with_few_ticks(low, high):
    bottom, top, ticks = _axis(low, high)
    assert bottom <= low <= high <= top and bottom < top
    assert ticks[0] == bottom and ticks[-1] == top and 2 <= len(ticks) <= 7


def test_smoothing_keeps_constants_and_length_and_calms_the_ends():
    assert _smoothed([2.0] * 50) == pytest.approx([2.0] * 50)
    smooth = _smoothed([0.0] * 25 + [1.0] * 25)
    assert smooth[0] == 0.0 and smooth[-1] == 1.0 and len(smooth) == 50
    assert smooth == sorted(smooth)
    assert abs(_smoothed([1.0] * 99 + [9.0])[-1] - 1) < 1.5


def test_step_numbers_are_round_and_few():
    assert _step_ticks(800) == [1, 200, 400, 600, 800]
    assert _step_ticks(1) == [1]
    assert _step_ticks(7) == [1, 2, 4, 6]
