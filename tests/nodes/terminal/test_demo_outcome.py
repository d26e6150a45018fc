"""The demo teaches what it says: run as `longcat demo` runs it, in fewer steps, and measured on what was not trained.

The limits leave room below what was measured.
"""

import pytest
import torch
from comfyui_longcat.nodes.terminal.demo import teach
from comfyui_longcat.nodes.terminal.demo_lessons import BorderEdit, MovesUp
from comfyui_longcat.nodes.terminal.host import TerminalHost
from comfyui_longcat.training.tiny.world import COLOURS, rgb


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def blue_at_the_edge(images) -> float:
    """Share of the outermost two px that are nearly blue."""
    blue = (rgb(COLOURS["blue"])[0] + 1) / 2
    near = (torch.cat(list(images)) - blue).abs().amax(dim=-1) < 0.2
    edge = torch.ones(near.shape[1:], dtype=torch.bool)
    edge[2:-2, 2:-2] = False
    return near[:, edge].float().mean().item()


def test_a_lora_learns_the_border_and_leaves_the_shapes(tmp_path):
    lesson = BorderEdit(steps=220, unseen=8)
    taught = teach(lesson, TerminalHost(tmp_path, device="cpu"))
    print(lesson.verdict(taught))
    assert taught.gain >= 8
    assert taught.after.right >= 0.6
    before, after = taught.samples
    assert blue_at_the_edge(after) > 0.9 > 0.3 > blue_at_the_edge(before)


def test_a_lora_learns_the_way_up(tmp_path):
    lesson = MovesUp(steps=250, unseen=8)
    taught = teach(lesson, TerminalHost(tmp_path, device="cpu"))
    print(lesson.verdict(taught))
    assert taught.before.right == 0
    assert taught.after.right >= 0.85
    assert taught.gain >= 5
