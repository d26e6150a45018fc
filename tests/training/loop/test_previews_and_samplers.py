"""A preview is what the sampler makes of the same numbers, byte for byte: edits, text-to-image, clips."""

from dataclasses import replace

import pytest
import torch
from comfyui_longcat.training.caches.cache import CacheFolders
from comfyui_longcat.training.caches.latents import cache_latents
from comfyui_longcat.training.caches.text import cache_text
from comfyui_longcat.training.data.clips import iterate_pictures
from comfyui_longcat.training.data.media import from_pixels, read_image
from comfyui_longcat.training.data.sets import scan_dataset
from comfyui_longcat.training.events import NoCallbacks, SamplesReady
from comfyui_longcat.training.loop.previews import prepare_previews
from comfyui_longcat.training.lora.transformer import open_transformer
from comfyui_longcat.training.sampling.clips import sample_clip, start_pixels
from comfyui_longcat.training.sampling.pictures import sample_edit, sample_t2i
from comfyui_longcat.training.sampling.preview_clips import strip_of
from comfyui_longcat.training.sampling.prompts import encode_edit, encode_prompts
from comfyui_longcat.training.settings.dataset import DatasetConfig
from comfyui_longcat.training.settings.model import ModelConfig
from comfyui_longcat.training.settings.sampling import SampleConfig, TextToImageConfig, VideoSampleConfig
from comfyui_longcat.training.settings.validation import ValidationConfig
from comfyui_longcat.training.tiny.examples import draw_example_clips, draw_example_pairs
from comfyui_longcat.training.weights.spec import ModelSpec

CPU = torch.device("cpu")
NEGATIVE = "blurred"
# No number is its default.
VALIDATION = ValidationConfig(
    validation_resolution="96x64",
    validation_num_inference_steps=3,
    validation_guidance=2.5,
    validation_seed=11,
    num_samples=2,
    validation_prompt="a red cat\na blue dog",
    validation_negative_prompt=NEGATIVE,
    validation_num_video_frames=5,
)
NUMBERS = {"width": 96, "height": 64, "num_inference_steps": 3, "guidance_scale": 2.5}


def pictures_of(spec, cache, folder, listener, config=VALIDATION):
    heard = listener()
    previews = prepare_previews(config, spec, cache, folder, CPU, heard)
    with open_transformer(spec, CPU, heard) as transformer:
        assert previews.show(transformer, 0, heard) is None
    (ready,) = heard.of(SamplesReady)
    return ready.images


def cached(spec, folder, dataset):
    folders = CacheFolders(targets=folder / "cache" / "targets", references=folder / "cache" / "references")
    cache, _ = cache_latents(dataset, spec, folders, CPU, NoCallbacks())
    return cache_text(cache, spec, folder / "cache" / "text", CPU, NoCallbacks())[0]


def nothing(latents):
    return None


def assert_equal(shown, sampled):
    assert [image.size for image in shown] == [image.size for image in sampled]
    assert [image.tobytes() for image in shown] == [image.tobytes() for image in sampled]
    assert len({image.tobytes() for image in shown}) == len(shown)


@pytest.mark.slow
def test_an_edit(trainable, tmp_path, listener):
    config = replace(VALIDATION, validation_resolution="64x64")
    shown = pictures_of(trainable.spec, trainable.cache, tmp_path, listener, config)
    sampled = []
    for index, (cached_record, line) in enumerate(
        zip(trainable.cache.records, config.validation_prompt.splitlines(), strict=False)
    ):
        numbers = SampleConfig(**NUMBERS | {"width": 64}, seed=11 + index)
        reference = read_image(cached_record.record.references[0])
        prompts = encode_edit(trainable.spec, reference, (line, NEGATIVE), numbers, CPU, NoCallbacks())
        made = sample_edit(numbers, trainable.spec, tuple(prompts), CPU, NoCallbacks(), nothing)
        sampled.append(from_pixels(made.pixels))
    # The sampler's reference goes through raw latents, the preview's does not: they differ by rounding.
    for one, other in zip(shown, sampled, strict=True):
        difference = max(abs(a - b) for a, b in zip(one.tobytes(), other.tobytes(), strict=True))
        print(f"largest difference: {difference} of 255")
        assert one.size == other.size and difference <= 1
    assert shown[0].tobytes() != shown[1].tobytes()


@pytest.mark.slow
def test_text_to_image(tmp_path, listener):
    spec = ModelSpec(
        config=ModelConfig(model_flavour="tiny", base_model_precision="fp32"), models_dirs=(tmp_path / "models",)
    )
    draw_example_pairs(tmp_path / "pictures", tmp_path / "references", count=2)
    cache = cached(
        spec, tmp_path, scan_dataset(DatasetConfig(instance_data_dir=str(tmp_path / "pictures"), resolution="64"))
    )
    shown = pictures_of(spec, cache, tmp_path / "samples", listener)
    sampled = []
    for index, line in enumerate(VALIDATION.validation_prompt.splitlines()):
        prompts = tuple(encode_prompts(spec, (line, NEGATIVE), CPU, NoCallbacks()))
        numbers = TextToImageConfig(**NUMBERS, seed=11 + index)
        made = sample_t2i(numbers, spec, prompts, CPU, NoCallbacks(), nothing)
        sampled.append(from_pixels(made.pixels))
    assert_equal(shown, sampled)


@pytest.mark.slow
@pytest.mark.parametrize("is_i2v", [False, True])
def test_clips(tmp_path, listener, is_i2v):
    config = ModelConfig(model_family="longcat_video", model_flavour="tiny-video", base_model_precision="fp32")
    spec = ModelSpec(config=config, models_dirs=(tmp_path / "models",))
    draw_example_clips(tmp_path / "clips", tmp_path / "starts")
    videos = DatasetConfig(
        instance_data_dir=str(tmp_path / "clips"),
        dataset_type="video",
        resolution="64",
        num_frames=5,
        is_i2v=is_i2v,
    )
    cache = cached(spec, tmp_path, scan_dataset(videos))
    shown = pictures_of(spec, cache, tmp_path / "samples", listener)
    sampled = []
    for index, line in enumerate(VALIDATION.validation_prompt.splitlines()):
        prompts = tuple(encode_prompts(spec, (line, NEGATIVE), CPU, NoCallbacks()))
        numbers = VideoSampleConfig(**NUMBERS, num_frames=5, seed=11 + index)
        start = None
        if is_i2v:
            record = cache.records[index].record
            (frame,) = iterate_pictures(record.target, record.clip.start, 1, record.clip.fps)
            start = start_pixels(numbers, frame)
        sampled.append(strip_of(sample_clip(numbers, spec, prompts, start, CPU, NoCallbacks(), nothing).pixels))
    assert_equal(shown, sampled)
