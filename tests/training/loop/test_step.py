"""The pure step: what is predicted, what it is compared with, and what dropping a caption means."""

from dataclasses import replace

import pytest
import torch
from comfyui_longcat.training.events import NoCallbacks
from comfyui_longcat.training.loop.batches import load_batch
from comfyui_longcat.training.loop.step import Draws, draw, forward_step
from comfyui_longcat.training.lora.transformer import open_transformer
from comfyui_longcat.training.models.image.family import LongCatImageFamily
from comfyui_longcat.training.settings.run import TrainingOptions

FAMILY = LongCatImageFamily()


@pytest.fixture(scope="module")
def transformer(trainable):
    with open_transformer(trainable.spec, torch.device("cpu"), NoCallbacks()) as model:
        yield model


@pytest.fixture(scope="module")
def batch(trainable):
    return load_batch(trainable.cache.records[:3])


def make_draws(batch, dropped=(False, False, False), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Draws(
        noise=torch.randn(batch.latents.shape, generator=generator),
        sigmas=torch.tensor([0.1, 0.5, 0.9]),
        dropped=torch.tensor(dropped),
    )


def run(transformer, batch, draws):
    with torch.no_grad():
        return forward_step(FAMILY, transformer, batch, draws)


def test_compares_the_prediction_with_noise_minus_latents_in_float32(transformer, batch):
    draws = make_draws(batch)
    result = run(transformer, batch, draws)
    assert torch.equal(result.target, draws.noise - batch.latents)
    assert result.prediction.shape == batch.latents.shape
    assert result.loss.dtype == result.prediction.dtype == torch.float32
    torch.testing.assert_close(result.loss, (result.prediction - result.target).square().mean())


def test_predicts_at_the_noisy_latents(transformer, batch):
    draws = make_draws(batch)
    sigmas = draws.sigmas.view(-1, 1, 1, 1)
    noisy = (1 - sigmas) * batch.latents + sigmas * draws.noise
    with torch.no_grad():
        inputs = FAMILY.prepare_inputs(batch.latents.shape, batch.prompt_embeds, batch.cond_latents)
        expected = FAMILY.predict(transformer, noisy, draws.sigmas, inputs)
    difference = (run(transformer, batch, draws).prediction - expected).abs().max().item()
    print(f"difference {difference:.2e}")
    assert difference < 1e-6


def test_a_dropped_caption_is_the_empty_one_with_the_same_reference(transformer, batch):
    kept = run(transformer, batch, make_draws(batch))
    dropped = run(transformer, batch, make_draws(batch, (False, True, False)))
    emptied = run(transformer, replace(batch, prompt_embeds=batch.empty_prompt_embeds), make_draws(batch))
    assert torch.equal(dropped.prediction[[0, 2]], kept.prediction[[0, 2]])
    assert torch.equal(dropped.prediction[1], emptied.prediction[1])
    assert not torch.equal(dropped.prediction[1], kept.prediction[1])


def test_the_reference_is_seen(transformer, batch):
    other = replace(batch, cond_latents=(batch.cond_latents[0].flip(-1),))
    difference = (
        run(transformer, batch, make_draws(batch)).prediction - run(transformer, other, make_draws(batch)).prediction
    )
    assert difference.abs().max() > 1e-3


def test_is_pure(transformer, batch):
    state = torch.get_rng_state()
    first, second = (run(transformer, batch, make_draws(batch)) for _ in range(2))
    assert torch.equal(first.prediction, second.prediction)
    assert torch.equal(torch.get_rng_state(), state)


def test_draws_come_from_the_generator_and_take_the_same_from_it_whatever_the_options():
    shape = (4, 16, 8, 8)
    states = []
    for options in (TrainingOptions(), TrainingOptions(caption_dropout_probability=0.0, flow_schedule_shift=3.0)):
        generator = torch.Generator().manual_seed(3)
        draw(FAMILY, options, shape, generator)
        states.append(generator.get_state())
    assert torch.equal(states[0], states[1])
    first, second = (draw(FAMILY, TrainingOptions(), shape, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first.noise, second.noise) and torch.equal(first.sigmas, second.sigmas)
    assert first.noise.shape == shape and first.sigmas.shape == (4,)


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_share_of_dropped_captions(probability):
    options = TrainingOptions(caption_dropout_probability=probability)
    dropped = draw(FAMILY, options, (4000, 1, 2, 2), torch.Generator().manual_seed(0)).dropped
    print(f"dropped {dropped.float().mean():.3f}, wanted {probability}")
    assert abs(dropped.float().mean().item() - probability) < (0.03 if 0 < probability < 1 else 1e-9)
