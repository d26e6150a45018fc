"""LongCat-Video's family: the golden transformer through it, clips and start frames, adapters, refusals."""

import json
import re

import pytest
import torch
from comfyui_longcat.training.errors import ConfigError
from comfyui_longcat.training.models.flow import velocity_target
from comfyui_longcat.training.models.video.family import LongCatVideoFamily, VideoInputs
from comfyui_longcat.training.models.video.latents import denormalise, middle_frame, normalise
from comfyui_longcat.training.settings.geometry import latent_frames
from safetensors import safe_open

FAMILY = LongCatVideoFamily()


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def golden(repository):
    from comfyui_longcat.training.models.video.transformer import LongCatVideoTransformer3DModel

    with safe_open(repository / "tests" / "assets" / "longcat_video_golden.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        config = json.loads(file.metadata()["config"])
    model = LongCatVideoTransformer3DModel.from_config(config)
    model.load_state_dict({name[3:]: tensor for name, tensor in tensors.items() if name.startswith("sd.")})
    return model.eval(), tensors


@pytest.fixture(scope="module")
def vae():
    from comfyui_longcat.training.weights.twins import TWINS
    from comfyui_longcat.training.weights.video_components import load_vae

    return load_vae(TWINS / "tiny-video")


def golden_inputs(tensors, cond_latents=None) -> VideoInputs:
    # Eight slots, as the golden file has them; prepare_inputs would make it 512.
    return VideoInputs(
        prompt_embeds=tensors["in.caption"].squeeze(1),
        prompt_mask=tensors["in.caption_mask"].bool(),
        cond_latents=cond_latents,
    )


@torch.no_grad()
def test_prediction_is_the_official_output_with_the_sign_of_the_target(golden):
    model, tensors = golden
    sigmas = tensors["in.timestep_t2v"] / 1000
    predicted = FAMILY.predict(model, tensors["in.x"], sigmas, golden_inputs(tensors))
    difference = (predicted + tensors["out.t2v"]).abs().max().item()
    print(f"text-to-video: {difference:.1e}")
    assert difference < 1e-5


@torch.no_grad()
def test_a_start_frame_gives_the_official_output_whatever_the_noisy_latents_hold_there(golden):
    model, tensors = golden
    timestep = tensors["in.timestep_i2v"]
    noisy = tensors["in.x"].clone()
    cond_latents = noisy[:, :, :1].clone()
    noisy[:, :, :1] = 99.0
    predicted = FAMILY.predict(model, noisy, timestep[:, 1] / 1000, golden_inputs(tensors, cond_latents))
    difference = (predicted + tensors["out.i2v"]).abs().max().item()
    print(f"image-to-video: {difference:.1e}")
    assert difference < 1e-5
    assert (noisy[:, :, :1] == 99.0).all()


def test_gradients_of_the_denoised_frames_reach_every_adapter(golden):
    from comfyui_longcat.tests.twins.video_checkpoint import build_video_transformer
    from comfyui_longcat.training.lora.inject import inject_lora

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        transformer = build_video_transformer()
    transformer.enable_gradient_checkpointing()
    transformer.train()
    parameters = inject_lora(transformer, FAMILY.lora_targets("attention+ffn"), rank=4, alpha=0, seed=0)
    latents, noise = randn(2, 16, 3, 4, 4), randn(2, 16, 3, 4, 4, seed=1)
    inputs = FAMILY.prepare_inputs(latents.shape, randn(2, 3, 64, seed=2), [latents[:, :, :1]])
    predicted = FAMILY.predict(transformer, noise, torch.tensor([0.9, 0.4]), inputs)
    compared = slice(inputs.num_cond_latents, None)
    (predicted - velocity_target(latents, noise))[:, :, compared].square().mean().backward()
    without = [name for name, p in parameters.items() if "lora_B" in name and not p.grad.abs().sum()]
    assert len(parameters) == 2 * 8 * 4
    assert not without


@pytest.mark.parametrize(
    ("preset", "pattern", "count"),
    [
        ("attention", r"blocks\.\d+\.(attn\.(qkv|proj)|cross_attn\.(q_linear|kv_linear|proj))", 240),
        (
            "attention+ffn",
            r"blocks\.\d+\.(attn\.(qkv|proj)|cross_attn\.(q_linear|kv_linear|proj)|ffn\.w[123])",
            384,
        ),
    ],
)
def test_presets_select_the_released_models_linears(preset, pattern, count):
    from comfyui_longcat.training.models.video.transformer import LongCatVideoTransformer3DModel
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    with torch.device("meta"):
        released = LongCatVideoTransformer3DModel()
    config = LoraConfig(target_modules=FAMILY.lora_targets(preset))
    chosen = {name for name, _ in released.named_modules() if check_target_module_exists(config, name)}
    wanted = {name for name, _ in released.named_modules() if re.fullmatch(pattern, name)}
    assert chosen == wanted
    assert len(chosen) == count
    assert all(isinstance(released.get_submodule(name), torch.nn.Linear) for name in chosen)


def test_unknown_preset_is_refused():
    with pytest.raises(ConfigError, match="lora_target is 'official'; it must be one of attention, attention.ffn"):
        FAMILY.lora_targets("official")


def test_shift_is_the_released_one_for_every_size():
    assert {FAMILY.flow_shift(shape) for shape in ((1, 16, 24, 60, 104), (2, 16, 1, 8, 8))} == {12.0}


@pytest.mark.parametrize(("frames", "latents"), [(1, 1), (5, 2), (13, 4), (93, 24)])
def test_frames_that_fit(frames, latents):
    assert latent_frames(frames) == latents


@pytest.mark.parametrize(("frames", "hint"), [(10, "9 or 13"), (94, "93 or 97"), (0, "1 or 5")])
def test_frames_that_the_vae_would_drop_are_refused(frames, hint):
    with pytest.raises(ConfigError, match=f"number of frames is {frames}; .* Use {hint}"):
        latent_frames(frames)


def test_clips_are_checked_before_the_vae_sees_them():
    with pytest.raises(ConfigError, match="The clip's number of frames is 6"):
        FAMILY.encode_pixels(None, torch.zeros(1, 3, 6, 64, 64))
    with pytest.raises(ConfigError, match="The clip is 64x72 px; both sides must be multiples of 16"):
        FAMILY.encode_pixels(None, torch.zeros(1, 3, 5, 72, 64))


def moving(frames=9, height=64, width=96) -> torch.Tensor:
    pixels = torch.full((1, 3, frames, height, width), -0.5)
    for frame in range(frames):
        pixels[:, 0, frame, 16:32, 8 * frame : 8 * frame + 24] = 0.8
    return pixels


def test_the_first_latent_of_a_clip_is_that_of_its_first_frame_alone(vae):
    pixels = moving()
    latents = FAMILY.encode_pixels(vae, pixels)
    assert latents.shape == (1, 16, 3, 8, 12) and latents.dtype == torch.float32
    assert torch.equal(FAMILY.encode_pixels(vae, pixels[:, :, 0]), latents[:, :, :1])
    assert not torch.equal(latents[:, :, 1], latents[:, :, 0])


def test_latents_are_normalised_by_the_checkpoints_own_numbers(vae):
    raw = randn(2, 16, 3, 4, 4)
    config = {"latents_mean": [0.5] * 15 + [-2.0], "latents_std": [2.0] * 15 + [4.0]}
    latents = normalise(raw, config)
    assert torch.equal(latents[:, 0], (raw[:, 0] - 0.5) / 2)
    assert torch.equal(latents[:, 15], (raw[:, 15] + 2) / 4)
    torch.testing.assert_close(denormalise(latents, config), raw, atol=1e-6, rtol=0)
    with torch.no_grad():
        mode = vae.encode(moving()).latent_dist.mode()
    assert torch.equal(FAMILY.encode_pixels(vae, moving()), normalise(mode, vae.config))


@torch.no_grad()
def test_vae_means_and_deviations_are_applied_once(vae):
    mode, config = vae.encode(moving()).latent_dist.mode(), vae.config
    latents = FAMILY.encode_pixels(vae, moving())
    for channel in range(16):
        mean, deviation = config.latents_mean[channel], config.latents_std[channel]
        torch.testing.assert_close(latents[:, channel], (mode[:, channel] - mean) / deviation, atol=1e-6, rtol=0)
    assert (mode - latents).abs().max() > 0.5, "numbers that change nothing could be applied twice"
    decoded = vae.decode(mode).sample.clamp(-1, 1)
    torch.testing.assert_close(FAMILY.decode(vae, latents), decoded, atol=1e-5, rtol=0)


def test_decoding_gives_back_all_frames_in_tiles(vae):
    pixels = moving(frames=5, height=64, width=320)
    decoded = FAMILY.decode(vae, FAMILY.encode_pixels(vae, pixels))
    assert decoded.shape == pixels.shape and decoded.dtype == torch.float32
    assert decoded.abs().max() <= 1
    error = (decoded[:, :, [0, 4]] - pixels[:, :, [0, 4]]).square().mean().item()
    print(f"mean square error of the kept frames {error:.4f}")
    assert error < 0.03
    assert not vae.use_tiling and not vae.use_slicing


def test_decoding_goes_through_tiles_and_ends_them_after_an_error(vae, monkeypatch):
    used = []

    def fail(*args, **kwargs):
        used.append((vae.use_tiling, vae.use_slicing))
        raise RuntimeError("out of memory")

    latents = FAMILY.encode_pixels(vae, moving(frames=1, height=64, width=320))
    monkeypatch.setattr(vae, "tiled_decode", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        FAMILY.decode(vae, latents)
    assert used == [(True, True)]
    assert not vae.use_tiling and not vae.use_slicing


def test_a_start_that_does_not_fit_is_refused():
    embeds, shape = randn(1, 3, 24), (1, 16, 3, 8, 8)
    with pytest.raises(ConfigError, match="The start is 96x64 px for 1 clips, the video 64x64 px"):
        FAMILY.prepare_inputs(shape, embeds, [randn(1, 16, 1, 8, 12)])
    with pytest.raises(ConfigError, match="The start has 3 latent frames, the video 3: nothing is left"):
        FAMILY.prepare_inputs(shape, embeds, [randn(1, 16, 3, 8, 8)])
    with pytest.raises(ConfigError, match="2 start frames were given"):
        FAMILY.prepare_inputs(shape, embeds, [randn(1, 16, 1, 8, 8)] * 2)


def test_inputs_know_how_many_frames_are_given():
    embeds, shape = randn(1, 3, 24), (1, 16, 3, 8, 8)
    plain = FAMILY.prepare_inputs(shape, embeds, [])
    assert plain.cond_latents is None and plain.num_cond_latents == 0
    assert FAMILY.prepare_inputs(shape, embeds, [randn(1, 16, 2, 8, 8)]).num_cond_latents == 2
    assert plain.with_cache(None) is plain


def test_the_middle_frame_of_a_clip_is_shown():
    latents = torch.arange(24.0).view(1, 1, 24, 1, 1)
    assert middle_frame(latents).flatten().tolist() == [12.0]
    assert middle_frame(latents[:, :, :1]).flatten().tolist() == [0.0]
