"""EncodeEditPrompt and LongCatSampleEdit on the tiny twin: real weights, real pictures, ComfyUI's tensors."""

import pytest
import torch
from comfyui_longcat.nodes.encode import EncodeEditPrompt
from comfyui_longcat.nodes.load import LoadLongCat
from comfyui_longcat.nodes.sample import LongCatSampleEdit
from comfyui_longcat.training.errors import ConfigError, StoppedByUserError
from comfyui_longcat.training.sampling.prompts import EDIT_AREA, edit_size

SAMPLING = {"width": 0, "height": 0, "num_inference_steps": 2, "guidance_scale": 4.5, "seed": 7}


@pytest.fixture(scope="module")
def model(module_host):
    return LoadLongCat().load(
        model_family="longcat_image",
        model_flavour="tiny-edit",
        pretrained_model_name_or_path="auto",
        base_model_precision="fp32",
    )[0]


@pytest.fixture(scope="module")
def reference():
    generator = torch.Generator().manual_seed(0)
    # A smooth picture: 4 x 5 random colours, enlarged.
    colours = torch.rand(1, 3, 4, 5, generator=generator)
    return torch.nn.functional.interpolate(colours, (80, 96), mode="bilinear").permute(0, 2, 3, 1).contiguous()


@pytest.fixture(scope="module")
def conditioning(model, reference):
    """Encoded once; a node that changed it would break the tests that come later."""
    return encode(model, reference)


def encode(model, reference, prompt="make it blue", width=96, height=80):
    return EncodeEditPrompt().encode(model, reference, prompt, "", width=width, height=height)


def sample(model, positive, negative, **changes):
    return LongCatSampleEdit().sample(model, positive, negative, **(SAMPLING | changes))


def test_conditioning_is_the_core_type(model, reference):
    before = reference.clone()
    positive, negative = encode(model, reference)
    assert torch.equal(reference, before)
    for embeds, settings in (positive[0], negative[0]):
        assert embeds.shape[0] == 1 and embeds.shape[2] == 64 and embeds.device.type == "cpu"
        assert settings["reference_latents_method"] == "index"
        assert [tuple(latents.shape) for latents in settings["reference_latents"]] == [(1, 16, 10, 12)]
    assert not torch.equal(positive[0][0], negative[0][0]), "the instruction must show in the embeddings"
    assert positive[0][1]["reference_latents"][0] is not negative[0][1]["reference_latents"][0]


def test_reference_latents_are_raw_vae_latents(model, reference, conditioning, module_host):
    from comfyui_longcat.training.weights.components import open_vae

    positive, _ = conditioning
    with torch.inference_mode(False), torch.no_grad(), open_vae(model.spec, module_host.device(), module_host) as vae:
        pixels = ((reference * 255).round() / 255 * 2 - 1).permute(0, 3, 1, 2)
        expected = vae.encode(pixels.clone()).latent_dist.mode()
    difference = (positive[0][1]["reference_latents"][0] - expected).abs().max().item()
    print(f"raw reference latents: largest difference {difference:.1e}")
    assert difference < 1e-5


def test_size_zero_is_diffusers_own_rule(monkeypatch, model, reference):
    from comfyui_longcat.training.sampling import prompts

    monkeypatch.setattr(prompts, "EDIT_AREA", 128 * 128)
    positive, _ = encode(model, reference, width=0, height=0)
    # 96x80 has the ratio 1.2: 140.2 x 116.8 px, rounded up to 144 x 128.
    assert positive[0][1]["reference_latents"][0].shape[-2:] == (16, 18)


@pytest.mark.parametrize("size", [(1920, 1080), (1344, 768), (1000, 999), (768, 768), (64, 1000), (5000, 333)])
def test_edit_size_equals_diffusers(size):
    from diffusers.pipelines.longcat_image.pipeline_longcat_image_edit import calculate_dimensions

    width, height = calculate_dimensions(EDIT_AREA, size[0] / size[1])[:2]
    assert edit_size(*size) == (width, height)


def test_sample_returns_image_and_raw_latents(model, conditioning, module_host):
    module_host.events.clear()
    image, latent = sample(model, *conditioning)
    assert image.shape == (1, 80, 96, 3) and image.dtype == torch.float32
    assert 0 <= image.min() and image.max() <= 1 and image.std() > 0.01
    from comfyui_longcat.training.weights.components import open_vae

    with torch.inference_mode(False), torch.no_grad(), open_vae(model.spec, module_host.device(), module_host) as vae:
        decoded = vae.decode(latent["samples"]).sample
    difference = (((decoded + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1) - image).abs().max().item()
    print(f"LATENT decoded by the plain VAE against IMAGE: largest difference {difference:.1e}")
    assert difference < 1e-5
    steps = [event.done for event in module_host.events if getattr(event, "stage", "") == "sampling"]
    assert steps == [1, 2]


def test_sampling_repeats_and_depends_on_seed_prompt_and_guidance(model, conditioning):
    image, _ = sample(model, *conditioning)
    assert torch.equal(sample(model, *conditioning)[0], image)
    assert not torch.equal(sample(model, *conditioning, seed=8)[0], image)
    assert not torch.equal(sample(model, *conditioning, guidance_scale=1.0)[0], image)
    assert not torch.equal(sample(model, conditioning[1], conditioning[1])[0], image)


def test_target_may_have_another_size_than_the_reference(model, conditioning):
    image, _ = sample(model, *conditioning, width=64, height=128)
    assert image.shape == (1, 128, 64, 3)


def test_transparent_reference_is_laid_on_white(model, reference):
    clear = torch.cat([reference, torch.zeros_like(reference[..., :1])], dim=-1)
    white = torch.ones_like(reference)
    left, right = encode(model, clear)[0][0], encode(model, white)[0][0]
    assert torch.equal(left[0], right[0])


def test_stop_button_ends_sampling(model, conditioning, module_host, monkeypatch):
    module_host.events.clear()
    monkeypatch.setattr(module_host, "stop_after", module_host.asked + 1)
    with pytest.raises(StoppedByUserError):
        sample(model, *conditioning, num_inference_steps=50)
    assert [event.done for event in module_host.events if getattr(event, "stage", "") == "sampling"] == [1, 2]


@pytest.mark.parametrize(
    ("width", "height", "message"),
    [(100, 80, "width .* is 100.*Use 96 or 112"), (96, 0, "give both sides"), (96, 5000, "between 0 and 4096")],
)
def test_bad_sizes_are_refused(model, reference, width, height, message):
    with pytest.raises(ConfigError, match=message):
        encode(model, reference, width=width, height=height)


def test_batch_of_references_is_refused(model, reference):
    with pytest.raises(ConfigError, match=r"EncodeEditPrompt.reference has shape \[2, 80, 96, 3\].*ImageFromBatch"):
        encode(model, reference.repeat(2, 1, 1, 1))


def test_missing_reference_is_refused(model, conditioning):
    with pytest.raises(TypeError, match="reference"):
        EncodeEditPrompt().encode(model, prompt="x", negative_prompt="", width=0, height=0)
    positive, negative = conditioning
    with pytest.raises(ConfigError, match="positive holds 0 reference pictures.*Encode Edit Prompt"):
        sample(model, [[positive[0][0], {}]], negative)


def test_several_references_or_prompts_are_refused(model, conditioning):
    positive, negative = conditioning
    twice = positive[0][1]["reference_latents"] * 2
    with pytest.raises(ConfigError, match="holds 2 reference pictures"):
        sample(model, [[positive[0][0], {"reference_latents": twice}]], negative)
    with pytest.raises(ConfigError, match="negative holds 2 prompts"):
        sample(model, positive, negative * 2)


def test_conditioning_of_another_model_is_refused(model, conditioning):
    positive, negative = conditioning
    wide = torch.zeros(1, 530, 3584)
    with pytest.raises(ConfigError, match=r"shape \[1, 530, 3584\]; this model takes \[1, tokens, 64\]"):
        sample(model, [[wide, positive[0][1]]], negative)
    few_channels = {"reference_latents": [torch.zeros(1, 4, 10, 12)]}
    with pytest.raises(ConfigError, match=r"shape \[1, 4, 10, 12\]; this model takes \[1, 16"):
        sample(model, [[positive[0][0], few_channels]], negative)
