"""Rotary positions of video tokens: against the definition, pair by pair, and by what they are for."""

import math

import pytest
import torch
from comfyui_longcat.training.models.video.rope import axes_dims, rotate, rotation_of_grid

CPU = torch.device("cpu")


@pytest.mark.parametrize(("head_dim", "dims"), [(128, (44, 42, 42)), (48, (16, 16, 16)), (32, (12, 10, 10))])
def test_channels_are_shared_among_the_axes(head_dim, dims):
    assert axes_dims(head_dim) == dims
    assert sum(dims) == head_dim


def test_every_pair_turns_by_its_position_times_its_frequency():
    frames, height, width, head_dim = 3, 2, 5, 32
    rotation = rotation_of_grid(frames, height, width, head_dim, CPU)
    x = torch.randn(1, 1, frames * height * width, head_dim, generator=torch.Generator().manual_seed(0))
    found = rotate(x, rotation)
    worst = 0.0
    for frame, row, column in ((0, 0, 0), (0, 1, 0), (1, 0, 4), (2, 1, 3)):
        token = (frame * height + row) * width + column
        pair = 0
        for position, dim in zip((frame, row, column), axes_dims(head_dim), strict=True):
            for j in range(dim // 2):
                angle = position * 10000 ** (-2 * j / dim)
                a, b = x[0, 0, token, 2 * pair : 2 * pair + 2].tolist()
                wanted = (a * math.cos(angle) - b * math.sin(angle), b * math.cos(angle) + a * math.sin(angle))
                for here, there in zip(found[0, 0, token, 2 * pair : 2 * pair + 2].tolist(), wanted, strict=True):
                    worst = max(worst, abs(here - there))
                pair += 1
    print(f"rotation differs from its definition by {worst:.1e}")
    assert worst < 1e-5


def test_only_distances_count():
    rotation = rotation_of_grid(4, 4, 4, 32, CPU)
    generator = torch.Generator().manual_seed(1)
    q, k = (torch.randn(32, generator=generator).expand(1, 1, 64, 32) for _ in range(2))
    products = (rotate(q, rotation)[0, 0] @ rotate(k, rotation)[0, 0].T).view(4, 4, 4, 4, 4, 4)
    near = products[0, 0, 0, 1, 2, 1]
    assert torch.allclose(products[2, 1, 2, 3, 3, 3], near, atol=1e-4)
    assert not torch.allclose(products[0, 0, 0, 2, 1, 1], near, atol=1e-2)


def test_a_longer_clip_starts_with_the_same_positions():
    short, long = (rotation_of_grid(frames, 2, 3, 32, CPU) for frames in (2, 5))
    assert torch.equal(long.cos[:12], short.cos)
    assert torch.equal(long.last(6).sin, long.sin[24:])


def test_bfloat16_is_rotated_in_float32():
    rotation = rotation_of_grid(2, 2, 2, 32, CPU)
    x = torch.randn(1, 2, 8, 32, generator=torch.Generator().manual_seed(2)).bfloat16()
    found = rotate(x, rotation)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, rotate(x.float(), rotation).bfloat16())
