"""From prompts and a start to a clip, on the tiny twin: sizes, the start's fate, noise levels, refusals."""

import pytest
import torch
from comfyui_longcat.training.errors import ConfigError, ModelError, StoppedByUserError
from comfyui_longcat.training.events import NoCallbacks, StageProgress
from comfyui_longcat.training.sampling.clips import ClipSample, sample_clip, start_pixels, start_size
from comfyui_longcat.training.sampling.pictures import sample_t2i
from comfyui_longcat.training.sampling.prompts import Conditioning, encode_prompts
from comfyui_longcat.training.settings.model import ModelConfig
from comfyui_longcat.training.settings.sampling import VideoSampleConfig
from comfyui_longcat.training.weights.spec import ModelSpec
from PIL import Image

CPU = torch.device("cpu")
SMALL = {"width": 96, "height": 64, "num_frames": 9, "num_inference_steps": 3, "seed": 7}


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    from comfyui_longcat.tests.twins.video_checkpoint import build_tiny_video_checkpoint

    models = tmp_path_factory.mktemp("models")
    build_tiny_video_checkpoint(models / "tiny-video")
    return spec_of(models)


@pytest.fixture(scope="module")
def prompts(spec):
    return tuple(encode_prompts(spec, ["a red circle moves up", ""], CPU, NoCallbacks()))


def spec_of(*models, family="longcat_video", flavour="tiny-video"):
    config = ModelConfig(model_family=family, model_flavour=flavour, base_model_precision="fp32")
    return ModelSpec(config=config, models_dirs=models)


def sample(spec, prompts, start=None, callbacks=None, preview=None, **changes) -> ClipSample:
    config = VideoSampleConfig(**(SMALL | changes))
    return sample_clip(config, spec, prompts, start, CPU, callbacks or NoCallbacks(), preview or (lambda frame: None))


def picture(width: int, height: int) -> Image.Image:
    image = Image.new("RGB", (width, height), "navy")
    image.paste("orange", (0, 0, width // 2, height // 2))
    return image


def raw_latents_of(spec, pixels):
    from comfyui_longcat.training.models.video.family import LongCatVideoFamily
    from comfyui_longcat.training.models.video.latents import denormalise
    from comfyui_longcat.training.weights.components import open_vae

    with open_vae(spec, CPU, NoCallbacks()) as vae:
        return denormalise(LongCatVideoFamily().encode_pixels(vae, pixels), vae.config)


def bits(tensor):
    return tensor.contiguous().view(torch.int32)


@pytest.mark.parametrize(
    ("frame", "size"),
    [((1000, 500), (832, 480)), ((500, 1000), (480, 832)), ((700, 700), (832, 480)), ((832, 480), (832, 480))],
)
def test_the_start_frames_orientation_decides_the_width(frame, size):
    assert start_size(VideoSampleConfig(), frame) == size
    assert start_size(VideoSampleConfig(width=480, height=832), frame) == (size if frame != (700, 700) else (480, 832))
    assert start_pixels(VideoSampleConfig(), Image.new("RGB", frame)).shape == (1, 3, size[1], size[0])


def test_a_start_frame_is_cropped_as_in_training():
    from comfyui_longcat.training.data.media import to_pixels

    frame = picture(130, 70)
    assert torch.equal(start_pixels(VideoSampleConfig(**SMALL), frame), to_pixels(frame, (96, 64)))


def test_text_to_video_has_the_size_and_length_asked_for(spec, prompts):
    clip = sample(spec, prompts)
    assert clip.pixels.shape == (1, 3, 9, 64, 96) and clip.raw_latents.shape == (1, 16, 3, 8, 12)
    assert clip.pixels.isfinite().all() and clip.pixels.abs().max() <= 1
    assert torch.equal(sample(spec, prompts).raw_latents, clip.raw_latents)
    for change in ({"seed": 8}, {"guidance_scale": 1.0}, {"num_inference_steps": 4}, {"distilled": True}):
        assert not torch.equal(sample(spec, prompts, **change).raw_latents, clip.raw_latents), change
    assert not torch.equal(sample(spec, prompts[::-1]).raw_latents, clip.raw_latents)


@pytest.mark.parametrize("distilled", [False, True])
def test_the_start_frames_latents_stay_bit_for_bit(spec, prompts, distilled):
    start = start_pixels(VideoSampleConfig(**SMALL), picture(60, 80))
    clip = sample(spec, prompts, start, distilled=distilled)
    assert clip.pixels.shape == (1, 3, 9, 96, 64), "an upright frame makes an upright clip"
    assert torch.equal(bits(clip.raw_latents[:, :, :1]), bits(raw_latents_of(spec, start)))
    first, last = (clip.pixels[0, :, place] for place in (0, -1))
    near, far = ((frame - start[0]).abs().mean().item() for frame in (first, last))
    print(f"mean difference to the start frame: first frame {near:.3f}, last frame {far:.3f}")
    # What the twin's VAE loses of a picture; the untrained twin's other frames are noise.
    assert near < 0.1 < far


def test_the_start_frame_matters_to_the_other_frames(spec, prompts):
    config = VideoSampleConfig(**SMALL)
    clips = [
        sample(spec, prompts, start_pixels(config, Image.new("RGB", (96, 64), colour))) for colour in ("red", "blue")
    ]
    assert not torch.equal(clips[0].raw_latents[:, :, 1:], clips[1].raw_latents[:, :, 1:])


def test_a_clip_is_continued_from_the_end_of_another(spec, prompts):
    start = torch.rand(1, 3, 13, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    clip = sample(spec, prompts, start, num_frames=21)
    assert clip.pixels.shape == (1, 3, 21, 64, 64), "the size is the start's"
    assert torch.equal(bits(clip.raw_latents[:, :, :4]), bits(raw_latents_of(spec, start)))


def test_a_distilled_lora_gets_its_own_levels_and_no_guidance(spec, prompts, listener):
    heard = listener()
    clip = sample(spec, prompts, callbacks=heard, distilled=True)
    assert [event.done for event in heard.of(StageProgress) if event.stage == "sampling"] == list(range(1, 17))
    others = sample(spec, (prompts[0], prompts[0]), distilled=True, guidance_scale=9.0, num_inference_steps=2)
    assert torch.equal(others.raw_latents, clip.raw_latents), "negative, guidance_scale and steps must not count"


def test_each_step_shows_a_frame_from_the_middle(spec, prompts, listener):
    heard, seen = listener(), []

    def preview(latents):
        seen.append(latents)
        return Image.new("RGB", (4, 4))

    clip = sample(spec, prompts, callbacks=heard, preview=preview)
    assert [latents.shape for latents in seen] == [(1, 16, 1, 8, 12)] * 3
    shown = [event.preview for event in heard.of(StageProgress) if event.stage == "sampling"]
    assert len(shown) == 3 and all(shown)
    # At the last step the estimate is the result itself.
    from comfyui_longcat.training.models.video.latents import normalise
    from comfyui_longcat.training.weights.source import component_config

    latents = normalise(clip.raw_latents, component_config(spec, "vae", NoCallbacks()))
    torch.testing.assert_close(seen[-1], latents[:, :, 1:2], atol=1e-5, rtol=0)


def test_stop_is_heard_at_the_next_step(spec, prompts):
    class Stopping(NoCallbacks):
        steps = 0

        def on_event(self, event):
            self.steps += isinstance(event, StageProgress) and event.stage == "sampling"

        def should_stop(self):
            return self.steps >= 2

    callbacks = Stopping()
    with pytest.raises(StoppedByUserError):
        sample(spec, prompts, callbacks=callbacks, num_inference_steps=50)
    assert callbacks.steps == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_frames": 94}, r"num_frames .* is 94.*multiple of 4. Use 93 or 97"),
        ({"width": 840}, "width .* is 840; it must be a multiple of 16. Use 832 or 848"),
        ({"height": 0}, "height .* is 0; it must lie between 16"),
        ({"num_frames": 0}, "num_frames .* is 0; it must lie between 1"),
    ],
)
def test_sizes_and_lengths_off_the_grid_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        VideoSampleConfig(**change)


def conditioning(*shape: int, reference: bool = False) -> Conditioning:
    return Conditioning(
        prompt_embeds=torch.zeros(shape), raw_cond_latents=torch.zeros(1, 16, 8, 8) if reference else None
    )


# These have no folder and nothing to build one in: whatever looked for the model would fail otherwise.
@pytest.mark.parametrize(
    ("start", "message"),
    [
        ((1, 3, 100, 96), "96x100 px; both sides must be multiples of 16"),
        ((1, 3, 14, 64, 64), "number of frames is 14.*Use 13 or 17"),
        ((1, 3, 13, 64, 64), "num_frames is 9, and 13 of them are given by the start: nothing is left to sample"),
    ],
)
def test_starts_that_do_not_fit_are_refused_before_anything_loads(start, message):
    with pytest.raises(ConfigError, match=message):
        sample(spec_of(), (conditioning(1, 512, 64),) * 2, torch.zeros(start))


def test_a_clip_of_one_frame_cannot_begin_with_a_frame():
    with pytest.raises(ConfigError, match="num_frames is 1, and 1 of them"):
        sample(spec_of(), (conditioning(1, 512, 64),) * 2, torch.zeros(1, 3, 64, 64), num_frames=1)


def test_models_for_pictures_are_refused_and_theirs_refuse_this_one():
    image = spec_of(family="longcat_image", flavour="tiny")
    with pytest.raises(ConfigError, match="longcat_image draws pictures, not clips. Choose model_family longcat_video"):
        sample(image, (conditioning(1, 512, 64),) * 2)
    from comfyui_longcat.training.settings.sampling import TextToImageConfig

    with pytest.raises(ConfigError, match="model_family longcat_video draws clips. Use Sample T2V or Sample I2V"):
        sample_t2i(
            TextToImageConfig(), spec_of(), (conditioning(1, 512, 64),) * 2, CPU, NoCallbacks(), lambda frame: None
        )


def test_conditioning_of_another_model_is_refused(spec, prompts):
    with pytest.raises(ConfigError, match=r"negative has embeddings of shape \[1, 512, 4096\].*\[1, tokens, 64\]"):
        sample(spec, (prompts[0], conditioning(1, 512, 4096)))
    with pytest.raises(ConfigError, match="positive holds a reference picture.*Sample I2V"):
        sample(spec, (conditioning(1, 512, 64, reference=True), prompts[1]))


def test_a_start_that_changes_while_it_is_sampled_is_an_error(spec, prompts, monkeypatch):
    from comfyui_longcat.training.models.video import family as longcat_video

    original = longcat_video.LongCatVideoFamily.predict

    def spoiling(self, transformer, latents, sigmas, inputs):
        inputs.cond_latents[0, 0, 0, 0, 0] += 1.0
        return original(self, transformer, latents, sigmas, inputs)

    monkeypatch.setattr(longcat_video.LongCatVideoFamily, "predict", spoiling)
    with pytest.raises(ModelError, match="numbers of the clip's start were changed"):
        sample(spec, prompts, start_pixels(VideoSampleConfig(**SMALL), picture(96, 64)))
