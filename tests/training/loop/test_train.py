"""Whole runs on the tiny twin: the same numbers whatever happens on the way, and a LoRA that has learnt."""

import gc
from dataclasses import replace

import comfyui_longcat.training.loop.train as loop
import pytest
import torch
from comfyui_longcat.training.errors import (
    CacheError,
    CheckpointError,
    ConfigError,
    NonFiniteLossError,
    StoppedByUserError,
)
from comfyui_longcat.training.events import (
    CheckpointSaved,
    NoCallbacks,
    RunFinished,
    RunStarted,
    StageProgress,
    StepReport,
)
from comfyui_longcat.training.files import write_safetensors
from comfyui_longcat.training.loop.batches import BatchOrder, load_batch
from comfyui_longcat.training.loop.check import check_run
from comfyui_longcat.training.loop.checkpoint import list_checkpoints
from comfyui_longcat.training.loop.step import Draws, forward_step
from comfyui_longcat.training.loop.train import RunPlaces, train
from comfyui_longcat.training.lora.file import read_lora, read_metadata
from comfyui_longcat.training.lora.transformer import open_transformer
from comfyui_longcat.training.models.registry import family_of
from comfyui_longcat.training.settings.run import TrainConfig, TrainingOptions
from comfyui_longcat.training.weights.spec import LoraUse

OPTIONS = TrainingOptions(checkpoint_step_interval=2, gradient_checkpointing=False)
CONFIG = TrainConfig(
    run_name="run", max_train_steps=5, learning_rate=1e-2, lora_rank=2, train_batch_size=2, options=OPTIONS
)


@pytest.fixture
def places(tmp_path):
    return RunPlaces(runs_dir=tmp_path / "runs", lora_dir=tmp_path / "loras", device=torch.device("cpu"))


def run(trainable, places, callbacks=None, config=CONFIG):
    return train(config, trainable.spec, trainable.cache, places, callbacks or NoCallbacks())


class CrashError(BaseException):
    """Nothing of the loop gets a chance to save."""


class CrashesAt(NoCallbacks):
    """A program that dies when step `step` is reported."""

    def __init__(self, step):
        self.step = step

    def on_event(self, event):
        if isinstance(event, StepReport) and event.step == self.step:
            raise CrashError(f"step {self.step}")


VARIANTS = {
    "plain": CONFIG,
    "accumulation and cosine": replace(
        CONFIG,
        options=replace(OPTIONS, gradient_accumulation_steps=2, lr_scheduler="cosine", lr_warmup_steps=1),
    ),
    "everything else": replace(
        CONFIG,
        options=replace(
            OPTIONS,
            gradient_checkpointing=True,
            lora_target="official",
            lora_alpha=3.0,
            max_grad_norm=0.01,
            caption_dropout_probability=0.5,
        ),
    ),
    "adafactor, average, polynomial": replace(
        CONFIG,
        options=replace(
            OPTIONS, optimizer="adafactor", use_ema=True, ema_decay=0.5, lr_scheduler="polynomial", lr_power=2.0
        ),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_stopped_and_a_crashed_run_end_like_a_whole_one(trainable, places, listener, variant):
    config = VARIANTS[variant]
    whole = run(trainable, places, config=replace(config, run_name="whole"))
    parted = replace(config, run_name="parted")
    with pytest.raises(StoppedByUserError, match="Stopped at step 1 of 5"):
        run(trainable, places, listener(stop_after=1), parted)
    with pytest.raises(CrashError):
        run(trainable, places, CrashesAt(4), parted)  # the last checkpoint is of step 2: 3 and 4 are done twice
    heard = listener()
    result = run(trainable, places, heard, parted)
    (started,) = heard.of(RunStarted)
    assert (started.first_step, started.resumed) == (3, True)
    print(f"{variant}: losses {whole.losses}")
    assert result.losses == whole.losses and len(result.losses) == 5
    assert result.lora.read_bytes() == whole.lora.read_bytes()
    assert result.lora.name == "parted.safetensors"


@pytest.mark.parametrize(
    ("place", "raised"),
    [
        ("forward", torch.OutOfMemoryError("out of memory")),
        ("backward", MemoryError()),
        ("clipping", OSError(28, "No space left")),
    ],
)
def test_an_error_in_the_middle_of_a_step_loses_no_step(trainable, places, listener, monkeypatch, raised, place):
    whole = run(trainable, places, config=replace(CONFIG, run_name="whole"))
    calls = []

    def failing(name, of, number):
        real = getattr(of, name)

        def fails_once(*args, **kwargs):
            calls.append(name)
            if len(calls) == number:
                raise raised
            return real(*args, **kwargs)

        monkeypatch.setattr(of, name, fails_once)

    # Three steps are done, the fourth is under way: its random numbers are drawn already.
    failing(
        *{
            "forward": ("forward_step", loop, 4),
            "backward": ("backward", torch.Tensor, 4),
            "clipping": ("clip_gradients", loop, 4),
        }[place]
    )
    with pytest.raises(type(raised)):
        run(trainable, places)
    heard = listener()
    result = run(trainable, places, heard)
    assert [event.first_step for event in heard.of(RunStarted)] == [4]
    assert result.losses == whole.losses and result.lora.read_bytes() == whole.lora.read_bytes()


def test_an_error_inside_the_optimisers_step_saves_nothing_of_it(trainable, places, listener, monkeypatch):
    whole = run(trainable, places, config=replace(CONFIG, run_name="whole"))
    real, calls = torch.optim.AdamW.step, []

    def fails_half_way(self, *args, **kwargs):
        real(self, *args, **kwargs)
        calls.append(1)
        if len(calls) == 4:
            raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(torch.optim.AdamW, "step", fails_half_way)
    with pytest.raises(torch.OutOfMemoryError):
        run(trainable, places)
    heard = listener()
    result = run(trainable, places, heard)
    assert [event.first_step for event in heard.of(RunStarted)] == [3]  # the last checkpoint is of step 2
    assert result.losses == whole.losses and result.lora.read_bytes() == whole.lora.read_bytes()


def test_reports_every_step_and_leaves_its_files(trainable, places, listener):
    heard = listener()
    result = run(trainable, places, heard)
    assert [event.step for event in heard.of(StepReport)] == [1, 2, 3, 4, 5]
    assert tuple(event.loss for event in heard.of(StepReport)) == result.losses
    assert [event.step for event in heard.of(CheckpointSaved)] == [2, 4, 5]
    assert [(event.step, event.lora) for event in heard.of(RunFinished)] == [(5, result.lora)]
    assert result.folder == places.runs_dir / "run" and result.lora == places.lora_dir / "run.safetensors"
    assert {path.name for path in result.folder.iterdir()} == {
        "checkpoints",
        "config.json",
        "events.jsonl",
        "manifest.json",
        "run.lock",
        "run.safetensors",
    }
    metadata = read_metadata(result.lora)
    assert metadata["step"] == "5" and metadata["model_family"] == "longcat_image"
    assert metadata["dataset_fingerprint"] == trainable.cache.fingerprint()
    text = str(metadata)
    assert str(places.runs_dir) not in text and str(trainable.spec.folder) not in text


def test_the_adapter_has_moved(trainable, places):
    result = run(trainable, places)
    assert all(pair.b.abs().max() > 0 for pair in read_lora(result.lora).values())


def test_a_finished_run_returns_at_once_and_loads_nothing(trainable, places, listener):
    first = run(trainable, places)
    heard = listener()
    assert run(trainable, places, heard) == first
    assert not heard.of(StageProgress) and not heard.of(StepReport)
    first.lora.unlink()
    assert run(trainable, places).lora.read_bytes() == (first.folder / "run.safetensors").read_bytes()


@pytest.mark.slow
def test_other_settings_do_not_touch_an_older_run(trainable, places):
    first = run(trainable, places)
    before = {path: path.read_bytes() for path in first.folder.rglob("*") if path.is_file()}
    second = run(trainable, places, config=replace(CONFIG, seed=1))
    assert second.folder.name == "run-2" and second.lora.name == "run-2.safetensors"
    assert second.losses != first.losses
    assert {path: path.read_bytes() for path in first.folder.rglob("*") if path.is_file()} == before
    assert first.lora.is_file()


@pytest.mark.slow
def test_trains_inside_the_hosts_inference_mode_and_leaves_random_state_alone(trainable, places):
    torch.manual_seed(11)
    state = torch.get_rng_state()
    outside = run(trainable, places)
    with torch.inference_mode():
        inside = run(trainable, places, config=replace(CONFIG, run_name="inside"))
        assert torch.is_inference_mode_enabled()
    with torch.no_grad():
        without = run(trainable, places, config=replace(CONFIG, run_name="without"))
        assert not torch.is_grad_enabled()
    assert inside.losses == without.losses == outside.losses
    assert inside.lora.read_bytes() == outside.lora.read_bytes()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.slow
def test_trains_on_top_of_another_lora(trainable, places):
    first = run(trainable, places)
    spec = trainable.spec.with_lora(LoraUse(path=first.lora))
    second = train(replace(CONFIG, run_name="top"), spec, trainable.cache, places, NoCallbacks())
    assert read_lora(second.lora).keys() == read_lora(first.lora).keys()
    assert second.losses[0] < first.losses[0]  # it starts from what the first has learnt


def alive(kind):
    gc.collect()
    return [thing for thing in gc.get_objects() if type(thing).__name__ == kind]


def parameters_alive():
    return sum(p.numel() for model in alive("LongCatImageTransformer2DModel") for p in model.parameters())


@pytest.mark.slow
def test_memory_is_given_back_after_the_end_a_stop_and_an_error(trainable, places, listener):
    before = parameters_alive()
    errors = []  # kept on purpose: a host shows the error, and with it its traceback, long after
    run(trainable, places)
    for callbacks in (listener(stop_after=1), CrashesAt(2)):
        with pytest.raises((StoppedByUserError, CrashError)) as caught:
            run(trainable, places, callbacks, replace(CONFIG, run_name="other", seed=8))
        errors.append(caught.value)
    assert parameters_alive() == before
    assert not any(optimizer.state for optimizer in alive("AdamW"))


def with_nan_latents(cache, folder, name):
    latents = torch.full((1, 16, 8, 8), float("nan"))
    path = folder / "nan.safetensors"
    shape = {"format": "1", "tensor": "latents"}
    write_safetensors(path, {"latents": latents}, shape)
    records = tuple(replace(r, latents=path) if r.record.name == name else r for r in cache.records)
    return replace(cache, records=records)


def test_a_nan_loss_stops_before_the_optimiser_step(trainable, places, tmp_path):
    config = replace(
        CONFIG, train_batch_size=1, max_train_steps=30, options=replace(OPTIONS, checkpoint_step_interval=1)
    )
    (bad,) = BatchOrder(trainable.cache, 1, config.seed).batch(3)
    name = bad.record.name
    cache = with_nan_latents(trainable.cache, tmp_path, name)
    with pytest.raises(NonFiniteLossError, match=rf"Step 4: the loss is nan .*samples were {name}\."):
        train(config, trainable.spec, cache, places, NoCallbacks())
    checkpoints = list_checkpoints(places.runs_dir / "run" / "checkpoints")
    assert checkpoints[-1].name == "step-000003"
    assert all(pair.b.isfinite().all() for pair in read_lora(checkpoints[-1] / "adapter.safetensors").values())


@pytest.mark.slow
def test_a_lora_folder_that_is_a_file_loses_nothing(trainable, places):
    places.lora_dir.write_text("a file")
    with pytest.raises(CheckpointError, match="could not be copied"):
        run(trainable, places)
    places.lora_dir.unlink()
    assert run(trainable, places).lora.is_file()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_batch_size": 13}, "train_batch_size is 13, but an epoch has only 12 samples"),
        ({"options": TrainingOptions(lr_warmup_steps=5)}, "lr_warmup_steps is 5 and max_train_steps 5"),
    ],
)
def test_refuses_settings_that_do_not_fit_each_other(trainable, places, settings, message):
    with pytest.raises(ConfigError, match=message):
        run(trainable, places, config=replace(CONFIG, **settings))
    assert not places.runs_dir.exists()


def test_refuses_caches_that_do_not_fit(trainable, tmp_path):
    cache, spec = trainable.cache, trainable.spec
    first = cache.records[0]
    bad = {
        "made for longcat_video, the model is longcat_image": replace(cache, model_family="longcat_video"),
        "holds no sample": replace(cache, records=()),
        "no embedded instructions": replace(cache, records=(replace(first, prompt_embeds=None),)),
        f"1 of 1 samples have none: {first.record.name}": replace(
            cache, records=(replace(first, record=replace(first.record, references=())),)
        ),
    }
    for message, faulty in bad.items():
        with pytest.raises(ConfigError, match=message):
            check_run(CONFIG, spec, faulty, None)
    gone = replace(cache, records=(replace(first, latents=tmp_path / "gone.safetensors"),))
    with pytest.raises(CacheError, match=r"1 of 4 files of the cache are gone, the first is .*gone\.safetensors"):
        check_run(replace(CONFIG, train_batch_size=1), spec, gone, None)
    check_run(CONFIG, spec, cache, None)


def test_repeats_count_as_samples(trainable):
    often = tuple(replace(c, record=replace(c.record, repeats=1)) for c in trainable.cache.records)
    check_run(replace(CONFIG, train_batch_size=24), trainable.spec, replace(trainable.cache, records=often), None)


def evaluate_loss(spec, cache):
    """Mean loss over all pairs at the middles of 8 equal ranges of noise levels, with noise of a fixed seed."""
    generator = torch.Generator().manual_seed(7)
    family = family_of(spec.config.model_family)
    batch = load_batch(cache.records)
    losses = []
    with open_transformer(spec, torch.device("cpu"), NoCallbacks()) as transformer, torch.no_grad():
        for part in range(8):
            draws = Draws(
                noise=torch.randn(batch.latents.shape, generator=generator),
                sigmas=torch.full((len(cache.records),), (part + 0.5) / 8),
                dropped=torch.zeros(len(cache.records), dtype=torch.bool),
            )
            losses.append(forward_step(family, transformer, batch, draws).loss.item())
    return sum(losses) / len(losses)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "int8-quanto"])
def test_a_trained_lora_lowers_the_loss_on_its_own_pairs_by_a_quarter(trainable, places, precision):
    if precision == "int8-quanto":
        pytest.importorskip("optimum.quanto")
    spec = replace(trainable.spec, config=replace(trainable.spec.config, base_model_precision=precision))
    config = TrainConfig(
        run_name="learns",
        max_train_steps=40,
        learning_rate=1e-2,
        lora_rank=16,
        train_batch_size=4,
        options=TrainingOptions(lora_target="official", gradient_checkpointing=False),
    )
    result = train(config, spec, trainable.cache, places, NoCallbacks())
    without, trained = (
        evaluate_loss(spec.with_lora(LoraUse(path=result.lora, strength=strength)), trainable.cache)
        for strength in (0.0, 1.0)
    )
    print(
        f"{precision}: loss {without:.4f} at strength 0, {trained:.4f} with the LoRA: {1 - trained / without:.1%} less"
    )
    assert trained < 0.75 * without
