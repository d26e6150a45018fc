"""One optimiser step against arithmetic written out here: what is accumulated, and in which order things happen."""

import math
from dataclasses import fields, replace

import pytest
import torch
from comfyui_longcat.training.events import NoCallbacks
from comfyui_longcat.training.loop.batches import Batch, BatchOrder, load_batch
from comfyui_longcat.training.loop.state import open_state
from comfyui_longcat.training.loop.step import Draws, draw, forward_step
from comfyui_longcat.training.loop.train import train_one_step
from comfyui_longcat.training.lora.inject import TRAINED_ADAPTER, inject_lora, lora_layers
from comfyui_longcat.training.lora.transformer import open_transformer
from comfyui_longcat.training.models.registry import family_of
from comfyui_longcat.training.settings.run import TrainConfig, TrainingOptions

STEPS, WARM_UP = 5, 2
BETAS, EPSILON, WEIGHT_DECAY = (0.8, 0.95), 1e-3, 0.25
EMA_DECAY = 0.3
# No option that reaches a number has its default.
OPTIONS = TrainingOptions(
    gradient_checkpointing=False,
    caption_dropout_probability=0.4,
    flow_schedule_shift=2.5,
    lora_alpha=3.0,
    lr_scheduler="linear",
    lr_warmup_steps=WARM_UP,
    adam_beta1=BETAS[0],
    adam_beta2=BETAS[1],
    adam_epsilon=EPSILON,
    weight_decay=WEIGHT_DECAY,
    use_ema=True,
    ema_decay=EMA_DECAY,
)
CONFIG = TrainConfig(
    run_name="run", max_train_steps=STEPS, learning_rate=0.02, lora_rank=2, seed=7, train_batch_size=1, options=OPTIONS
)


def joined(parts):
    """Several batches, or several draws, as one."""

    def join(values):
        if isinstance(values[0], torch.Tensor):
            return torch.cat(values)
        if values and isinstance(values[0], tuple) and all(isinstance(each, torch.Tensor) for each in values[0]):
            return tuple(torch.cat(each) for each in zip(*values, strict=True))
        return values[0]

    return type(parts[0])(**{f.name: join([getattr(p, f.name) for p in parts]) for f in fields(parts[0])})


def learning_rate(step):
    """Of step 0, 1, ...: it rises from 0, then falls in a line that would reach 0 after the last step."""
    share = step / WARM_UP if step < WARM_UP else (STEPS - step) / (STEPS - WARM_UP)
    return CONFIG.learning_rate * share


class Arithmetic:
    """AdamW (Loshchilov and Hutter 2019, algorithm 2) after clipping by the common norm, and the moving average."""

    def __init__(self, parameters, max_norm):
        self.weights = {name: parameter.detach().double().clone() for name, parameter in parameters.items()}
        self.first = {name: torch.zeros_like(weight) for name, weight in self.weights.items()}
        self.second = {name: torch.zeros_like(weight) for name, weight in self.weights.items()}
        self.average = {}
        self.steps = 0
        self.max_norm = max_norm

    def step(self, gradients, rate):
        """Returns the norm before clipping."""
        norm = math.sqrt(sum(gradient.double().square().sum().item() for gradient in gradients.values()))
        clip = min(1.0, self.max_norm / norm) if self.max_norm else 1.0
        self.steps += 1
        # diffusers' EMAModel counts from 0, and takes the first weights as they are.
        decay = min(self.steps / (9 + self.steps), EMA_DECAY) if self.steps > 1 else 0.0
        for name, gradient in gradients.items():
            gradient = clip * gradient.double()
            self.first[name] = BETAS[0] * self.first[name] + (1 - BETAS[0]) * gradient
            self.second[name] = BETAS[1] * self.second[name] + (1 - BETAS[1]) * gradient.square()
            mean = self.first[name] / (1 - BETAS[0] ** self.steps)
            root = (self.second[name] / (1 - BETAS[1] ** self.steps)).sqrt()
            weight = self.weights[name] * (1 - rate * WEIGHT_DECAY) - rate * mean / (root + EPSILON)
            self.weights[name] = weight
            self.average[name] = decay * self.average.get(name, weight) + (1 - decay) * weight
        return norm


@pytest.mark.slow
@pytest.mark.parametrize(("batches", "batch_size", "max_norm"), [(2, 1, 0.02), (3, 1, 0.0), (2, 2, 0.02)])
def test_batches_of_one_step_count_as_one_batch_of_all_their_samples(trainable, batches, batch_size, max_norm):
    """Gradient, weights, average, loss, norm, learning rate and position in the data, over an epoch's end."""
    options = replace(OPTIONS, gradient_accumulation_steps=batches, max_grad_norm=max_norm)
    config = replace(CONFIG, train_batch_size=batch_size, options=options)
    order = BatchOrder(trainable.cache, batch_size, config.seed)
    device, family = torch.device("cpu"), family_of("longcat_image")
    with open_state(config, trainable.spec, trainable.cache, device, {}, NoCallbacks()) as state:
        random = torch.Generator("cpu").manual_seed(config.seed + 1)
        arithmetic = Arithmetic(state.parameters, max_norm)
        clipped = 0
        for step in range(STEPS):
            assert state.batches_done == step * batches
            loaded = [load_batch(order.batch(step * batches + number)) for number in range(batches)]
            draws = [draw(family, options, batch.latents.shape, random) for batch in loaded]
            expected = forward_step(family, state.transformer, joined(loaded), joined(draws)).loss
            found = torch.autograd.grad(expected, list(state.parameters.values()))
            norm = arithmetic.step(dict(zip(state.parameters, found, strict=True)), learning_rate(step))
            clipped += bool(max_norm) and norm > max_norm

            report = train_one_step(state)

            assert (report.step, report.total_steps) == (step + 1, STEPS)
            assert report.loss == pytest.approx(expected.item(), rel=1e-5)
            assert state.losses[-1] == report.loss and len(state.losses) == step + 1
            assert report.grad_norm == pytest.approx(norm, rel=1e-4)
            assert report.learning_rate == pytest.approx(learning_rate(step))
            assert torch.equal(state.generator.get_state(), random.get_state())
            assert all(parameter.grad is None for parameter in state.parameters.values())
            assert difference(arithmetic.weights, state.parameters) < 2e-5
            shadow = dict(zip(state.parameters, state.ema.shadow_params, strict=True))
            assert difference(arithmetic.average, shadow) < 2e-5
    assert clipped == (STEPS if max_norm else 0)
    assert difference(arithmetic.average, arithmetic.weights) > 1e-3


def difference(expected, found):
    return max((expected[name] - found[name].detach().double()).abs().max().item() for name in expected)


def test_the_adapter_is_the_one_that_the_settings_name(trainable):
    """Layers, rank, scale and seed reach it."""
    adapters = {}
    for seed in (7, 8):
        config = replace(CONFIG, seed=seed, options=replace(OPTIONS, lora_target="official"))
        with open_state(config, trainable.spec, trainable.cache, torch.device("cpu"), {}, NoCallbacks()) as state:
            layers = lora_layers(state.transformer, TRAINED_ADAPTER)
            targets = family_of("longcat_image").lora_targets("official")
            with open_transformer(trainable.spec, torch.device("cpu"), NoCallbacks()) as other:
                expected = inject_lora(other, targets, 2, 3.0, seed)
                assert expected.keys() == state.parameters.keys()
                assert all(torch.equal(expected[name], state.parameters[name]) for name in expected)
            assert {(layer.r[TRAINED_ADAPTER], layer.scaling[TRAINED_ADAPTER]) for layer in layers.values()} == {
                (2, 1.5)
            }
            assert state.transformer.training
            adapters[seed] = {name: parameter.detach().clone() for name, parameter in state.parameters.items()}
    assert any(not torch.equal(adapters[7][name], adapters[8][name]) for name in adapters[7])


def test_joined_samples_are_those_of_the_batches(trainable):
    batches = [load_batch([record]) for record in trainable.cache.records[:2]]
    whole = load_batch(trainable.cache.records[:2])
    together = joined(batches)
    assert isinstance(together, Batch) and torch.equal(together.latents, whole.latents)
    assert torch.equal(together.cond_latents[0], whole.cond_latents[0])
    assert torch.equal(together.prompt_embeds, whole.prompt_embeds)


@pytest.mark.parametrize(("family", "shape"), [("longcat_image", (64, 16, 4, 4)), ("longcat_video", (64, 16, 3, 4, 4))])
def test_every_sample_of_a_batch_has_a_noise_level_noise_and_dropout_of_its_own(family, shape):
    options = replace(OPTIONS, caption_dropout_probability=0.5)
    draws = draw(family_of(family), options, shape, torch.Generator().manual_seed(0))
    assert isinstance(draws, Draws)
    assert draws.sigmas.shape == (64,) and len(draws.sigmas.unique()) == 64
    assert len(draws.noise.flatten(1).unique(dim=0)) == 64
    assert {bool(each) for each in draws.dropped} == {False, True}
    # Each sample is mixed with its own: a step with one sample's level for all of them would be another one.
    assert draws.sigmas.std() > 0.05


@pytest.mark.parametrize(
    ("family", "shape", "given", "shift"),
    [
        ("longcat_image", (5, 16, 8, 12), 2.5, 2.5),
        # Half the sides of the latents make the tokens: 24 of them, on the line through (256, 0.5) and (4096, 1.15).
        ("longcat_image", (5, 16, 8, 12), -1.0, math.exp(0.5 + (24 - 256) * 0.65 / 3840)),
        ("longcat_video", (5, 16, 3, 4, 6), 2.5, 2.5),
        ("longcat_video", (5, 16, 3, 4, 6), -1.0, 12.0),
    ],
)
def test_the_random_numbers_of_a_step_are_those_that_the_settings_ask_for(family, shape, given, shift):
    options = replace(OPTIONS, flow_schedule_shift=given, first_frame_probability=0.5)
    for seed in range(6):
        generator, twin = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed)
        draws = draw(family_of(family), options, shape, generator)
        noise = torch.randn(shape, generator=twin)
        even = torch.rand(5, generator=twin) if len(shape) == 5 else torch.randn(5, generator=twin).sigmoid()
        dropped = torch.rand(5, generator=twin) < 0.4
        start = bool(torch.rand(1, generator=twin) < 0.5) if len(shape) == 5 else True
        assert torch.equal(draws.noise, noise) and torch.equal(draws.dropped, dropped)
        torch.testing.assert_close(draws.sigmas, shift * even / (1 + (shift - 1) * even))
        assert draws.start_given == start
        assert torch.equal(generator.get_state(), twin.get_state())
