"""Two folders of pairs, two resolutions, repeats, drawn crops and batches of two: cached, trained, resumed."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from comfyui_longcat.training.caches.cache import CacheFolders
from comfyui_longcat.training.caches.latents import cache_latents, load_latents
from comfyui_longcat.training.caches.text import cache_text, load_prompt_embeds
from comfyui_longcat.training.data.sets import join_sets, pair_datasets
from comfyui_longcat.training.errors import StoppedByUserError
from comfyui_longcat.training.events import NoCallbacks, StepReport
from comfyui_longcat.training.loop.batches import BatchOrder, load_batch
from comfyui_longcat.training.loop.train import RunPlaces, train
from comfyui_longcat.training.settings.dataset import DatasetConfig
from comfyui_longcat.training.settings.model import ModelConfig
from comfyui_longcat.training.settings.run import TrainConfig, TrainingOptions
from comfyui_longcat.training.weights.spec import ModelSpec
from PIL import Image

CPU = torch.device("cpu")
NAMES = ("\u84dd\u8272", "red", "tall")
CONFIG = TrainConfig(
    run_name="mixed",
    max_train_steps=9,
    learning_rate=1e-3,
    lora_rank=2,
    train_batch_size=2,
    options=TrainingOptions(checkpoint_step_interval=100, gradient_checkpointing=False),
)


@pytest.fixture(scope="module")
def spec(tiny_checkpoint):
    return ModelSpec(
        config=ModelConfig(model_flavour="tiny-edit", base_model_precision="fp32"),
        models_dirs=(),
        folder=tiny_checkpoint,
    )


def pairs(folder, name, **settings):
    """Three pairs, oblong, with a picture that differs from left to right."""
    sides = {}
    for side in ("targets", "references"):
        sides[side] = folder / name / side
        sides[side].mkdir(parents=True)
        for number, stem in enumerate(NAMES):
            picture = Image.linear_gradient("L").rotate(30 + number).resize((64, 160) if stem == "tall" else (160, 64))
            picture.convert("RGB").save(sides[side] / f"{stem}.png")
            (sides[side] / f"{stem}.txt").write_text("\ufeffmake it blue", encoding="utf-8")
    return pair_datasets(
        DatasetConfig(id=name, instance_data_dir=str(sides["targets"]), **settings),
        DatasetConfig(instance_data_dir=str(sides["references"]), dataset_type="conditioning", caption_strategy="none"),
    )


def cached(dataset, spec, folder):
    folders = CacheFolders(targets=folder / "targets", references=folder / "references")
    cache, _ = cache_latents(dataset, spec, folders, CPU, NoCallbacks())
    return cache_text(cache, spec, folder / "text", CPU, NoCallbacks())


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixed")
    one = pairs(folder, "one", resolution="64,64x128")
    return join_sets([one, pairs(folder, "two", resolution="64", crop_style="random", repeats=2)])


@pytest.fixture(scope="module")
def cache(dataset, spec, tmp_path_factory):
    return cached(dataset, spec, tmp_path_factory.mktemp("cache"))[0]


def test_records_and_prompts_of_each_bucket(cache):
    counts = Counter(c.record.bucket for c in cache.records)
    assert counts == {(64, 64): 6, (128, 64): 2, (64, 128): 1}
    for each in cache.records:
        width, height = each.record.bucket
        assert load_latents(each.latents).shape[2:] == (height // 8, width // 8)
        assert load_latents(each.cond_latents[0]).shape == load_latents(each.latents).shape
    lengths = {c.record.bucket: load_prompt_embeds(c.prompt_embeds).shape[1] for c in cache.records}
    assert lengths[64, 64] < lengths[64, 128]


def test_every_batch_of_two_loads_without_padding(cache):
    order = BatchOrder(cache, batch_size=2, seed=1)
    batches = [order.batch(number) for number in range(order.batches_per_epoch)]
    seen = Counter((c.record.target, c.record.bucket) for batch in batches for c in batch)
    assert seen == {(c.record.target, c.record.bucket): 1 + c.record.repeats for c in cache.records}
    assert {len(batch) for batch in batches} == {1, 2}
    for batch in batches:
        loaded = load_batch(batch)
        assert loaded.latents.shape[0] == loaded.prompt_embeds.shape[0] == len(batch)


@pytest.mark.slow
def test_a_stopped_run_goes_on_in_the_order_of_a_whole_one(cache, spec, listener, tmp_path):
    assert BatchOrder(cache, CONFIG.train_batch_size, CONFIG.seed).batches_per_epoch < CONFIG.max_train_steps

    def run(place, callbacks):
        places = RunPlaces(runs_dir=place / "runs", lora_dir=place / "loras", device=CPU, validation_cache=None)
        return train(CONFIG, spec, cache, places, callbacks)

    whole = run(tmp_path / "whole", NoCallbacks())
    with pytest.raises(StoppedByUserError):
        run(tmp_path / "parted", listener(stop_after=3))
    rest = listener()
    parted = run(tmp_path / "parted", rest)
    assert [report.step for report in rest.of(StepReport)] == [4, 5, 6, 7, 8, 9]
    assert parted.losses == whole.losses
    assert parted.lora.read_bytes() == whole.lora.read_bytes()


@pytest.mark.slow
def test_the_crop_belongs_to_the_cache_key(spec, tmp_path):
    dataset = pairs(tmp_path, "one", resolution="64")
    centre, _ = cached(dataset, spec, tmp_path / "cache")
    corner = replace(dataset, records=tuple(replace(record, crop=(0.0, 0.0)) for record in dataset.records))
    moved, report = cached(corner, spec, tmp_path / "cache")
    assert report.encoded and {why for _, why in report.encoded} == {"crop changed"}
    for before, after in zip(centre.records, moved.records, strict=True):
        for one, other in ((before.latents, after.latents), (before.cond_latents[0], after.cond_latents[0])):
            assert not torch.equal(load_latents(one), load_latents(other))
        assert before.prompt_embeds != after.prompt_embeds
    assert moved.fingerprint() != centre.fingerprint()
    assert not cached(dataset, spec, tmp_path / "cache")[1].encoded


def test_repeats_belong_to_the_fingerprint(cache):
    often = tuple(replace(c, record=replace(c.record, repeats=5)) for c in cache.records)
    assert replace(cache, records=often).fingerprint() != cache.fingerprint()
