"""The loss of a run as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

PAPER, GRID, TEXT = (250, 250, 248), (226, 228, 232), (70, 74, 80)
POINTS, LINE = (178, 204, 236), (28, 92, 170)

SMOOTHING = 0.06
"""Each smoothed point averages this share of all steps on either side, at the ends on the side that is there."""


def draw_loss_curve(losses: Sequence[float], size: tuple[int, int] = (768, 432)) -> Image.Image:
    """Loss against step: every step pale, a running mean dark, in a picture of `size` (width, height) px."""
    picture = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(13)
    left, top, right, bottom = 64, 34, size[0] - 20, size[1] - 44
    draw.text((left, 10), "training loss, and its running mean", font=font, fill=TEXT)
    if not losses:
        draw.text(((left + right) / 2, (top + bottom) / 2), "no step yet", font=font, fill=TEXT, anchor="mm")
        return picture
    low, high, ticks = _axis(min(losses), max(losses))

    def place(step: float, loss: float) -> tuple[float, float]:
        across = (step - 1) / max(len(losses) - 1, 1)
        return left + across * (right - left), bottom - (loss - low) / (high - low) * (bottom - top)

    for tick in ticks:
        height = place(1, tick)[1]
        draw.line((left, height, right, height), fill=GRID)
        draw.text((left - 8, height), f"{tick:.4g}", font=font, fill=TEXT, anchor="rm")
    for step in _step_ticks(len(losses)):
        draw.text((place(step, low)[0], bottom + 8), str(step), font=font, fill=TEXT, anchor="mt")
    draw.text(((left + right) / 2, size[1] - 8), "step", font=font, fill=TEXT, anchor="mb")
    for values, colour, width in ((losses, POINTS, 1), (_smoothed(losses), LINE, 3)):
        points = [place(step, loss) for step, loss in enumerate(values, start=1)]
        draw.line(points if len(points) > 1 else points * 2, fill=colour, width=width, joint="curve")
        if len(points) == 1:
            draw.circle(points[0], 3, fill=LINE)
    return picture


def _axis(low: float, high: float) -> tuple[float, float, list[float]]:
    """Round bounds that hold both values, and round ticks between them."""
    span = high - low or abs(high) or 1.0
    rough = span / 4
    power = 10.0 ** math.floor(math.log10(rough))
    spacing = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first, last = math.floor(low / spacing), math.ceil(high / spacing)
    last = max(last, first + 1)
    return first * spacing, last * spacing, [number * spacing for number in range(first, last + 1)]


def _step_ticks(count: int) -> list[int]:
    ticks = {round(tick) for tick in _axis(0, count)[2]}
    return sorted(tick for tick in ticks | {1} if 1 <= tick <= count and (tick == 1 or tick > count / 20))


def _smoothed(losses: Sequence[float]) -> list[float]:
    reach = max(round(len(losses) * SMOOTHING), 1)
    sums = [0.0]
    for loss in losses:
        sums.append(sums[-1] + loss)
    means = []
    for index in range(len(losses)):
        first, last = max(index - reach, 0), min(index + reach + 1, len(losses))
        means.append((sums[last] - sums[first]) / (last - first))
    return means
