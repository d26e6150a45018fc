"""Clips from a folder of videos to a LoRA on the tiny twin, through the same stages and loop as pictures."""

from dataclasses import replace

import av
import pytest
import torch
from comfyui_longcat.tests.twins.video_checkpoint import build_tiny_video_checkpoint
from comfyui_longcat.training.caches.cache import CacheFolders
from comfyui_longcat.training.caches.latents import cache_latents, load_latents
from comfyui_longcat.training.caches.text import cache_text, load_prompt_embeds
from comfyui_longcat.training.data.sets import pair_datasets, scan_dataset
from comfyui_longcat.training.errors import ConfigError, ModelError, StoppedByUserError
from comfyui_longcat.training.events import NoCallbacks, SamplesReady, StageProgress, StepReport
from comfyui_longcat.training.loop.batches import BatchOrder, load_batch
from comfyui_longcat.training.loop.check import check_run
from comfyui_longcat.training.loop.step import draw, forward_step
from comfyui_longcat.training.loop.train import RunPlaces, train
from comfyui_longcat.training.lora.transformer import open_transformer
from comfyui_longcat.training.models.contract import QWEN
from comfyui_longcat.training.models.registry import family_of
from comfyui_longcat.training.sampling.clips import sample_clip
from comfyui_longcat.training.sampling.prompts import encode_prompts
from comfyui_longcat.training.settings.dataset import DatasetConfig
from comfyui_longcat.training.settings.model import ModelConfig
from comfyui_longcat.training.settings.run import TrainConfig, TrainingOptions
from comfyui_longcat.training.settings.sampling import VideoSampleConfig
from comfyui_longcat.training.settings.validation import ValidationConfig
from comfyui_longcat.training.tiny.examples import draw_example_clips
from comfyui_longcat.training.weights.spec import LoraUse, ModelSpec

CPU = torch.device("cpu")
FAMILY = family_of("longcat_video")
OPTIONS = TrainingOptions(gradient_checkpointing=False, caption_dropout_probability=0.0, lora_target="attention")
VALIDATION = ValidationConfig(
    validation_resolution="96x64",
    validation_num_inference_steps=2,
    num_samples=2,
    validation_num_video_frames=5,
)
CONFIG = TrainConfig(
    run_name="clips", max_train_steps=6, learning_rate=1e-2, lora_rank=4, train_batch_size=2, options=OPTIONS
)


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    config = ModelConfig(model_family="longcat_video", model_flavour="tiny-video", base_model_precision="fp32")
    return ModelSpec(config=config, models_dirs=(tmp_path_factory.mktemp("models"),))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """(videos, start frames)"""
    folder = tmp_path_factory.mktemp("data")
    draw_example_clips(folder / "clips", folder / "starts")
    videos = DatasetConfig(
        id="clips", instance_data_dir=str(folder / "clips"), dataset_type="video", resolution="64", num_frames=9
    )
    starts = DatasetConfig(
        id="starts",
        instance_data_dir=str(folder / "starts"),
        dataset_type="conditioning",
        caption_strategy="none",
        resolution="64",
    )
    return videos, starts


def cached(dataset, spec, folder, callbacks=None):
    callbacks = callbacks or NoCallbacks()
    folders = CacheFolders(targets=folder / "targets", references=folder / "references")
    latents, of_latents = cache_latents(dataset, spec, folders, CPU, callbacks)
    cache, of_text = cache_text(latents, spec, folder / "text", CPU, callbacks)
    return cache, of_latents, of_text


@pytest.fixture(scope="module")
def cache_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def cache(spec, data, cache_folder):
    """With a set of start frames."""
    return cached(pair_datasets(*data), spec, cache_folder)[0]


@pytest.fixture(scope="module")
def own_cache(spec, data, cache_folder):
    """Image-to-video from the clips' own first frames."""
    return cached(scan_dataset(replace(data[0], is_i2v=True)), spec, cache_folder)[0]


@pytest.fixture(scope="module")
def text_cache(spec, data, cache_folder):
    """Text-to-video."""
    return cached(scan_dataset(data[0]), spec, cache_folder)[0]


def places(folder):
    return RunPlaces(runs_dir=folder / "runs", lora_dir=folder / "loras", device=CPU)


# Caches and batches


def test_clips_and_start_frames_become_latents(cache):
    for each in cache.records:
        assert load_latents(each.latents).shape == (1, 16, 3, 8, 8)
        assert [load_latents(path).shape for path in each.cond_latents] == [(1, 16, 1, 8, 8)]
        assert load_prompt_embeds(each.prompt_embeds).shape == (1, 512, 64)
    assert len({each.empty_prompt_embeds for each in cache.records}) == 1, "the start frame is not read"


def test_a_cached_second_run_loads_nothing(cache, spec, data, cache_folder, listener):
    heard = listener()
    again, of_latents, of_text = cached(pair_datasets(*data), spec, cache_folder, heard)
    assert of_latents.encoded == of_text.encoded == ()
    assert not [event for event in heard.of(StageProgress) if event.stage.startswith("loading")]
    assert again.fingerprint() == cache.fingerprint()


def test_batches_hold_clips_of_one_length(spec, data, cache_folder, cache):
    short, _, _ = cached(pair_datasets(replace(data[0], num_frames=5), data[1]), spec, cache_folder)
    both = replace(cache, records=(*cache.records, *short.records))
    order = BatchOrder(both, 4, 0)
    shapes = {load_batch(order.batch(number)).latents.shape[2] for number in range(order.batches_per_epoch)}
    assert shapes == {2, 3}


def test_a_clip_without_start_frame_starts_with_its_own(own_cache, cache, text_cache):
    own, given, text = (load_batch(each.records) for each in (own_cache, cache, text_cache))
    assert torch.equal(own.cond_latents[0], own.latents[:, :, :1])
    difference = (own.cond_latents[0] - given.cond_latents[0]).abs().mean().item()
    print(f"own first frame and its picture: mean difference of latents {difference:.3f}")
    assert 0 < difference < 0.5, "they differ by what the video's compression lost"
    assert text.cond_latents == ()
    assert own_cache.fingerprint() != text_cache.fingerprint()


# The step


def forward(spec, batch, draws):
    with open_transformer(spec, CPU, NoCallbacks()) as transformer, torch.no_grad():
        return forward_step(FAMILY, transformer, batch, draws)


def draws_of(batch, start_given=True):
    generator = torch.Generator().manual_seed(0)
    return replace(draw(FAMILY, OPTIONS, batch.latents.shape, generator), start_given=start_given)


def test_the_loss_leaves_out_the_start(cache, spec):
    batch = load_batch(cache.records)
    draws = draws_of(batch)
    result = forward(spec, batch, draws)
    wanted = (result.prediction - result.target)[:, :, 1:].square().mean()
    assert torch.equal(result.loss, wanted)
    noise, latents = draws.noise.clone(), batch.latents.clone()
    noise[:, :, 0], latents[:, :, 0] = 7.0, -7.0
    other = forward(spec, replace(batch, latents=latents), replace(draws, noise=noise))
    assert torch.equal(other.loss, result.loss), "what a target's first frame holds is of no consequence"
    moved = replace(batch, cond_latents=(batch.cond_latents[0] + 1,))
    assert not torch.equal(forward(spec, moved, draws).loss, result.loss), "the start itself is seen"


def test_without_its_start_a_batch_is_text_to_video(cache, text_cache, spec):
    batch, text = load_batch(cache.records), load_batch(text_cache.records)
    without = forward(spec, batch, draws_of(batch, start_given=False))
    assert torch.equal(without.loss, forward(spec, text, draws_of(text)).loss)
    assert torch.equal(without.loss, (without.prediction - without.target).square().mean())


def test_the_share_of_starts_is_drawn_from_the_runs_generator():
    options = replace(OPTIONS, first_frame_probability=0.3)

    def starts(seed):
        generator = torch.Generator().manual_seed(seed)
        return [draw(FAMILY, options, (1, 1, 2, 2, 2), generator).start_given for _ in range(2000)]

    assert starts(1) == starts(1) != starts(2)
    assert sum(starts(1)) / 2000 == pytest.approx(0.3, abs=0.03)


def test_pictures_draw_what_they_always_drew():
    generator, twin = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    shape = (2, 16, 4, 4)
    draws = draw(family_of("longcat_image"), replace(OPTIONS, first_frame_probability=0.0), shape, generator)
    assert torch.equal(draws.noise, torch.randn(shape, generator=twin))
    torch.randn(2, generator=twin), torch.rand(2, generator=twin)
    assert torch.equal(generator.get_state(), twin.get_state())
    assert draws.start_given


# The run


def loss_of(spec, cache):
    """Mean over the same noise and levels."""
    generator, batch = torch.Generator().manual_seed(5), load_batch(cache.records)
    with open_transformer(spec, CPU, NoCallbacks()) as transformer, torch.no_grad():
        losses = [
            forward_step(FAMILY, transformer, batch, draw(FAMILY, OPTIONS, batch.latents.shape, generator)).loss
            for _ in range(6)
        ]
    return torch.stack(losses).mean().item()


@pytest.mark.slow
def test_learns_to_go_on_from_the_start(spec, cache, tmp_path):
    config = replace(CONFIG, max_train_steps=80, lora_rank=8, train_batch_size=6)
    result = train(config, spec, cache, places(tmp_path), NoCallbacks())
    before, after = (
        loss_of(spec.with_lora(LoraUse(path=result.lora, strength=strength)), cache) for strength in (0.0, 1.0)
    )
    print(f"loss {before:.3f} at strength 0, {after:.3f} at strength 1")
    assert after < 0.75 * before


@pytest.mark.slow
def test_one_run_mixes_both_tasks_and_resumes_bit_for_bit(spec, own_cache, tmp_path, listener, monkeypatch):
    config = replace(CONFIG, options=replace(OPTIONS, first_frame_probability=0.5), validation=VALIDATION)
    generator = torch.Generator().manual_seed(config.seed + 1)
    shape = load_batch(own_cache.records[:2]).latents.shape
    tasks = {draw(FAMILY, config.options, shape, generator).start_given for _ in range(config.max_train_steps)}
    assert tasks == {True, False}, "this seed draws both"
    whole = train(config, spec, own_cache, places(tmp_path / "whole"), NoCallbacks())
    with pytest.raises(StoppedByUserError):
        train(config, spec, own_cache, places(tmp_path / "parts"), listener(stop_after=3))
    rest = listener()
    resumed = train(config, spec, own_cache, places(tmp_path / "parts"), rest)
    assert len(rest.of(StepReport)) == 3
    assert resumed.losses == whole.losses
    assert resumed.lora.read_bytes() == whole.lora.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cache", "own_cache", "text_cache"])
def test_previews_are_videos_with_a_strip(kind, spec, tmp_path, listener, request):
    heard = listener()
    config = replace(CONFIG, max_train_steps=1, validation=VALIDATION)
    result = train(config, spec, request.getfixturevalue(kind), places(tmp_path), heard)
    ready = heard.of(SamplesReady)
    assert [event.step for event in ready] == [0, 1]
    assert [image.size for event in ready for image in event.images] == [(5 * 96, 64)] * 4
    assert result.samples == ready[-1].paths
    for path in result.samples:
        with av.open(str(path.with_suffix(".mp4"))) as container:
            frames = [frame.to_image().size for frame in container.decode(video=0)]
            assert container.streams.video[0].average_rate == 15
        assert frames == [(96, 64)] * 5


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"base_model_precision": "int8-quanto"}, {"blocks_to_swap": 3}])
def test_trains_small(settings, spec, cache, tmp_path):
    config = replace(CONFIG, max_train_steps=2, options=replace(OPTIONS, gradient_checkpointing=True))
    used = replace(spec, config=replace(spec.config, **settings))
    small = train(config, used, cache, places(tmp_path / "small"), NoCallbacks()).losses
    plain = train(config, spec, cache, places(tmp_path / "plain"), NoCallbacks()).losses
    print(settings, small, plain)
    assert small == pytest.approx(plain, rel=2e-2 if "base_model_precision" in settings else 1e-6)


@pytest.mark.slow
def test_a_checkpoint_with_qwen_as_text_encoder_trains_and_samples(data, tmp_path):
    """The quickstart speaks of Qwen2.5-VL; where its width fits the transformer, it takes the same way as UMT5."""
    build_tiny_video_checkpoint(tmp_path / "twin", QWEN)
    config = ModelConfig(model_family="longcat_video", model_flavour="tiny-video", base_model_precision="fp32")
    spec = ModelSpec(config=config, models_dirs=(tmp_path,), folder=tmp_path / "twin")
    cache = cached(pair_datasets(*data), spec, tmp_path / "cache")[0]
    embeds = [load_prompt_embeds(each.prompt_embeds) for each in cache.records[:2]]
    assert embeds[0].shape == embeds[1].shape == (1, 512, 64)
    assert not torch.equal(*embeds)
    result = train(replace(CONFIG, max_train_steps=2), spec, cache, places(tmp_path), NoCallbacks())
    trained = spec.with_lora(LoraUse(path=result.lora))
    prompts = tuple(encode_prompts(trained, ("a circle moves right", ""), CPU, NoCallbacks()))
    settings = VideoSampleConfig(width=64, height=64, num_frames=5, num_inference_steps=2)
    clip = sample_clip(settings, trained, prompts, torch.zeros(1, 3, 64, 64), CPU, NoCallbacks(), lambda latents: None)
    assert clip.pixels.shape == (1, 3, 5, 64, 64)
    assert clip.pixels.isfinite().all()


# What is refused before anything is loaded


@pytest.fixture
def nothing(spec):
    """A spec that finds no model anywhere."""
    return replace(spec, models_dirs=())


def test_shift_0_is_refused(nothing, cache):
    options = replace(OPTIONS, flow_schedule_shift=0.0)
    with pytest.raises(ConfigError, match="flow_schedule_shift is 0.*Give 12"):
        check_run(replace(CONFIG, options=options), nothing, cache, None)


def test_presets_are_the_familys(nothing, cache):
    options = replace(OPTIONS, lora_target="official")
    with pytest.raises(ConfigError, match="must be one of attention, attention.ffn"):
        check_run(replace(CONFIG, options=options), nothing, cache, None)
    check_run(replace(CONFIG, options=replace(OPTIONS, lora_target="attention+ffn")), nothing, cache, None)
    check_run(replace(CONFIG, options=TrainingOptions()), nothing, cache, None)


def test_pictures_do_not_train_video_nor_clips_images(nothing, cache, trainable):
    with pytest.raises(ConfigError, match="longcat_video is trained on clips, but 12 of 12 samples are pictures"):
        cache_latents(trainable.cache.dataset, nothing, cache.folders, CPU, NoCallbacks())
    with pytest.raises(ConfigError, match="longcat_image is trained on pictures, but 12 of 12 samples are clips"):
        cache_latents(cache.dataset, trainable.spec, cache.folders, CPU, NoCallbacks())


@pytest.mark.parametrize(("frames", "match"), [(8, "is 8; .*Use 5 or 9"), (1, "has 1 frame, .*nothing is left")])
def test_numbers_of_frames_are_checked(nothing, cache, frames, match):
    records = [replace(each.record, clip=replace(each.record.clip, frames=frames)) for each in cache.records]
    with pytest.raises(ConfigError, match=match):
        cache_latents(replace(cache.dataset, records=tuple(records)), nothing, cache.folders, CPU, NoCallbacks())


def test_previews_of_wrong_length_are_refused():
    with pytest.raises(ConfigError, match="validation_num_video_frames .* is 90; .*Use 89 or 93"):
        ValidationConfig(validation_num_video_frames=90)


def test_another_familys_flavour_is_refused(nothing, cache):
    edit = replace(nothing, config=replace(nothing.config, model_flavour="edit"))
    with pytest.raises(ConfigError, match="longcat_video has no such flavour: choose one of final, tiny-video"):
        check_run(CONFIG, edit, cache, None)


def test_text_encoder_of_another_width_is_refused(spec, cache, tmp_path):
    import json
    import shutil

    from comfyui_longcat.training.weights.source import check_folder

    folder = tmp_path / "model"
    shutil.copytree(spec.models_dirs[0] / "tiny-video", folder)
    check_folder(folder, spec.config)
    path = folder / "text_encoder" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "d_model": 48}))
    with pytest.raises(ModelError, match="48 wide, .* was trained on 64"):
        check_folder(folder, spec.config)
