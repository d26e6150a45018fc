"""LongCatEncodePrompt, LongCatSampleT2V and SampleI2V on the tiny twin: real weights, ComfyUI's tensors."""

import shutil

import pytest
import torch
from comfyui_longcat.nodes.encode import EncodeEditPrompt, LongCatEncodePrompt
from comfyui_longcat.nodes.load import LoadLongCat
from comfyui_longcat.nodes.sample import LongCatSampleT2I, LongCatSampleT2V, SampleI2V
from comfyui_longcat.training.errors import ConfigError, ModelError, StoppedByUserError

SAMPLING = {
    "width": 96,
    "height": 64,
    "num_frames": 9,
    "num_inference_steps": 2,
    "guidance_scale": 4.0,
    "seed": 7,
    "distilled": False,
}
PICTURE = {
    "width": 64,
    "height": 64,
    "num_inference_steps": 2,
    "guidance_scale": 4.5,
    "seed": 7,
    "cfg_renorm": True,
}


@pytest.fixture(scope="module")
def model(module_host):
    return LoadLongCat().load(
        model_family="longcat_video",
        model_flavour="tiny-video",
        pretrained_model_name_or_path="auto",
        base_model_precision="fp32",
    )[0]


@pytest.fixture(scope="module")
def conditioning(model):
    return LongCatEncodePrompt().encode(model, "a red circle moves to the right", "")


def i2v(model, conditioning, start, previous=None, **changes):
    return SampleI2V().sample(model, *conditioning, **(SAMPLING | changes), start_frame=start, previous_frames=previous)


def picture(height: int, width: int) -> torch.Tensor:
    image = torch.zeros(1, height, width, 3)
    image[:, : height // 2, : width // 2] = torch.tensor([1.0, 0.5, 0.0])
    return image


def test_conditioning_is_the_core_type_with_all_slots(conditioning):
    for ((embeds, settings),) in conditioning:
        assert embeds.shape == (1, 512, 64) and embeds.device.type == "cpu"
        assert settings == {}
    lengths = [(embeds[0] != 0).any(dim=-1).sum().item() for ((embeds, _),) in conditioning]
    assert lengths[0] > lengths[1] == 1, "the empty negative is its end token alone, the rest zeros"


def test_text_to_video_gives_frames_latents_and_their_speed(model, conditioning):
    from comfyui_longcat.training.events import NoCallbacks
    from comfyui_longcat.training.weights.components import open_vae

    frames, latent, fps = LongCatSampleT2V().sample(model, *conditioning, **SAMPLING)
    assert frames.shape == (9, 64, 96, 3) and frames.dtype == torch.float32
    assert 0 <= frames.min() and frames.max() <= 1
    assert latent["samples"].shape == (1, 16, 3, 8, 12)
    assert fps == 15.0
    with open_vae(model.spec, torch.device("cpu"), NoCallbacks()) as vae:
        decoded = vae.decode(latent["samples"].clone(), return_dict=False)[0]
    shown = ((decoded[0].clamp(-1, 1) + 1) / 2).permute(1, 2, 3, 0)
    torch.testing.assert_close(shown, frames, atol=1e-4, rtol=0)


def test_image_to_video_begins_with_the_picture_upright_as_it_is(model, conditioning):
    start = picture(80, 48)
    before = start.clone()
    frames, latent, fps = i2v(model, conditioning, start)
    assert frames.shape == (9, 96, 64, 3) and latent["samples"].shape == (1, 16, 3, 12, 8) and fps == 15.0
    wanted = torch.nn.functional.interpolate(start.movedim(-1, 1), (107, 64), mode="bilinear")[:, :, 5:101]
    near, far = ((frames[place] - wanted[0].movedim(0, -1)).abs().mean().item() for place in (0, -1))
    print(f"first frame {near:.3f} from the picture, last frame {far:.3f}")
    assert near < 0.05 < far
    assert torch.equal(start, before)


def test_a_clip_goes_on_from_its_last_frames(model, conditioning):
    previous = torch.rand(17, 64, 80, 3, generator=torch.Generator().manual_seed(1))
    frames, latent, _ = i2v(model, conditioning, picture(64, 64), previous, num_frames=17)
    assert frames.shape == (21, 64, 80, 3), "17 frames, and 4 more"
    torch.testing.assert_close(frames[:17], previous, atol=1e-6, rtol=0)
    assert latent["samples"].shape == (1, 16, 5, 8, 10)
    assert not torch.equal(frames[17], frames[16])


def test_starts_that_do_not_fit_are_refused(model, conditioning, module_host):
    module_host.events.clear()
    with pytest.raises(ConfigError, match="SampleI2V.start_frame has shape .2, 64, 64, 3.*must be one picture"):
        i2v(model, conditioning, torch.zeros(2, 64, 64, 3))
    with pytest.raises(ConfigError, match="The clip has 12 frames; a continuation begins with the last 13"):
        i2v(model, conditioning, picture(64, 64), torch.zeros(12, 64, 64, 3))
    with pytest.raises(ConfigError, match="70x64 px; both sides must be multiples of 16"):
        i2v(model, conditioning, picture(64, 64), torch.zeros(13, 64, 70, 3), num_frames=17)
    with pytest.raises(ConfigError, match="13 of them are given by the start"):
        i2v(model, conditioning, picture(64, 64), torch.zeros(13, 64, 64, 3))
    with pytest.raises(ConfigError, match="num_frames .* is 10.*Use 9 or 13"):
        i2v(model, conditioning, picture(64, 64), num_frames=10)
    assert module_host.events == [], "nothing may have been loaded"


def test_conditioning_and_models_of_pictures_are_refused(model, conditioning):
    positive, negative = conditioning
    with pytest.raises(ConfigError, match="LongCatSampleT2V.positive holds 2 prompts"):
        LongCatSampleT2V().sample(model, positive * 2, negative, **SAMPLING)
    with pytest.raises(ConfigError, match="model_family longcat_video draws clips"):
        LongCatSampleT2I().sample(model, positive, negative, **PICTURE)
    with pytest.raises(ConfigError, match="cannot edit"):
        EncodeEditPrompt().encode(model, picture(64, 64), "x", "", width=0, height=0)
    tiny = LoadLongCat().load(
        model_family="longcat_image",
        model_flavour="tiny",
        pretrained_model_name_or_path="auto",
        base_model_precision="fp32",
    )[0]
    with pytest.raises(ConfigError, match="longcat_image draws pictures, not clips"):
        i2v(tiny, conditioning, picture(64, 64))


def test_stop_button_ends_sampling(model, conditioning, module_host, monkeypatch):
    monkeypatch.setattr(module_host, "stop_after", module_host.asked + 1)
    with pytest.raises(StoppedByUserError):
        LongCatSampleT2V().sample(model, *conditioning, **(SAMPLING | {"num_inference_steps": 50}))


def test_a_single_file_and_an_images_folder_are_no_video_model(module_host, tiny_checkpoint):
    with pytest.raises(ConfigError, match="single file 'LongCat_TI2V_comfy.safetensors'.*whole folder"):
        LoadLongCat().load(
            model_family="longcat_video",
            model_flavour="final",
            pretrained_model_name_or_path="LongCat_TI2V_comfy.safetensors",
            base_model_precision="bf16",
        )
    copy = module_host.models_dirs()[0] / "LongCat-Image-Edit"
    shutil.copytree(tiny_checkpoint, copy)
    with pytest.raises(ModelError, match="AutoencoderKL; longcat_video needs"):
        LoadLongCat().load(
            model_family="longcat_video",
            model_flavour="final",
            pretrained_model_name_or_path=str(copy),
            base_model_precision="bf16",
        )
