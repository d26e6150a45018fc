"""Text-to-image from a captioned folder to a LoRA on the tiny twin, through the same stages and loop as an edit."""

from dataclasses import replace

import pytest
import torch
from comfyui_longcat.training.caches.cache import CacheFolders
from comfyui_longcat.training.caches.latents import cache_latents
from comfyui_longcat.training.caches.text import cache_text, load_prompt_embeds
from comfyui_longcat.training.data.sets import scan_dataset
from comfyui_longcat.training.errors import ConfigError
from comfyui_longcat.training.events import NoCallbacks, SamplesReady, StageProgress, StepReport, WarningRaised
from comfyui_longcat.training.loop.batches import load_batch
from comfyui_longcat.training.loop.check import check_run
from comfyui_longcat.training.loop.previews import prepare_previews
from comfyui_longcat.training.loop.step import Draws, forward_step
from comfyui_longcat.training.loop.train import RunPlaces, train
from comfyui_longcat.training.lora.transformer import open_transformer
from comfyui_longcat.training.models.registry import family_of
from comfyui_longcat.training.settings.dataset import DatasetConfig
from comfyui_longcat.training.settings.flavours import FLAVOURS
from comfyui_longcat.training.settings.model import ModelConfig
from comfyui_longcat.training.settings.run import TrainConfig, TrainingOptions
from comfyui_longcat.training.settings.validation import ValidationConfig
from comfyui_longcat.training.tiny.examples import draw_example_pairs
from comfyui_longcat.training.weights.spec import ModelSpec

CPU = torch.device("cpu")
FAMILY = family_of("longcat_image")
VALIDATION = ValidationConfig(
    validation_steps=100, validation_resolution="96x64", validation_num_inference_steps=2, num_samples=2
)
CONFIG = TrainConfig(
    run_name="t2i",
    max_train_steps=16,
    learning_rate=1e-2,
    lora_rank=4,
    train_batch_size=4,
    options=TrainingOptions(gradient_checkpointing=False, caption_dropout_probability=0.25),
    validation=VALIDATION,
)


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    config = ModelConfig(model_flavour="tiny", base_model_precision="fp32")
    return ModelSpec(config=config, models_dirs=(tmp_path_factory.mktemp("models"),))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    draw_example_pairs(folder / "pictures", folder / "references", count=8)
    return folder / "pictures"


@pytest.fixture(scope="module")
def cached(spec, pictures, tmp_path_factory):
    """The cache, and what the text stage said."""
    folder = tmp_path_factory.mktemp("cache")
    dataset = scan_dataset(DatasetConfig(instance_data_dir=str(pictures), resolution="64"))
    folders = CacheFolders(targets=folder / "targets", references=folder / "references")
    latents, _ = cache_latents(dataset, spec, folders, CPU, NoCallbacks())
    return cache_text(latents, spec, folder / "text", CPU, NoCallbacks())


@pytest.fixture(scope="module")
def cache(cached):
    return cached[0]


def previews(config, spec, cache, tmp_path, callbacks=None):
    return prepare_previews(config, spec, cache, tmp_path, CPU, callbacks or NoCallbacks()).inputs


# Caches


def test_the_empty_prompt_is_encoded_once(cached):
    cache, report = cached
    assert len({each.empty_prompt_embeds for each in cache.records}) == 1
    captions = {each.record.caption for each in cache.records}
    assert len(report.encoded) == len(captions) + 1
    assert len({each.prompt_embeds for each in cache.records}) == len(captions)
    embeds = [
        load_prompt_embeds(cache.records[0].prompt_embeds),
        load_prompt_embeds(cache.records[0].empty_prompt_embeds),
    ]
    assert [tuple(each.shape) for each in embeds] == [(1, 512, 64)] * 2
    assert not torch.equal(*embeds)


def test_another_size_of_the_pictures_needs_no_new_embeddings(cached, spec):
    cache = cached[0]
    larger = tuple(
        replace(each, record=replace(each.record, bucket=(128, 64), crop=(0.0, 0.0))) for each in cache.records
    )
    again, report = cache_text(replace(cache, records=larger), spec, cache.folders.text, CPU, NoCallbacks())
    assert report.encoded == ()
    assert [each.prompt_embeds for each in again.records] == [each.prompt_embeds for each in cache.records]


# The step


@pytest.mark.parametrize("kind", ["text-to-image", "edit"])
def test_a_batch_trains_what_its_samples_train(kind, cache, spec, trainable):
    """Captions of different lengths in one batch: the prediction of each is the one it has alone."""
    used = (cache, spec) if kind == "text-to-image" else (trainable.cache, trainable.spec)
    records = used[0].records[:3]
    assert len({len(each.record.caption) for each in records}) > 1
    whole = load_batch(records)
    assert len(whole.cond_latents) == (0 if kind == "text-to-image" else 1)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(whole.latents.shape, generator=generator)
    sigmas, dropped = torch.tensor([0.2, 0.5, 0.9]), torch.tensor([False, True, False])
    with open_transformer(used[1], CPU, NoCallbacks()) as transformer, torch.no_grad():
        together = forward_step(FAMILY, transformer, whole, Draws(noise=noise, sigmas=sigmas, dropped=dropped))
        losses = []
        for i, record in enumerate(records):
            draws = Draws(noise=noise[i : i + 1], sigmas=sigmas[i : i + 1], dropped=dropped[i : i + 1])
            alone = forward_step(FAMILY, transformer, load_batch([record]), draws)
            difference = (alone.prediction - together.prediction[i : i + 1]).abs().max().item()
            print(f"{kind}, sample {i}: largest difference of predictions {difference:.1e}")
            assert difference <= 2e-5
            losses.append(alone.loss)
    torch.testing.assert_close(torch.stack(losses).mean(), together.loss, rtol=1e-5, atol=0)


# The run


@pytest.mark.slow
def test_trains_previews_and_learns(spec, cache, tmp_path, listener):
    heard = listener()
    places = RunPlaces(runs_dir=tmp_path / "runs", lora_dir=tmp_path / "loras", device=CPU)
    result = train(CONFIG, spec, cache, places, heard)
    first, last = (sum(part) / 4 for part in (result.losses[:4], result.losses[-4:]))
    print(f"loss {first:.3f} -> {last:.3f}")
    assert last < 0.9 * first
    assert result.lora.is_file()
    pictures = [image.size for event in heard.of(SamplesReady) for image in event.images]
    # Exactly the size that was asked for, whatever the shape of the training pictures.
    assert pictures == [(96, 64)] * 4
    assert not [event for event in heard.of(WarningRaised) if "dev" in event.message]


# Previews


def test_previews_use_the_captions_or_every_line_of_the_prompts(spec, cache, tmp_path):
    by_caption = previews(VALIDATION, spec, cache, tmp_path)
    assert [each.name for each in by_caption] == [each.record.name for each in cache.records[:2]]
    assert {each.latents_shape for each in by_caption} == {(1, 16, 8, 12)}
    assert torch.equal(by_caption[0].prompt_embeds, load_prompt_embeds(cache.records[0].prompt_embeds))
    assert torch.equal(by_caption[0].negative_prompt_embeds, load_prompt_embeds(cache.records[0].empty_prompt_embeds))
    lines = replace(
        VALIDATION, validation_prompt="a cat\n\n\u4e00\u53ea\u732b\na dog\n", validation_negative_prompt="blur"
    )
    by_line = previews(lines, spec, cache, tmp_path)
    assert [each.name for each in by_line] == ["prompt-1", "prompt-2", "prompt-3"]
    assert all(each.cond_latents == () for each in by_line)
    assert not torch.equal(by_line[0].prompt_embeds, by_line[1].prompt_embeds)
    assert not torch.equal(by_line[0].negative_prompt_embeds, by_caption[0].negative_prompt_embeds)


def test_previews_of_captions_that_are_cached_load_nothing(spec, cache, tmp_path, listener):
    heard = listener()
    previews(replace(VALIDATION, num_samples=3), spec, cache, tmp_path, heard)
    assert not [event for event in heard.of(StageProgress) if event.stage.startswith("loading")]


def test_a_picture_in_several_resolutions_is_previewed_once(spec, cache, trainable, tmp_path):
    for used, model in ((cache, spec), (trainable.cache, trainable.spec)):
        twice = tuple(record for each in used.records[:3] for record in (each, each))
        inputs = previews(VALIDATION, model, replace(used, records=twice), tmp_path)
        assert [each.name for each in inputs] == [each.record.name for each in used.records[:2]]


# What is refused, and hinted at


def with_flavour(spec, flavour, **changes):
    return replace(spec, config=replace(spec.config, model_flavour=flavour), **changes)


@pytest.mark.parametrize("stage", ["latents", "text", "run"])
@pytest.mark.parametrize(
    ("flavour", "message"),
    [
        ("edit-turbo", "model_flavour edit-turbo cannot be trained on: it was distilled.*Train on model_flavour edit"),
        ("edit", "model_flavour edit edits a reference picture, but 8 of 8 samples have none: .*references"),
    ],
)
def test_captioned_folders_fit_no_edit_flavour(spec, cache, stage, flavour, message):
    # No folder, no models_dirs: the refusal comes before anything is looked for.
    with pytest.raises(ConfigError, match=message):
        run_stage(with_flavour(spec, flavour, models_dirs=()), cache, stage)


@pytest.mark.parametrize("stage", ["latents", "text", "run"])
@pytest.mark.parametrize("flavour", ["final", "dev", "tiny"])
def test_pairs_fit_no_text_flavour(trainable, stage, flavour):
    message = f"model_flavour {flavour} draws from text alone, without a reference, but 12 of 12 samples have one"
    model = with_flavour(trainable.spec, flavour, models_dirs=(), folder=None)
    with pytest.raises(ConfigError, match=message):
        run_stage(model, trainable.cache, stage)


def run_stage(spec, cache, stage):
    work = {
        "latents": lambda: cache_latents(cache.dataset, spec, cache.folders, CPU, NoCallbacks()),
        "text": lambda: cache_text(cache, spec, cache.folders.text, CPU, NoCallbacks()),
        "run": lambda: check_run(CONFIG, spec, cache, None),
    }
    work[stage]()


@pytest.mark.slow
def test_final_hints_at_dev_once(spec, cache, tmp_path, listener):
    final = with_flavour(spec, "final", folder=spec.models_dirs[0] / "tiny")
    config = replace(CONFIG, max_train_steps=1, validation=None)
    places = RunPlaces(runs_dir=tmp_path / "runs", lora_dir=tmp_path / "loras", device=CPU)
    heard = listener()
    train(config, final, cache, places, heard)
    hints = [event.message for event in heard.of(WarningRaised)]
    assert (
        len(hints) == 1
        and hints[0] == FLAVOURS["longcat_image", "final"].training_hint
        and "model_flavour dev" in hints[0]
    )
    longer = listener()
    result = train(replace(config, max_train_steps=2), final, cache, places, longer)
    assert result.folder.name == "t2i" and len(longer.of(StepReport)) == 1, "the run went on"
    assert hints[0] not in [event.message for event in longer.of(WarningRaised)]
    assert not FLAVOURS["longcat_image", "dev"].training_hint
