"""LongCatEncodePrompt and LongCatSampleT2I on the tiny twin: real weights, ComfyUI's tensors."""

import pytest
import torch
from comfyui_longcat.nodes.encode import EncodeEditPrompt, LongCatEncodePrompt
from comfyui_longcat.nodes.load import LoadLongCat
from comfyui_longcat.nodes.sample import LongCatSampleEdit, LongCatSampleT2I
from comfyui_longcat.training.errors import ConfigError, StoppedByUserError

SAMPLING = {
    "width": 96,
    "height": 80,
    "num_inference_steps": 2,
    "guidance_scale": 4.5,
    "seed": 7,
    "cfg_renorm": True,
}
EDIT = {"width": 0, "height": 0, "num_inference_steps": 2, "guidance_scale": 4.5, "seed": 7}


@pytest.fixture(scope="module")
def model(module_host):
    return LoadLongCat().load(
        model_family="longcat_image",
        model_flavour="tiny",
        pretrained_model_name_or_path="auto",
        base_model_precision="fp32",
    )[0]


@pytest.fixture(scope="module")
def conditioning(model):
    return LongCatEncodePrompt().encode(model, "a red circle on white", "")


def sample(model, positive, negative, **changes):
    return LongCatSampleT2I().sample(model, positive, negative, **(SAMPLING | changes))


def test_conditioning_is_the_core_type(conditioning):
    for ((embeds, settings),) in conditioning:
        assert embeds.shape == (1, 512, 64) and embeds.device.type == "cpu"
        assert settings == {}
    assert not torch.equal(conditioning[0][0][0], conditioning[1][0][0]), "the prompt must show in the embeddings"
    assert conditioning[0][0][1] is not conditioning[1][0][1]


def test_sample_returns_image_and_raw_latents(model, conditioning, module_host):
    from comfyui_longcat.training.weights.components import open_vae

    module_host.events.clear()
    image, latent = sample(model, *conditioning)
    assert image.shape == (1, 80, 96, 3) and image.dtype == torch.float32
    assert 0 <= image.min() and image.max() <= 1 and image.std() > 0.01
    with torch.inference_mode(False), torch.no_grad(), open_vae(model.spec, module_host.device(), module_host) as vae:
        decoded = vae.decode(latent["samples"]).sample
    difference = (((decoded + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1) - image).abs().max().item()
    print(f"LATENT decoded by the plain VAE against IMAGE: largest difference {difference:.1e}")
    assert difference < 1e-5
    assert [event.done for event in module_host.events if getattr(event, "stage", "") == "sampling"] == [1, 2]


def test_sampling_repeats_and_depends_on_each_setting(model, conditioning):
    image, _ = sample(model, *conditioning)
    assert torch.equal(sample(model, *conditioning)[0], image)
    for change in ({"seed": 8}, {"guidance_scale": 1.0}, {"num_inference_steps": 3}, {"cfg_renorm": False}):
        assert not torch.equal(sample(model, *conditioning, **change)[0], image), change
    assert not torch.equal(sample(model, conditioning[1], conditioning[1])[0], image)


def test_stop_button_ends_sampling(model, conditioning, module_host, monkeypatch):
    monkeypatch.setattr(module_host, "stop_after", module_host.asked + 1)
    with pytest.raises(StoppedByUserError):
        sample(model, *conditioning, num_inference_steps=50)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ({"width": 100}, "width .* is 100.*Use 96 or 112"),
        ({"height": 0}, "height .* is 0; it must lie between 16 and 4096"),
    ],
)
def test_bad_sizes_are_refused(model, conditioning, size, message):
    with pytest.raises(ConfigError, match=message):
        sample(model, *conditioning, **size)


def test_conditioning_and_models_of_edits_are_refused(model, conditioning):
    positive, negative = conditioning
    with_reference = [[positive[0][0], {"reference_latents": [torch.zeros(1, 16, 10, 12)]}]]
    with pytest.raises(ConfigError, match="positive holds a reference picture.*Encode LongCat Prompt"):
        sample(model, with_reference, negative)
    with pytest.raises(ConfigError, match="LongCatSampleT2I.negative holds 2 prompts"):
        sample(model, positive, negative * 2)
    with pytest.raises(ConfigError, match="model_flavour tiny draws from text"):
        EncodeEditPrompt().encode(model, torch.zeros(1, 64, 64, 3), "x", "", width=0, height=0)
    with pytest.raises(ConfigError, match="model_flavour tiny draws from text"):
        LongCatSampleEdit().sample(model, positive, negative, **EDIT)
    wide = [[torch.zeros(1, 512, 3584), {}]]
    with pytest.raises(ConfigError, match=r"\[1, 512, 3584\]; this model takes \[1, tokens, 64\].*Encode LongCat"):
        sample(model, wide, wide)
