"""The pure step with a transformer that knows the answer: sign of the target, and which frames are compared."""

import pytest
import torch
from comfyui_longcat.training.loop.batches import Batch
from comfyui_longcat.training.loop.step import Draws, forward_step
from comfyui_longcat.training.models.image.latents import pack_latents
from comfyui_longcat.training.models.registry import family_of

IMAGE, VIDEO = family_of("longcat_image"), family_of("longcat_video")
PICTURES, CLIPS = (2, 16, 4, 6), (2, 16, 3, 4, 6)


def randn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Oracle(torch.nn.Module):
    """Answers with `output`, whatever it is asked, and keeps the question."""

    device = torch.device("cpu")

    def __init__(self, output: torch.Tensor) -> None:
        super().__init__()
        self.x_embedder = torch.nn.Linear(1, 1)
        self.output = output
        self.asked: dict = {}

    def forward(self, **asked):
        self.asked = asked
        return self.output if "return_dict" not in asked else (self.output,)


def make_batch(latents: torch.Tensor, *starts: torch.Tensor) -> Batch:
    embeds = randn(len(latents), 5, 8, seed=2)
    names = tuple(f"sample {number}" for number in range(len(latents)))
    return Batch(
        latents=latents,
        cond_latents=starts,
        prompt_embeds=embeds,
        empty_prompt_embeds=embeds,
        bucket=(48, 32),
        names=names,
    )


def make_draws(noise: torch.Tensor) -> Draws:
    return Draws(noise=noise, sigmas=torch.tensor([0.3, 0.8]), dropped=torch.tensor([False, False]))


def where_the_scheduler_leads(noise: torch.Tensor, velocity: torch.Tensor) -> torch.Tensor:
    """diffusers' own scheduler, given this velocity at every step from pure noise on."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler, latents = FlowMatchEulerDiscreteScheduler(shift=3.0), noise
    scheduler.set_timesteps(4)
    for timestep in scheduler.timesteps:
        latents = scheduler.step(velocity, timestep, latents).prev_sample
    return latents


def test_training_target_is_noise_minus_latents():
    latents, noise = randn(*PICTURES, seed=0), randn(*PICTURES, seed=1)
    result = forward_step(IMAGE, Oracle(pack_latents(noise - latents)), make_batch(latents), make_draws(noise))
    assert result.loss == 0
    torch.testing.assert_close(where_the_scheduler_leads(noise, result.target), latents, atol=1e-5, rtol=0)


def test_training_target_of_video_is_latents_minus_noise_of_the_raw_output():
    latents, noise = randn(*CLIPS, seed=0), randn(*CLIPS, seed=1)
    result = forward_step(VIDEO, Oracle(latents - noise), make_batch(latents), make_draws(noise))
    assert result.loss == 0
    # The released pipeline turns the raw output round for the scheduler.
    torch.testing.assert_close(where_the_scheduler_leads(noise, noise - latents), latents, atol=1e-5, rtol=0)


@pytest.mark.parametrize("given", [1, 2])
def test_the_first_video_frame_is_not_in_the_loss(given):
    latents, noise = randn(*CLIPS, seed=0), randn(*CLIPS, seed=1)
    start = randn(2, 16, given, 4, 6, seed=3)
    raw = latents - noise
    raw[:, :, :given] = 1e6
    oracle = Oracle(raw)
    assert forward_step(VIDEO, oracle, make_batch(latents, start), make_draws(noise)).loss == 0
    assert torch.equal(oracle.asked["hidden_states"][:, :, :given], start)
    assert (oracle.asked["timestep"][:, :given] == 0).all()
    raw[:, :, given] += 1
    loss = forward_step(VIDEO, Oracle(raw), make_batch(latents, start), make_draws(noise)).loss
    # One of the compared frames is wrong by 1 everywhere.
    torch.testing.assert_close(loss, torch.tensor(1 / (3 - given)), atol=1e-5, rtol=0)
