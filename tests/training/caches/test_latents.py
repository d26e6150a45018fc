"""The VAE pass with the tiny twin's real VAE on real picture files."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
from comfyui_longcat.training.caches import latents as stage
from comfyui_longcat.training.caches.cache import CacheFolders
from comfyui_longcat.training.caches.latents import cache_latents, load_latents
from comfyui_longcat.training.data.media import read_image, to_pixels
from comfyui_longcat.training.data.records import Record, Source, TrainingSet
from comfyui_longcat.training.errors import CacheError, ConfigError, DataError, StoppedByUserError
from comfyui_longcat.training.events import NoCallbacks
from comfyui_longcat.training.models.registry import family_of
from comfyui_longcat.training.settings.dataset import DatasetConfig
from comfyui_longcat.training.settings.model import ModelConfig
from comfyui_longcat.training.tiny.examples import draw_example_pairs
from comfyui_longcat.training.weights import components
from comfyui_longcat.training.weights.spec import ModelSpec
from PIL import Image

CPU = torch.device("cpu")
WIDE = (128, 64)


@pytest.fixture(scope="module")
def spec(tiny_checkpoint):
    return ModelSpec(
        config=ModelConfig(model_flavour="tiny-edit", base_model_precision="fp32"),
        models_dirs=(),
        folder=tiny_checkpoint,
    )


def make_dataset(folder, count=3):
    """`count` drawn pairs; the first one goes into a wide bucket, cropped off its middle."""
    targets, references = folder / "targets", folder / "references"
    draw_example_pairs(targets, references, count=count)
    records = tuple(
        Record(
            name=path.stem,
            target=path,
            references=(references / path.name,),
            caption="add a border",
            bucket=(64, 64) if number else WIDE,
            crop=(0.5, 0.5) if number else (0.5, 0.125),
        )
        for number, path in enumerate(sorted(targets.glob("*.png")))
    )
    return TrainingSet(
        sources=(
            Source(
                targets=DatasetConfig(instance_data_dir=str(targets)),
                references=DatasetConfig(instance_data_dir=str(references), dataset_type="conditioning"),
            ),
        ),
        records=records,
    )


@pytest.fixture
def dataset(tmp_path):
    return make_dataset(tmp_path)


@pytest.fixture
def folders(tmp_path):
    return CacheFolders(targets=tmp_path / "cache" / "targets", references=tmp_path / "cache" / "references")


@pytest.fixture
def opens(monkeypatch):
    """Counts how often the VAE is really opened."""
    opened = []
    really_open = stage.open_vae

    def counting(*args):
        opened.append(args)
        return really_open(*args)

    monkeypatch.setattr(stage, "open_vae", counting)
    return opened


def run(dataset, spec, folders, callbacks=None):
    return cache_latents(dataset, spec, folders, CPU, callbacks or NoCallbacks())


def bytes_below(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_latents_equal_the_familys_own_and_lie_apart(dataset, spec, folders):
    cache, report = run(dataset, spec, folders)
    assert (report.reused, len(report.encoded)) == (0, 6)
    assert cache.model_family == "longcat_image" and not cache.has_text
    assert [cached.record for cached in cache.records] == list(dataset.records)
    family = family_of("longcat_image")
    with components.open_vae(spec, CPU, NoCallbacks()) as vae:
        for cached in cache.records:
            width, height = cached.record.bucket
            assert cached.latents.parent == folders.targets and cached.cond_latents[0].parent == folders.references
            for picture, path in (
                (cached.record.target, cached.latents),
                (cached.record.references[0], cached.cond_latents[0]),
            ):
                latents = load_latents(path)
                assert latents.shape == (1, 16, height // 8, width // 8) and latents.dtype == torch.float32
                pixels = to_pixels(read_image(picture), (width, height), cached.record.crop)
                expected = family.encode_pixels(vae, pixels)
                assert torch.equal(latents, expected)


def test_a_second_run_never_opens_the_vae(dataset, spec, folders, opens):
    cold, _ = run(dataset, spec, folders)
    assert len(opens) == 1
    files = bytes_below(folders.targets.parent)
    warm, report = run(dataset, spec, folders)
    assert len(opens) == 1
    assert (report.reused, report.encoded) == (6, ())
    assert warm == cold and warm.fingerprint() == cold.fingerprint()
    assert bytes_below(folders.targets.parent) == files


def test_encoding_is_repeatable_and_leaves_the_global_generator_alone(dataset, spec, folders, tmp_path):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, _ = run(dataset, spec, folders)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    other, _ = run(dataset, spec, CacheFolders(targets=tmp_path / "t", references=tmp_path / "r"))
    assert one.fingerprint() == other.fingerprint()
    for first, second in zip(one.records, other.records, strict=True):
        assert torch.equal(load_latents(first.latents), load_latents(second.latents))


def test_a_changed_picture_and_only_that_is_encoded_again(dataset, spec, folders, opens):
    before, _ = run(dataset, spec, folders)
    changed = dataset.records[1].target
    Image.new("RGB", (64, 64), "red").save(changed)
    after, report = run(dataset, spec, folders)
    assert report.encoded == ((f"{changed.stem} target", "picture changed"),)
    assert len(opens) == 2 and report.reused == 5
    assert before.fingerprint() != after.fingerprint()


def test_another_bucket_is_another_file(dataset, spec, folders):
    run(dataset, spec, folders)
    records = (*dataset.records[:2], replace(dataset.records[2], bucket=WIDE))
    _, report = run(replace(dataset, records=records), spec, folders)
    assert [why for _, why in report.encoded] == ["bucket changed", "bucket changed"]


def test_another_vae_is_another_file(dataset, spec, folders, tmp_path, tiny_checkpoint):
    from safetensors.torch import load_file, save_file

    run(dataset, spec, folders)
    other = tmp_path / "models" / "other"
    shutil.copytree(tiny_checkpoint, other)
    weights = other / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor * 1.01 for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    _, report = run(dataset, replace(spec, folder=other), folders)
    assert {why for _, why in report.encoded} == {"VAE changed"} and len(report.encoded) == 6


def test_one_picture_under_two_names_is_encoded_once(dataset, spec, folders):
    twice = dataset.records[1].target.with_name("twice.png")
    twice.write_bytes(dataset.records[1].target.read_bytes())
    records = (*dataset.records, replace(dataset.records[1], name="twice", target=twice))
    cache, report = run(replace(dataset, records=records), spec, folders)
    assert cache.records[3].latents == cache.records[1].latents
    assert len(report.encoded) == 6 and report.reused == 2


def test_a_subset_for_validation_finds_its_files(dataset, spec, folders, opens):
    cache, _ = run(dataset, spec, folders)
    subset, report = run(replace(dataset, records=dataset.records[:1]), spec, folders)
    assert subset.records == cache.records[:1] and report.reused == 2 and len(opens) == 1


@pytest.mark.parametrize("keep", [0, 200, -1])
def test_a_truncated_file_is_made_anew(dataset, spec, folders, keep):
    cache, _ = run(dataset, spec, folders)
    path = cache.records[0].latents
    latents, whole = load_latents(path).clone(), path.read_bytes()
    path.write_bytes(whole[:keep])
    with pytest.raises(CacheError, match="Cache VAE Latents"):
        load_latents(path)
    _, report = run(dataset, spec, folders)
    assert [(name, why.split(" (")[0]) for name, why in report.encoded] == [
        (f"{dataset.records[0].name} target", "damaged file replaced")
    ]
    assert torch.equal(load_latents(path), latents)


def test_the_same_folder_for_both_sides_is_refused_before_anything_is_done(dataset, spec, tmp_path, opens):
    folders = CacheFolders(targets=tmp_path / "cache", references=tmp_path / "x" / ".." / "cache")
    with pytest.raises(ConfigError, match="the same folder"):
        run(dataset, spec, folders)
    assert opens == [] and not (tmp_path / "cache").exists()


def test_nothing_is_written_among_the_data(dataset, spec, folders, tmp_path):
    data = [tmp_path / "targets", tmp_path / "references"]
    before = [bytes_below(folder) for folder in data]
    with pytest.raises(ConfigError, match="lies in the data folder"):
        run(dataset, spec, replace(folders, references=tmp_path / "targets" / "cache"))
    run(dataset, spec, folders)
    assert [bytes_below(folder) for folder in data] == before


def test_a_picture_that_has_gone_is_named(dataset, spec, folders, opens):
    gone = dataset.records[1].references[0]
    gone.unlink()
    with pytest.raises(DataError) as caught:
        run(dataset, spec, folders)
    assert str(gone) in str(caught.value) and opens == []


class StopAfter(NoCallbacks):
    """Asks to stop after so many events of caching."""

    def __init__(self, count):
        self.count = count
        self.stages = []

    def on_event(self, event):
        self.stages.append(event.stage)

    def should_stop(self):
        return self.stages.count("caching latents") >= self.count


def test_stopping_keeps_finished_files_and_the_next_run_goes_on(dataset, spec, folders):
    callbacks = StopAfter(2)
    with pytest.raises(StoppedByUserError, match="2 of 6 done"):
        run(dataset, spec, folders, callbacks)
    assert callbacks.stages.count("hashing pictures") == 6
    _, report = run(dataset, spec, folders)
    assert (report.reused, len(report.encoded)) == (2, 4)
