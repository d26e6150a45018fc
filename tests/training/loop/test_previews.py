"""Previews: their size, their pictures, and that the training never notices them; failures that show."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from comfyui_longcat.training.data.media import read_image
from comfyui_longcat.training.errors import ConfigError, PreviewError, StoppedByUserError
from comfyui_longcat.training.events import (
    NoCallbacks,
    RunFinished,
    SamplesReady,
    StageProgress,
    StepReport,
    WarningRaised,
)
from comfyui_longcat.training.loop.previews import newest_pictures, prepare_previews, preview_size
from comfyui_longcat.training.loop.train import RunPlaces, train
from comfyui_longcat.training.lora.transformer import open_transformer
from comfyui_longcat.training.settings.run import TrainConfig, TrainingOptions
from comfyui_longcat.training.settings.validation import ValidationConfig

VALIDATION = ValidationConfig(
    validation_steps=2,
    validation_resolution="64x64",
    validation_num_inference_steps=2,
    validation_guidance=3.0,
    num_samples=2,
)
CONFIG = TrainConfig(
    run_name="run",
    max_train_steps=3,
    learning_rate=1e-2,
    lora_rank=2,
    options=TrainingOptions(gradient_checkpointing=False),
    validation=VALIDATION,
)
CPU = torch.device("cpu")


@pytest.fixture
def places(tmp_path):
    return RunPlaces(runs_dir=tmp_path / "runs", lora_dir=tmp_path / "loras", device=CPU)


@pytest.mark.parametrize(
    ("reference", "resolution", "size"),
    [
        ((1000, 1000), "768x768", (768, 768)),
        # 480 is off the 64 grid: the sides asked for, where the reference has their aspect, in either orientation.
        ((960, 1664), "480x832", (480, 832)),
        ((1664, 960), "480x832", (832, 480)),
        # The reference's own aspect, in the area asked for.
        ((1000, 1000), "480x832", (576, 576)),
        ((600, 900), "1024x1024", (832, 1216)),
        ((64, 64), "64x64", (64, 64)),
    ],
)
def test_size_follows_the_reference_in_the_area_asked_for(reference, resolution, size):
    assert preview_size(reference, resolution) == size


def prepared(trainable, tmp_path, config=VALIDATION, callbacks=None, cache=None):
    return prepare_previews(
        config, trainable.spec, cache or trainable.cache, tmp_path / "samples", CPU, callbacks or NoCallbacks()
    )


def loaded(heard):
    stages = [event.stage for event in heard.of(StageProgress)]
    return {stage.removeprefix("loading the ") for stage in stages if stage.startswith("loading")}


def test_encodes_once_then_loads_nothing(trainable, tmp_path, listener):
    config = replace(VALIDATION, validation_prompt="Make it green.\n\nMake it blue.", num_samples=3)
    first, heard = listener(), listener()
    inputs = prepared(trainable, tmp_path, config, first).inputs
    again = prepared(trainable, tmp_path, config, heard).inputs
    assert loaded(first) == {"text encoder"} and not loaded(heard)
    assert [each.name for each in inputs] == [record.record.name for record in trainable.cache.records[:3]]
    for one, two in zip(inputs, again, strict=True):
        assert torch.equal(one.prompt_embeds, two.prompt_embeds)
    # Line n goes with sample n, the last one with the rest: samples 1 and 2 share theirs, but not the reference.
    assert not torch.equal(inputs[0].prompt_embeds, inputs[1].prompt_embeds)
    assert inputs[0].latents_shape == (1, 16, 8, 8)


def test_captions_of_the_pairs_are_hits_of_the_training_cache(trainable, tmp_path, listener):
    heard = listener()
    inputs = prepared(trainable, tmp_path, callbacks=heard).inputs
    assert len(inputs) == 2 and not loaded(heard)


def test_evaluation_pairs_need_their_text(trainable, tmp_path):
    cache = replace(trainable.cache, folders=replace(trainable.cache.folders, text=None))
    with pytest.raises(ConfigError, match="Cache Text"):
        prepared(trainable, tmp_path, cache=cache)


def test_leaves_the_model_and_all_random_state_as_they_were(trainable, tmp_path, listener):
    previews, heard = prepared(trainable, tmp_path), listener()
    with open_transformer(trainable.spec, CPU, NoCallbacks()) as transformer:
        transformer.train()
        weights = {name: tensor.clone() for name, tensor in transformer.state_dict().items()}
        torch.manual_seed(3)
        state = torch.get_rng_state()
        with torch.enable_grad():
            assert previews.show(transformer, 2, heard) is None
            assert torch.is_grad_enabled()
        assert torch.equal(torch.get_rng_state(), state)
        assert transformer.training
        assert all(torch.equal(weights[name], tensor) for name, tensor in transformer.state_dict().items())
    (event,) = heard.of(SamplesReady)
    assert event.paths == newest_pictures(tmp_path / "samples", heard)
    names = [record.record.name for record in trainable.cache.records[:2]]
    assert [path.name for path in event.paths] == [f"step-000002-{i:02d}-{name}.png" for i, name in enumerate(names)]
    for path, image in zip(event.paths, event.images, strict=True):
        assert read_image(path).tobytes() == image.tobytes() and image.size == (64, 64)
    assert event.images[0].tobytes() != event.images[1].tobytes()


@pytest.mark.slow
def test_pictures_change_with_the_lora_and_not_from_run_to_run(trainable, places):
    first = train(CONFIG, trainable.spec, trainable.cache, places, NoCallbacks())
    again = train(replace(CONFIG, run_name="again"), trainable.spec, trainable.cache, places, NoCallbacks())

    def pictures(result):
        return {path.name: path.read_bytes() for path in (result.folder / "samples").iterdir()}

    assert pictures(first) == pictures(again)
    # Before the first step, every second, and after the last.
    assert sorted({name[:11] for name in pictures(first)}) == ["step-000000", "step-000002", "step-000003"]
    assert [path.name[:11] for path in first.samples] == ["step-000003"] * 2
    of_first_sample = [pictures(first)[name] for name in sorted(pictures(first)) if "-00-" in name[11:15]]
    assert len(set(of_first_sample)) == 3


@pytest.mark.slow
def test_training_is_the_same_with_and_without(trainable, places):
    with_previews = train(CONFIG, trainable.spec, trainable.cache, places, NoCallbacks())
    plain = replace(CONFIG, run_name="plain", validation=None)
    without = train(plain, trainable.spec, trainable.cache, places, NoCallbacks())
    assert with_previews.losses == without.losses
    assert with_previews.lora.read_bytes() == without.lora.read_bytes()
    assert without.samples == ()


@pytest.mark.slow
def test_stopped_in_the_middle_of_a_preview_saves_and_makes_it_up_later(trainable, places, listener):
    class StopsWhileSampling(NoCallbacks):
        step = 0
        sampling = False

        def on_event(self, event):
            self.step = event.step if isinstance(event, StepReport) else self.step
            self.sampling = isinstance(event, StageProgress) and event.stage == "sampling previews"

        def should_stop(self):
            return self.sampling and self.step == 2

    with pytest.raises(StoppedByUserError, match="Stopped at step 2 of 3"):
        train(CONFIG, trainable.spec, trainable.cache, places, StopsWhileSampling())
    heard = listener()
    train(CONFIG, trainable.spec, trainable.cache, places, heard)
    assert [event.step for event in heard.of(SamplesReady)] == [2, 3]
    assert [event.step for event in heard.of(StepReport)] == [3]


@pytest.fixture
def own_model(trainable, tmp_path):
    """The spec on a copy of the model that a test may damage."""
    folder = shutil.copytree(trainable.spec.folder, tmp_path / "model")
    return replace(trainable.spec, folder=folder)


class LosesTheVae(NoCallbacks):
    """Truncates the VAE's weights when step `step` is reported; keeps all events."""

    def __init__(self, folder, step):
        self.path = folder / "vae" / "diffusion_pytorch_model.safetensors"
        self.step = step
        self.events = []

    def on_event(self, event):
        self.events.append(event)
        if isinstance(event, StepReport) and event.step == self.step:
            self.path.write_bytes(self.path.read_bytes()[:1000])


@pytest.mark.slow
def test_a_later_failure_shows_at_the_end_and_the_lora_is_there(trainable, own_model, places, listener):
    config = replace(CONFIG, options=replace(CONFIG.options, checkpoint_step_interval=2))
    callbacks = LosesTheVae(own_model.folder, step=2)
    with pytest.raises(PreviewError, match=r"finished and saved as .*run\.safetensors, but 2 .*steps 2, 3") as caught:
        train(config, own_model, trainable.cache, places, callbacks)
    print(caught.value)
    assert len([event for event in callbacks.events if isinstance(event, RunFinished)]) == 1
    warnings = [event.message for event in callbacks.events if isinstance(event, WarningRaised)]
    assert any("previews of step 2 failed" in message and "training continues" in message for message in warnings)
    manifest = json.loads((places.runs_dir / "run" / "manifest.json").read_text())
    assert manifest["state"] == "finished" and set(manifest["preview_failures"]) == {"2", "3"}
    plain = replace(config, run_name="plain", validation=None)
    whole = train(plain, trainable.spec, trainable.cache, places, NoCallbacks())
    assert (places.lora_dir / "run.safetensors").read_bytes() == whole.lora.read_bytes()
    # The cause is gone: the previews are made up for, from checkpoints of their steps, and the LoRA stays as it is.
    shutil.copytree(trainable.spec.folder, own_model.folder, dirs_exist_ok=True)
    heard = listener()
    again = train(config, own_model, trainable.cache, places, heard)
    assert not heard.of(StepReport) and again.lora.read_bytes() == whole.lora.read_bytes()
    assert {event.step for event in heard.of(SamplesReady)} == {2, 3}
    assert json.loads((places.runs_dir / "run" / "manifest.json").read_text())["preview_failures"] == {}
    never_failed = train(replace(config, run_name="sound"), trainable.spec, trainable.cache, places, NoCallbacks())
    made_up, sound = (result.folder / "samples" for result in (again, never_failed))
    assert {path.name: path.read_bytes() for path in made_up.iterdir()} == {
        path.name: path.read_bytes() for path in sound.iterdir()
    }


def test_a_failure_before_the_first_step_ends_the_run_at_once(trainable, places, listener):
    heard = listener()
    # A picture cannot be saved where a file stands in the place of the folder.
    (places.runs_dir / "run").mkdir(parents=True)
    config = replace(CONFIG, validation=replace(VALIDATION, num_samples=1))

    class BlocksTheFolder(type(heard)):
        def on_event(self, event):
            super().on_event(event)
            if isinstance(event, StageProgress) and event.stage == "sampling previews":
                (places.runs_dir / "run" / "samples").write_text("a file")

    callbacks = BlocksTheFolder()
    with pytest.raises(PreviewError, match="previews of step 0 failed.*Nothing is trained yet"):
        train(config, trainable.spec, trainable.cache, places, callbacks)
    assert not callbacks.of(StepReport)
    manifest = json.loads((places.runs_dir / "run" / "manifest.json").read_text())
    assert manifest["state"] == "failed" and "PreviewError" in manifest["message"]
