import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from comfyui_longcat.training.errors import ConfigError
from comfyui_longcat.training.models.contract import ModelInputs
from comfyui_longcat.training.models.image.latents import pack_latents
from comfyui_longcat.training.models.registry import family_of
from comfyui_longcat.training.weights.devices import choose_dtype

FAMILY = family_of("longcat_image")
TOLERANCE = 1e-5


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def largest_difference(name: str, ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape
    difference = (ours.double() - theirs.double()).abs().max().item()
    print(f"{name}: max difference {difference:.2e}")
    return difference


@pytest.fixture(scope="module")
def twin(tmp_path_factory) -> Path:
    from comfyui_longcat.tests.twins.image_checkpoint import build_tiny_image_checkpoint

    folder = tmp_path_factory.mktemp("models") / "tiny-edit"
    build_tiny_image_checkpoint(folder)
    return folder


def open_transformer(twin: Path):
    from diffusers import LongCatImageTransformer2DModel

    return LongCatImageTransformer2DModel.from_pretrained(twin / "transformer").requires_grad_(False)


@pytest.fixture(scope="module")
def transformer(twin):
    return open_transformer(twin)


@pytest.fixture(scope="module")
def vae(twin):
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_pretrained(twin / "vae").requires_grad_(False)


def example_inputs(batch: int = 1, length: int = 20) -> tuple[torch.Tensor, ModelInputs]:
    noisy = randn(batch, 16, 8, 12)
    inputs = FAMILY.prepare_inputs(noisy.shape, randn(batch, length, 64, seed=1), [randn(batch, 16, 6, 10, seed=2)])
    return noisy, inputs


def test_vae_scale_and_shift_are_applied_once_as_the_pipeline_does(vae):
    from diffusers import LongCatImageEditPipeline

    pixels = randn(2, 3, 64, 96).clamp(-1, 1)
    latents = FAMILY.encode_pixels(vae, pixels)
    with torch.no_grad():
        theirs = LongCatImageEditPipeline._encode_vae_image(SimpleNamespace(vae=vae), pixels, generator=None)
        decoded = vae.decode(theirs / vae.config.scaling_factor + vae.config.shift_factor).sample.clamp(-1, 1)
    assert latents.shape == (2, 16, 8, 12)
    assert largest_difference("latents", latents, theirs) <= TOLERANCE
    assert largest_difference("pixels", FAMILY.decode(vae, latents), decoded) <= TOLERANCE


def test_encoding_is_the_mode_and_repeats(vae):
    pixels = randn(1, 3, 64, 64).clamp(-1, 1)
    assert torch.equal(FAMILY.encode_pixels(vae, pixels), FAMILY.encode_pixels(vae, pixels))


def test_decoded_pixels_stay_within_one(vae):
    pixels = FAMILY.decode(vae, 50 * randn(1, 16, 8, 8))
    assert pixels.shape == (1, 3, 64, 64)
    assert pixels.abs().max() == 1


def test_inputs_hold_target_before_reference_and_start_behind_the_text():
    _, inputs = example_inputs(batch=2, length=20)
    assert inputs.packed_cond_latents.shape == (2, 15, 64)
    assert inputs.img_ids.shape == (24 + 15, 3)
    assert inputs.img_ids.dtype == inputs.txt_ids.dtype == torch.float32
    assert inputs.img_ids[0].tolist() == [1, 20, 20]
    assert inputs.img_ids[23].tolist() == [1, 23, 25]
    assert inputs.img_ids[24].tolist() == [2, 20, 20]
    assert inputs.img_ids[-1].tolist() == [2, 22, 24]
    assert inputs.txt_ids[-1].tolist() == [0, 19, 19]


def test_prediction_equals_a_plain_call_of_the_model(transformer):
    noisy, inputs = example_inputs()
    with torch.no_grad():
        output = transformer(
            hidden_states=torch.cat([pack_latents(noisy), inputs.packed_cond_latents], dim=1),
            encoder_hidden_states=inputs.prompt_embeds,
            timestep=torch.tensor([0.3337]),
            img_ids=inputs.img_ids,
            txt_ids=inputs.txt_ids,
        ).sample
        ours = FAMILY.predict(transformer, noisy, torch.tensor([0.3337]), inputs)
    assert output.abs().max() > 1e-3
    assert largest_difference("prediction", pack_latents(ours), output[:, :24]) == 0


def test_reference_tokens_have_the_timestep_of_the_noisy_ones(transformer):
    """As the authors' trainers and pipeline: all tokens of a sample share one time embedding."""
    noisy, inputs = example_inputs(batch=2)
    seen = []
    hook = transformer.time_embed.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    try:
        for references in ({}, {"packed_cond_latents": None, "img_ids": inputs.img_ids[:24]}):
            FAMILY.predict(transformer, noisy, torch.tensor([0.25, 0.75]), dataclasses.replace(inputs, **references))
    finally:
        hook.remove()
    assert inputs.packed_cond_latents is not None
    assert [timesteps.tolist() for timesteps in seen] == [[250.0, 750.0]] * 2


def test_prediction_of_a_batch_is_that_of_its_samples(transformer):
    noisy, inputs = example_inputs(batch=3)
    sigmas = torch.tensor([0.1, 0.5, 0.9])
    with torch.no_grad():
        together = FAMILY.predict(transformer, noisy, sigmas, inputs)
        for i in range(3):
            alone = dataclasses.replace(
                inputs,
                prompt_embeds=inputs.prompt_embeds[i : i + 1],
                packed_cond_latents=inputs.packed_cond_latents[i : i + 1],
            )
            one = FAMILY.predict(transformer, noisy[i : i + 1], sigmas[i : i + 1], alone)
            assert largest_difference(f"sample {i}", together[i : i + 1], one) <= TOLERANCE
    assert (together[0] - together[1]).abs().max() > 1e-3


def test_prediction_reads_sigma_text_and_reference(transformer):
    noisy, inputs = example_inputs()
    other_text = dataclasses.replace(inputs, prompt_embeds=inputs.prompt_embeds + 1)
    other_reference = dataclasses.replace(inputs, packed_cond_latents=inputs.packed_cond_latents + 1)
    half, most = torch.tensor([0.5]), torch.tensor([0.9])
    with torch.no_grad():
        first = FAMILY.predict(transformer, noisy, half, inputs)
        for sigmas, changed in ((most, inputs), (half, other_text), (half, other_reference)):
            assert (FAMILY.predict(transformer, noisy, sigmas, changed) - first).abs().max() > 1e-4


def test_prediction_without_reference_has_the_same_shape(transformer):
    noisy = randn(1, 16, 8, 8)
    inputs = FAMILY.prepare_inputs(noisy.shape, randn(1, 20, 64), [])
    assert inputs.packed_cond_latents is None
    with torch.no_grad():
        assert FAMILY.predict(transformer, noisy, torch.tensor([0.5]), inputs).shape == noisy.shape


@pytest.mark.parametrize("precision", ["bf16", "fp32", "int8-quanto"])
def test_lora_gets_the_gradient_in_every_precision(twin, precision):
    from peft import LoraConfig

    dtype, _ = choose_dtype(torch.device("cpu"), precision)
    transformer = open_transformer(twin).to(dtype)
    if precision == "int8-quanto":
        quanto = pytest.importorskip("optimum.quanto")
        quanto.quantize(transformer, weights=quanto.qint8, exclude=["proj_out", "norm_out*", "time_embed*"])
        quanto.freeze(transformer)
        transformer.requires_grad_(False)
    transformer.add_adapter(LoraConfig(r=4, target_modules=FAMILY.lora_targets("official")))
    adapters = [p for p in transformer.parameters() if p.requires_grad]
    for parameter in adapters:
        parameter.data = parameter.data.float()
    transformer.enable_gradient_checkpointing()
    noisy, inputs = example_inputs(batch=2)
    prediction = FAMILY.predict(transformer, noisy, torch.tensor([0.2, 0.8]), inputs)
    assert prediction.dtype == torch.float32
    prediction.square().mean().backward()
    # lora_B starts at zero, so only lora_B has a gradient other than zero in the first step.
    gradients = [p.grad for n, p in transformer.named_parameters() if "lora_B" in n]
    assert gradients
    assert sum(g.abs().max() > 0 for g in gradients) >= len(gradients) - 4
    assert all(torch.isfinite(g).all() for g in gradients)


def test_low_precision_predictions_stay_near_fp32(twin, transformer):
    noisy, inputs = example_inputs()
    with torch.no_grad():
        exact = FAMILY.predict(transformer, noisy, torch.tensor([0.5]), inputs)
        coarse = FAMILY.predict(open_transformer(twin).bfloat16(), noisy, torch.tensor([0.5]), inputs)
    relative = ((coarse - exact).norm() / exact.norm()).item()
    print(f"bf16 against fp32: relative difference {relative:.2e}")
    assert coarse.dtype == torch.float32
    assert 0 < relative < 0.05


def test_flow_shift_counts_target_tokens_only():
    assert FAMILY.flow_shift((1, 16, 128, 128)) == pytest.approx(math.exp(1.15))
    assert FAMILY.flow_shift((4, 16, 96, 96)) == pytest.approx(2.332, abs=1e-3)


@pytest.mark.parametrize(("preset", "count", "per_rank"), [("simpletuner", 100, 614_400), ("official", 180, 1_474_560)])
def test_lora_targets_select_the_released_models_linears(preset, count, per_rank):
    from diffusers import LongCatImageTransformer2DModel
    from peft import LoraConfig

    with torch.device("meta"):
        released = LongCatImageTransformer2DModel(num_layers=10, num_single_layers=20)
        released.add_adapter(LoraConfig(r=1, target_modules=FAMILY.lora_targets(preset)))
    adapted = [name for name, _ in released.named_modules() if name.endswith(".lora_A")]
    assert len(adapted) == count
    assert sum(p.numel() for n, p in released.named_parameters() if "lora_" in n) == per_rank
    assert not any("proj_mlp" in name or "time_embed" in name for name in adapted)


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match="all-linear.*simpletuner, official"):
        FAMILY.lora_targets("all-linear")


def test_two_references_are_refused():
    pixels = randn(1, 3, 64, 64)
    with pytest.raises(ConfigError, match="2 reference pictures"):
        FAMILY.encode_prompt(None, "make it red", [pixels, pixels])
    with pytest.raises(ConfigError, match="2 references"):
        FAMILY.prepare_inputs((1, 16, 8, 8), randn(1, 20, 64), [randn(1, 16, 8, 8)] * 2)
