"""Clip sampling: with a model that knows the answer, with guidance for each sample, and with given first frames."""

from types import SimpleNamespace

import pytest
import torch
from comfyui_longcat.training.errors import ConfigError, ModelError
from comfyui_longcat.training.models.flow import distilled_video_sigmas, velocity_target, video_sigmas
from comfyui_longcat.training.models.video.family import LongCatVideoFamily
from comfyui_longcat.training.sampling.clips import joined, last_frames
from comfyui_longcat.training.sampling.euler import ZeroStarGuidance, initial_noise, sample_video, with_shared_cache

FAMILY = LongCatVideoFamily()
SHAPE = (2, 16, 4, 4, 6)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs_for(shape=SHAPE, start=None, seed=1):
    return FAMILY.prepare_inputs(shape, randn(shape[0], 5, 24, seed=seed), [] if start is None else [start])


class Oracle:
    """Knows the clean latents; its raw output is clean - noise, as the released transformer's."""

    def __init__(self, clean: torch.Tensor, noise: torch.Tensor) -> None:
        self.raw = clean - noise
        self.calls: list[SimpleNamespace] = []

    def __call__(self, **given):
        call = SimpleNamespace(**given)
        self.calls.append(call)
        # Nonsense where the output means nothing: none of it may reach the clip.
        raw = self.raw[:, :, -call.hidden_states.shape[2] :].clone()
        raw[:, :, : call.num_cond_latents] = 1e6
        return raw

    def cache_cond_latents(self, latents):
        return ["cache of", latents]


@pytest.mark.parametrize("sigmas", [video_sigmas(1), video_sigmas(50), distilled_video_sigmas()], ids=["1", "50", "16"])
def test_an_oracle_is_followed_to_the_clean_latents(sigmas):
    clean, noise = randn(*SHAPE, seed=2), initial_noise(SHAPE, seed=3)
    result = sample_video(FAMILY, Oracle(clean, noise), noise, inputs_for(), sigmas)
    # The latents go up to 5, where float32 itself has steps of 4.8e-7: hence relative.
    difference = ((result - clean).abs().max() / clean.abs().max()).item()
    print(f"{len(sigmas) - 1} steps: ends {difference:.1e} away")
    assert result.dtype == torch.float32
    assert difference < 1e-6


def test_training_target_and_sampling_have_one_sign():
    clean, noise = randn(*SHAPE, seed=2), initial_noise(SHAPE, seed=3)
    predicted = FAMILY.predict(Oracle(clean, noise), noise, torch.ones(2), inputs_for())
    assert torch.equal(predicted, velocity_target(clean, noise))


def test_an_oracle_of_the_other_sign_is_not_followed():
    clean, noise = randn(*SHAPE, seed=2), initial_noise(SHAPE, seed=3)
    result = sample_video(FAMILY, Oracle(noise, clean), noise, inputs_for(), video_sigmas(50))
    assert (result - clean).abs().max() > 5


@pytest.mark.parametrize("given", [1, 2])
def test_given_frames_stay_bit_for_bit_and_are_shown_clean_at_timestep_zero(given):
    clean, noise = randn(*SHAPE, seed=2), initial_noise(SHAPE, seed=3)
    clean[0, 0, 0, 0, 0] = -0.0
    start = clean[:, :, :given].clone()
    oracle = Oracle(clean, noise)
    inputs = inputs_for(start=start)
    guidance = ZeroStarGuidance(inputs=inputs_for(start=start, seed=9), scale=4.0)
    result = sample_video(FAMILY, oracle, noise, inputs, video_sigmas(5), guidance)
    assert torch.equal(result[:, :, :given].contiguous().view(torch.int32), start.view(torch.int32))
    assert len(oracle.calls) == 10
    for call in oracle.calls:
        assert torch.equal(call.hidden_states[:, :, :given], start)
        assert call.timestep.shape == (2, 4)
        assert (call.timestep[:, :given] == 0).all() and (call.timestep[:, given:] > 0).all()
        assert call.num_cond_latents == given


def test_what_the_model_says_about_given_frames_does_not_matter_without_guidance():
    clean, noise = randn(*SHAPE, seed=2), initial_noise(SHAPE, seed=3)
    result = sample_video(FAMILY, Oracle(clean, noise), noise, inputs_for(start=clean[:, :, :1]), video_sigmas(8))
    assert (result - clean).abs().max() < 1e-5


def test_a_start_that_changes_meanwhile_is_an_error():
    clean, noise = randn(*SHAPE, seed=2), initial_noise(SHAPE, seed=3)
    inputs = inputs_for(start=clean[:, :, :1].clone())

    def spoil(done, denoised):
        inputs.cond_latents[0, 0, 0, 0, 0] += 1e-7

    with pytest.raises(ModelError, match="1 of 768 numbers of the clip's start were changed"):
        sample_video(FAMILY, Oracle(clean, noise), noise, inputs, video_sigmas(2), on_step=spoil)


def test_the_cfg_zero_scale_is_each_samples_own():
    velocity, negative = randn(*SHAPE, seed=4), randn(*SHAPE, seed=5)
    negative[1] *= 7
    guidance = ZeroStarGuidance(inputs=inputs_for(), scale=4.0)
    guided = guidance.apply(velocity, negative)
    for sample in range(2):
        positive, other = velocity[sample].double(), negative[sample].double()
        fitted = (positive * other).sum() / (other.square().sum() + 1e-8) * other
        wanted = fitted + 4 * (positive - fitted)
        assert (guided[sample].double() - wanted).abs().max() < 1e-5
        alone = guidance.apply(velocity[sample : sample + 1], negative[sample : sample + 1])
        torch.testing.assert_close(guided[sample : sample + 1], alone, atol=1e-6, rtol=0)
    # With a negative of any length in the same direction, guidance changes nothing.
    torch.testing.assert_close(guidance.apply(velocity, 3 * velocity), velocity, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("scale", "calls"), [(None, 3), (1.0, 3), (4.0, 6)])
def test_guidance_costs_a_second_call_only_when_it_acts(scale, calls):
    noise = initial_noise(SHAPE, seed=3)
    oracle = Oracle(noise * 0, noise)
    guidance = None if scale is None else ZeroStarGuidance(inputs=inputs_for(seed=9), scale=scale)
    sample_video(FAMILY, oracle, noise, inputs_for(), video_sigmas(3), guidance)
    assert len(oracle.calls) == calls


def test_each_step_shows_the_middle_frame_as_it_will_be():
    clean, noise = randn(*SHAPE, seed=2), initial_noise(SHAPE, seed=3)
    seen = []
    start = clean[:, :, :1]
    sample_video(
        FAMILY, Oracle(clean, noise), noise, inputs_for(start=start), video_sigmas(4), on_step=lambda *a: seen.append(a)
    )
    assert [done for done, _ in seen] == [1, 2, 3, 4]
    for _, frame in seen:
        torch.testing.assert_close(frame, clean[:, :, 2], atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def transformer():
    from comfyui_longcat.training.models.video.transformer import LongCatVideoTransformer3DModel

    sizes = {"hidden_size": 64, "depth": 2, "num_heads": 2, "caption_channels": 24}
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        return LongCatVideoTransformer3DModel(**sizes, adaln_tembed_dim=32, frequency_embedding_size=64).eval()


def test_a_continuation_with_cache_equals_the_one_without(transformer):
    noise, start = initial_noise(SHAPE, seed=3), randn(2, 16, 2, 4, 6, seed=6)
    plain = inputs_for(start=start), ZeroStarGuidance(inputs=inputs_for(start=start, seed=9), scale=1.0)
    cached = with_shared_cache(transformer, *plain)
    assert cached[1].inputs.cond_cache is cached[0].cond_cache is not None
    results = [sample_video(FAMILY, transformer, noise, *_in_order(each)) for each in (plain, cached)]
    difference = (results[0] - results[1]).abs().max().item()
    print(f"with and without cache: {difference:.1e}")
    assert (results[0] - noise)[:, :, 2:].abs().max() > 0.1
    assert difference < 1e-5
    assert torch.equal(results[1][:, :, :2], start)


def test_a_cached_start_is_not_shown_again_and_guidance_shares_it():
    clean, noise = randn(*SHAPE, seed=2), initial_noise(SHAPE, seed=3)
    oracle = Oracle(clean, noise)
    start = clean[:, :, :1]
    guidance = ZeroStarGuidance(inputs=inputs_for(start=start, seed=9), scale=4.0)
    inputs, guidance = with_shared_cache(oracle, inputs_for(start=start), guidance)
    result = sample_video(FAMILY, oracle, noise, inputs, video_sigmas(3), guidance)
    assert (result - clean).abs().max() < 1e-5
    assert {call.hidden_states.shape[2] for call in oracle.calls} == {3}
    assert {call.num_cond_latents for call in oracle.calls} == {0}
    assert all(call.cond_cache is inputs.cond_cache for call in oracle.calls)


def test_two_prompts_alone_and_together_give_the_same_clips(transformer):
    noise, sigmas = initial_noise(SHAPE, seed=3), video_sigmas(4)
    prompts, negatives = randn(2, 5, 24, seed=7), randn(2, 3, 24, seed=8)

    def sample(place: slice):
        shape = noise[place].shape
        guidance = ZeroStarGuidance(inputs=FAMILY.prepare_inputs(shape, negatives[place], []), scale=4.0)
        inputs = FAMILY.prepare_inputs(shape, prompts[place], [])
        return sample_video(FAMILY, transformer, noise[place], inputs, sigmas, guidance)

    together = sample(slice(None))
    for number in range(2):
        alone = sample(slice(number, number + 1))
        difference = (together[number : number + 1] - alone).abs().max().item()
        print(f"clip {number}: {difference:.1e}")
        assert difference < 1e-4


def test_sampling_keeps_no_graph_and_leaves_the_noise_alone(transformer):
    noise = initial_noise(SHAPE, seed=3)
    before = noise.clone()
    with torch.enable_grad():
        result = sample_video(FAMILY, transformer, noise, inputs_for(start=noise[:, :, :1] * 2), video_sigmas(2))
    assert not result.requires_grad
    assert torch.equal(noise, before)


def test_a_clip_is_continued_by_its_last_frames_shown_once():
    pixels = torch.arange(17.0).view(1, 1, 17, 1, 1).expand(1, 3, 17, 2, 2)
    start = last_frames(pixels)
    assert start[0, 0, :, 0, 0].tolist() == list(range(4, 17))
    continuation = torch.cat([start, torch.full((1, 3, 4, 2, 2), 99.0)], dim=2)
    whole = joined(pixels, continuation)
    assert whole[0, 0, :, 0, 0].tolist() == [*range(17), 99, 99, 99, 99]
    with pytest.raises(ConfigError, match="The clip has 9 frames; a continuation begins with the last 13"):
        last_frames(pixels[:, :, :9])


def _in_order(pair):
    inputs, guidance = pair
    return inputs, video_sigmas(4), guidance
