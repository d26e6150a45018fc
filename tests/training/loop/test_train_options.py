"""What the rarely used options do to a whole run: moving average, more steps, debug pictures."""

from dataclasses import replace

import pytest
import torch
from comfyui_longcat.training.data.media import read_image
from comfyui_longcat.training.events import NoCallbacks, RunStarted, WarningRaised
from comfyui_longcat.training.loop.previews import prepare_previews
from comfyui_longcat.training.loop.train import RunPlaces, train
from comfyui_longcat.training.lora.file import read_lora
from comfyui_longcat.training.lora.transformer import open_transformer
from comfyui_longcat.training.settings.run import TrainConfig, TrainingOptions
from comfyui_longcat.training.settings.validation import ValidationConfig
from comfyui_longcat.training.weights.spec import LoraUse
from safetensors.torch import load_file

OPTIONS = TrainingOptions(checkpoint_step_interval=1, checkpoints_total_limit=0, gradient_checkpointing=False)
CONFIG = TrainConfig(run_name="run", max_train_steps=4, learning_rate=1e-2, lora_rank=2, options=OPTIONS)
VALIDATION = ValidationConfig(
    validation_steps=4, validation_resolution="64x64", validation_num_inference_steps=2, num_samples=1
)
CPU = torch.device("cpu")


@pytest.fixture
def places(tmp_path):
    return RunPlaces(runs_dir=tmp_path / "runs", lora_dir=tmp_path / "loras", device=CPU)


def run(trainable, places, config=CONFIG, callbacks=None):
    return train(config, trainable.spec, trainable.cache, places, callbacks or NoCallbacks())


def trained_b(folder, step):
    """The exact B weights of a checkpoint by diffusers name."""
    tensors = load_file(folder / "checkpoints" / f"step-{step:06d}" / "optimizer.safetensors")
    ending = ".lora_B.trained.weight/parameter"
    return {key.removesuffix(ending): tensor for key, tensor in tensors.items() if key.endswith(ending)}


@pytest.mark.slow
def test_the_average_is_what_is_saved_and_previewed_and_the_training_does_not_notice(trainable, places, tmp_path):
    averaged = replace(
        CONFIG, run_name="averaged", validation=VALIDATION, options=replace(OPTIONS, use_ema=True, ema_decay=0.2)
    )
    plain, result = run(trainable, places), run(trainable, places, averaged)
    assert result.losses == plain.losses
    expected = None
    for step in range(1, 5):
        decay = min(step / (9 + step), 0.2) if step > 1 else 0.0
        weights = trained_b(result.folder, step)
        expected = {
            name: weight if expected is None else decay * expected[name] + (1 - decay) * weight
            for name, weight in weights.items()
        }
    saved = {name: pair.b for name, pair in read_lora(result.lora).items()}
    error = max((saved[name] - expected[name]).abs().max().item() for name in expected)
    moved = max((saved[name] - weights[name]).abs().max().item() for name in expected)
    print(f"average: {error:.1e} from the formula, {moved:.1e} from the last weights (at most 1e-8, at least 1e-4)")
    assert saved.keys() == expected.keys() and error < 1e-8 and moved > 1e-4

    spec = trainable.spec.with_lora(LoraUse(path=result.lora))
    previews = prepare_previews(VALIDATION, spec, trainable.cache, tmp_path / "again", CPU, NoCallbacks())
    with open_transformer(spec, CPU, NoCallbacks()) as transformer:
        assert previews.show(transformer, 4, NoCallbacks()) is None
    (shown,), (again,) = result.samples, sorted((tmp_path / "again").glob("*.png"))
    assert shown.read_bytes() == again.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("options", [OPTIONS, replace(OPTIONS, use_ema=True, optimizer="adafactor")])
def test_a_finished_run_goes_on_to_more_steps_like_a_whole_one(trainable, places, listener, options):
    config = replace(CONFIG, options=options)
    whole = run(trainable, places, replace(config, run_name="whole"))
    short = run(trainable, places, replace(config, max_train_steps=2))
    before = short.lora.read_bytes()
    heard = listener()
    longer = run(trainable, places, config, heard)
    (started,) = heard.of(RunStarted)
    assert (started.first_step, started.total_steps, started.resumed) == (3, 4, True)
    assert longer.folder == short.folder and longer.losses == whole.losses
    assert longer.lora.read_bytes() == whole.lora.read_bytes()
    # The LoRA of the short run is still there, and the user is told the new name.
    assert (short.lora.read_bytes(), longer.lora.name) == (before, "run-2.safetensors")
    assert any("run-2.safetensors" in event.message for event in heard.of(WarningRaised))
    assert run(trainable, places, config, heard) == longer
    assert len(heard.of(RunStarted)) == 1


def test_fewer_steps_are_another_run(trainable, places):
    longer = run(trainable, places)
    short = run(trainable, places, replace(CONFIG, max_train_steps=2))
    assert short.folder.name == "run-2" and short.losses == longer.losses[:2]


def test_more_steps_are_another_run_where_the_learning_rate_depends_on_them(trainable, places, listener):
    falling = replace(CONFIG, max_train_steps=1, options=replace(OPTIONS, lr_scheduler="linear"))
    run(trainable, places, falling)
    heard = listener()
    assert run(trainable, places, replace(falling, max_train_steps=2), heard).folder.name == "run-2"
    assert not heard.of(RunStarted)[0].resumed


def test_debug_pictures_show_the_first_batches_and_leave_the_training_alone(trainable, places):
    plain = run(trainable, places)
    config = replace(CONFIG, run_name="seen", train_batch_size=2, options=replace(OPTIONS, debug_images=True))
    run(trainable, places, config)
    seen = run(trainable, places, replace(CONFIG, run_name="one", options=replace(OPTIONS, debug_images=True)))
    assert seen.losses == plain.losses
    pictures = sorted((places.runs_dir / "seen" / "debug").iterdir())
    assert [path.name for path in pictures] == [f"batch-{number:06d}.png" for number in (1, 2, 3)]
    two, one = read_image(pictures[0]), read_image(places.runs_dir / "one" / "debug" / "batch-000001.png")
    assert two.width == one.width and two.height > one.height
