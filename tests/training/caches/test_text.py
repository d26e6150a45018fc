"""The text-encoder pass with the tiny twin's real Qwen2.5-VL."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from comfyui_longcat.training.caches import latents, text
from comfyui_longcat.training.caches.cache import CacheFolders
from comfyui_longcat.training.caches.latents import cache_latents
from comfyui_longcat.training.caches.text import cache_text, load_prompt_embeds
from comfyui_longcat.training.data.media import read_image, to_pixels
from comfyui_longcat.training.data.records import Record, Source, TrainingSet
from comfyui_longcat.training.errors import CacheError, ConfigError, StoppedByUserError
from comfyui_longcat.training.events import NoCallbacks
from comfyui_longcat.training.loop.batches import load_batch
from comfyui_longcat.training.models.registry import family_of
from comfyui_longcat.training.settings.dataset import DatasetConfig
from comfyui_longcat.training.settings.model import ModelConfig
from comfyui_longcat.training.tiny.examples import draw_example_pairs
from comfyui_longcat.training.weights import components, devices
from comfyui_longcat.training.weights.spec import ModelSpec
from PIL import Image
from safetensors import safe_open

CPU = torch.device("cpu")
CAPTIONS = ("add a blue border", "\u6dfb\u52a0\u84dd\u8272\u8fb9\u6846")


@pytest.fixture(scope="module")
def spec(tiny_checkpoint):
    return ModelSpec(config=ModelConfig(model_flavour="tiny-edit"), models_dirs=(), folder=tiny_checkpoint)


@pytest.fixture
def cache(spec, tmp_path):
    """Two pairs with their latents."""
    targets, references = tmp_path / "targets", tmp_path / "references"
    draw_example_pairs(targets, references, count=2)
    paths = sorted(targets.glob("*.png"))
    records = tuple(
        Record(
            name=p.stem,
            target=p,
            references=(references / p.name,),
            caption=caption,
            bucket=(64, 64),
        )
        for p, caption in zip(paths, CAPTIONS, strict=True)
    )
    dataset = TrainingSet(
        sources=(
            Source(
                targets=DatasetConfig(instance_data_dir=str(targets)),
                references=DatasetConfig(instance_data_dir=str(references), dataset_type="conditioning"),
            ),
        ),
        records=records,
    )
    folders = CacheFolders(targets=tmp_path / "cache" / "targets", references=tmp_path / "cache" / "references")
    return cache_latents(dataset, spec, folders, CPU, NoCallbacks())[0]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache" / "text"


@pytest.fixture
def opens(monkeypatch):
    """Counts how often the text encoder and the VAE are really opened."""
    opened = []
    for module, name in ((text, "open_text_encoder"), (latents, "open_vae")):
        monkeypatch.setattr(module, name, _counting(name, getattr(module, name), opened))
    return opened


def _counting(name, really_open, opened):
    def counting(*args):
        opened.append(name)
        return really_open(*args)

    return counting


def run(cache, spec, folder, callbacks=None):
    return cache_text(cache, spec, folder, CPU, callbacks or NoCallbacks())


def with_record(cache, number, **changes):
    """The cache with another `Record` in place of one."""
    records = list(cache.records)
    records[number] = replace(records[number], record=replace(records[number].record, **changes))
    return replace(cache, records=tuple(records))


def test_embeddings_equal_the_familys_own_in_the_encoders_dtype(cache, spec, folder):
    cached, report = run(cache, spec, folder)
    assert (report.reused, len(report.encoded)) == (0, 4)
    assert cached.has_text and not cache.has_text and cached.folders.text == folder
    with components.open_text_encoder(spec, CPU, NoCallbacks()) as text_encoder:
        for each in cached.records:
            pixels = to_pixels(read_image(each.record.references[0]), each.record.bucket, each.record.crop)
            for caption, path in ((each.record.caption, each.prompt_embeds), ("", each.empty_prompt_embeds)):
                prompt_embeds = load_prompt_embeds(path)
                expected = family_of("longcat_image").encode_prompt(text_encoder, caption, [pixels])
                assert prompt_embeds.dtype == torch.bfloat16 and path.parent == folder
                assert torch.equal(prompt_embeds, expected)


def test_the_encoder_sees_the_reference_cropped_as_it_is_trained(cache, spec, folder):
    wide = with_record(cache, 0, bucket=(128, 64), crop=(0.5, 0.125))
    cached, _ = run(wide, spec, folder)
    record = cached.records[0].record
    pixels = to_pixels(read_image(record.references[0]), (128, 64), (0.5, 0.125))
    assert not torch.equal(pixels, to_pixels(read_image(record.references[0]), (128, 64)))
    with components.open_text_encoder(spec, CPU, NoCallbacks()) as text_encoder:
        expected = family_of("longcat_image").encode_prompt(text_encoder, record.caption, [pixels])
    assert torch.equal(load_prompt_embeds(cached.records[0].prompt_embeds), expected)


def test_a_second_run_opens_neither_text_encoder_nor_vae(cache, spec, folder, opens):
    cold, _ = run(cache, spec, folder)
    assert opens == ["open_text_encoder"]
    again, latents_report = cache_latents(cache.dataset, spec, cache.folders, CPU, NoCallbacks())
    warm, report = run(again, spec, folder)
    assert opens == ["open_text_encoder"]
    assert (latents_report.reused, report.reused) == (4, 4) and report.encoded == latents_report.encoded == ()
    assert warm == cold and warm.fingerprint() == cold.fingerprint()


def test_cold_and_warm_caches_give_the_same_batches_and_no_random_numbers_are_used(cache, spec, folder, tmp_path):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, _ = run(cache, spec, folder)
    cold = load_batch(one.records)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    other, _ = run(cache, spec, tmp_path / "other")
    assert other.fingerprint() == one.fingerprint()
    for batch in (load_batch(run(cache, spec, folder)[0].records), load_batch(other.records)):
        assert torch.equal(batch.latents, cold.latents)
        assert torch.equal(batch.cond_latents[0], cold.cond_latents[0])
        assert torch.equal(batch.prompt_embeds, cold.prompt_embeds)
        assert torch.equal(batch.empty_prompt_embeds, cold.empty_prompt_embeds)
    assert cold.prompt_embeds.shape[:2] == (2, 518)  # 64 px: 1 + 4 vision tokens + 1 + 512


def test_a_changed_instruction_is_encoded_again(cache, spec, folder):
    run(cache, spec, folder)
    changed = with_record(cache, 0, caption="add a red border")
    cached, report = run(changed, spec, folder)
    assert report.encoded == ((f"{cache.records[0].record.name} instruction", "instruction changed"),)
    with safe_open(cached.records[0].prompt_embeds, framework="pt") as file:
        assert file.metadata()["instruction"] == "add a red border"


def test_a_changed_reference_changes_both_embeddings(cache, spec, folder):
    before, _ = run(cache, spec, folder)
    Image.new("RGB", (64, 64), "red").save(cache.records[1].record.references[0])
    after, report = run(cache, spec, folder)
    name = cache.records[1].record.name
    assert report.encoded == (
        (f"{name} instruction", "reference changed"),
        (f"{name} empty instruction", "reference changed"),
    )
    assert after.records[0] == before.records[0]
    assert not torch.equal(
        load_prompt_embeds(after.records[1].empty_prompt_embeds),
        load_prompt_embeds(before.records[1].empty_prompt_embeds),
    )


def test_the_empty_instruction_is_shared_by_all_records_of_a_reference(cache, spec, folder):
    shared = with_record(cache, 1, references=cache.records[0].record.references)
    cached, report = run(shared, spec, folder)
    assert cached.records[0].empty_prompt_embeds == cached.records[1].empty_prompt_embeds
    assert cached.records[0].prompt_embeds != cached.records[1].prompt_embeds
    assert (report.reused, len(report.encoded)) == (1, 3)


@pytest.mark.parametrize(
    ("setting", "value", "why"),
    [
        ("base_model_precision", "fp32", "dtype changed"),
        ("text_encoder_1_precision", "int8-quanto", "precision changed"),
    ],
)
def test_another_precision_is_another_file(cache, spec, folder, setting, value, why):
    if value == "int8-quanto":
        pytest.importorskip("optimum.quanto")
    before, _ = run(cache, spec, folder)
    after, report = run(cache, replace(spec, config=replace(spec.config, **{setting: value})), folder)
    assert {reason for _, reason in report.encoded} == {why} and len(report.encoded) == 4
    one, other = (load_prompt_embeds(c.records[0].prompt_embeds) for c in (before, after))
    assert one.shape == other.shape and not torch.equal(one.float(), other.float())


def test_a_quantised_transformer_has_the_same_embeddings(cache, spec, folder):
    run(cache, spec, folder)
    config = replace(spec.config, base_model_precision="int8-quanto")
    assert run(cache, replace(spec, config=config), folder)[1].reused == 4


def test_another_version_of_transformers_or_of_this_stage_is_another_file(cache, spec, folder, monkeypatch):
    run(cache, spec, folder)
    monkeypatch.setattr(text.text_parts.__globals__["metadata"], "version", lambda name: "0.0.0")
    assert {why for _, why in run(cache, spec, folder)[1].encoded} == {"transformers changed"}
    monkeypatch.setitem(text.text_parts.__globals__, "TEXT_CODE", "next")
    assert {why for _, why in run(cache, spec, folder)[1].encoded} == {"code changed"}


def test_a_card_without_bfloat16_has_files_of_its_own(cache, spec, folder, monkeypatch):
    before, _ = run(cache, spec, folder)
    with monkeypatch.context() as patched:
        patched.setattr(devices, "_lacks_bfloat16", lambda device: "This card has no bfloat16")
        after, report = run(cache, spec, folder)
        assert {why for _, why in report.encoded} == {"encoded in changed"} and len(report.encoded) == 4
        assert load_prompt_embeds(after.records[0].prompt_embeds).dtype == torch.float32
    again, report = run(cache, spec, folder)
    assert (again, report.reused) == (before, 4)
    assert load_prompt_embeds(again.records[0].prompt_embeds).dtype == torch.bfloat16


def test_a_truncated_file_is_refused_by_the_reader_and_made_anew_by_the_stage(cache, spec, folder):
    cached, _ = run(cache, spec, folder)
    path = cached.records[0].prompt_embeds
    expected = load_prompt_embeds(path).clone()
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CacheError, match="Cache Text") as caught:
        load_batch(cached.records)
    assert str(path) in str(caught.value)
    _, report = run(cache, spec, folder)
    assert len(report.encoded) == 1 and report.encoded[0][1].startswith("damaged file replaced")
    assert torch.equal(load_prompt_embeds(path), expected)


def test_the_latents_folders_and_the_data_are_refused(cache, spec, tmp_path, opens):
    for folder in (cache.folders.targets, cache.folders.references):
        with pytest.raises(ConfigError, match="the same folder"):
            run(cache, spec, folder)
    with pytest.raises(ConfigError, match="lies in the data folder"):
        run(cache, spec, tmp_path / "references" / "text")
    assert opens == []


def test_a_cache_of_another_family_is_refused(cache, spec, folder, opens):
    with pytest.raises(ConfigError, match="longcat_video.*longcat_image"):
        run(replace(cache, model_family="longcat_video"), spec, folder)
    assert opens == []


def test_stopping_keeps_finished_files(cache, spec, folder):
    class StopAfterOne(NoCallbacks):
        stages = ()

        def on_event(self, event):
            self.stages = (*self.stages, event.stage)

        def should_stop(self):
            return "caching text" in self.stages

    with pytest.raises(StoppedByUserError, match="1 of 4 done"):
        run(cache, spec, folder, StopAfterOne())
    assert run(cache, spec, folder)[1].reused == 1
