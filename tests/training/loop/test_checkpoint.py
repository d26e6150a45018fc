"""Checkpoints: complete or absent, restored to the bit, and damage passed over loudly."""

import contextlib
import subprocess
import sys

import pytest
import torch
from comfyui_longcat.training.errors import CheckpointError
from comfyui_longcat.training.events import CheckpointSaved, NoCallbacks, WarningRaised
from comfyui_longcat.training.files import remove_leftovers
from comfyui_longcat.training.loop.checkpoint import (
    list_checkpoints,
    restore_newest,
    save_checkpoint,
)
from comfyui_longcat.training.loop.state import open_state
from comfyui_longcat.training.loop.train import train_one_step
from comfyui_longcat.training.settings.run import TrainConfig, TrainingOptions

CONFIG = TrainConfig(
    max_train_steps=8,
    learning_rate=1e-2,
    lora_rank=2,
    # A scale that is no power of two: dividing it out of a file again would not give the same bits.
    options=TrainingOptions(
        lora_alpha=1.5, lr_scheduler="cosine", gradient_checkpointing=False, checkpoints_total_limit=2
    ),
)


def opened(trainable, config=CONFIG):
    return open_state(config, trainable.spec, trainable.cache, torch.device("cpu"), {"a": "b"}, NoCallbacks())


def contents(state):
    moments = [state.optimizer.state[parameter] for parameter in state.parameters.values()]
    return {
        "parameters": [parameter.detach().clone() for parameter in state.parameters.values()],
        "moments": [value.clone() for moment in moments for _, value in sorted(moment.items())],
        "generator": [state.generator.get_state()],
        "numbers": [torch.tensor(state.losses), torch.tensor(state.step), torch.tensor(state.scheduler.get_last_lr())],
    }


def assert_equal(first, second):
    for part in first:
        assert len(first[part]) == len(second[part]) > 0
        assert all(torch.equal(a, b) for a, b in zip(first[part], second[part], strict=True)), part


@pytest.fixture(scope="module")
def saved(trainable, tmp_path_factory):
    """A folder with the checkpoints of steps 2 and 4, and what the state was at each and at step 6."""
    folder = tmp_path_factory.mktemp("saved")
    at = {}
    with opened(trainable) as state:
        for step in range(1, 7):
            train_one_step(state)
            if step % 2 == 0:
                at[step] = contents(state)
            if step in (2, 4):
                save_checkpoint(state, folder, NoCallbacks())
    return folder, at


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of the saved checkpoints that a test may damage."""
    import shutil

    return shutil.copytree(saved[0], tmp_path / "checkpoints")


@pytest.mark.slow
def test_restores_to_the_bit_and_goes_on_to_the_bit(trainable, saved):
    folder, at = saved
    with opened(trainable) as state:
        restore_newest(state, folder, NoCallbacks())
        assert (state.step, state.saved_step, state.batches_done) == (4, 4, 4)
        assert_equal(contents(state), at[4])
        for _ in range(2):
            train_one_step(state)
        assert_equal(contents(state), at[6])


def test_without_checkpoints_everything_stays(trainable, tmp_path):
    with opened(trainable) as state:
        restore_newest(state, tmp_path / "none", NoCallbacks())
        assert state.step == 0


@pytest.mark.parametrize("file", ["adapter.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["cut", "gone", "bit"])
def test_a_damaged_newest_one_is_passed_over(trainable, saved, folder, listener, file, damage):
    path = folder / "step-000004" / file
    content = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[-2] ^= 1
        path.write_bytes(content)
    heard = listener()
    with opened(trainable) as state:
        restore_newest(state, folder, heard)
        assert state.step == 2
        assert_equal(contents(state), saved[1][2])
        (warning,) = heard.of(WarningRaised)
        assert "step-000004 is damaged" in warning.message and "Continuing from step-000002" in warning.message
        assert [path.name for path in list_checkpoints(folder)] == ["step-000002"]
        assert (folder / "damaged-step-000004").is_dir()


def test_no_readable_one_is_an_error(trainable, folder):
    for checkpoint in list_checkpoints(folder):
        (checkpoint / "state.json").unlink()
    with opened(trainable) as state, pytest.raises(CheckpointError, match="None of the 2 checkpoints.*step-000004"):
        restore_newest(state, folder, NoCallbacks())


def test_a_checkpoint_of_another_adapter_is_refused(trainable, folder):
    import dataclasses

    config = dataclasses.replace(CONFIG, lora_rank=3)
    with opened(trainable, config) as state, pytest.raises(CheckpointError, match="damaged"):
        restore_newest(state, folder, NoCallbacks())


def test_keeps_the_newest_and_reports(trainable, folder, listener):
    heard = listener()
    with opened(trainable) as state:
        restore_newest(state, folder, heard)
        train_one_step(state)
        save_checkpoint(state, folder, heard)
    assert [path.name for path in list_checkpoints(folder)] == ["step-000004", "step-000005"]
    assert [(event.step, event.folder) for event in heard.of(CheckpointSaved)] == [(5, folder / "step-000005")]
    assert sorted(path.name for path in folder.iterdir()) == ["step-000004", "step-000005"]


def test_leftovers_of_a_killed_process_are_no_checkpoints_and_go(folder):
    (folder / ".step-000006.abc.tmp").mkdir()
    (folder / "step-000006.part").mkdir()
    assert [path.name for path in list_checkpoints(folder)] == ["step-000002", "step-000004"]
    remove_leftovers(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["step-000002", "step-000004", "step-000006.part"]


def test_memory_is_given_back(trainable):
    with opened(trainable) as state:
        train_one_step(state)
        parameter = next(iter(state.parameters.values()))
        assert state.optimizer.state and parameter.grad is None
    assert state.transformer is None
    assert not state.parameters and not state.optimizer.state and not state.optimizer.param_groups


DISK_FULL = """
import resource, sys, torch
from pathlib import Path
sys.path.insert(0, {tests!r})
from conftest import make_trainable
from comfyui_longcat.training.settings.run import TrainConfig, TrainingOptions
from comfyui_longcat.training.errors import CheckpointError
from comfyui_longcat.training.events import NoCallbacks, StepReport
from comfyui_longcat.training.loop.train import RunPlaces, train

torch.set_num_threads(1)
folder = Path({folder!r})
trainable = make_trainable(folder / "data", Path({checkpoint!r}))

class FillsUp(NoCallbacks):
    def on_event(self, event):
        if isinstance(event, StepReport) and event.step == 3:
            # No file may grow beyond this: like a disk that is full.
            resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY))

options = TrainingOptions(checkpoint_step_interval=2, gradient_checkpointing=False)
config = TrainConfig(run_name="full", max_train_steps=6, learning_rate=1e-2, lora_rank=2, options=options)
places = RunPlaces(runs_dir=folder / "runs", lora_dir=folder / "loras", device=torch.device("cpu"))
try:
    train(config, trainable.spec, trainable.cache, places, FillsUp())
except CheckpointError as error:
    sys.stdout.write(str(error))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
sys.stdout.write("\\n" + ",".join(sorted(p.name for p in (folder / "runs" / "full" / "checkpoints").iterdir())))
result = train(config, trainable.spec, trainable.cache, places, NoCallbacks())
whole = train(TrainConfig(**{{**vars(config), "run_name": "whole", "restart": True}}), trainable.spec,
              trainable.cache, places, NoCallbacks())
sys.stdout.write("\\n" + str(result.losses == whole.losses and result.lora.read_bytes() == whole.lora.read_bytes()))
"""


@pytest.mark.slow
def test_a_full_disk_leaves_the_previous_checkpoint_and_the_run_goes_on(tmp_path, tiny_checkpoint):
    pytest.importorskip("resource")
    from pathlib import Path

    # Between the sizes of adapter.safetensors and optimizer.safetensors: a checkpoint half way.
    script = DISK_FULL.format(
        tests=str(Path(__file__).parents[1]), folder=str(tmp_path), checkpoint=str(tiny_checkpoint), limit=60_000
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    message, left, same = done.stdout.splitlines()[-3:]
    print(message)
    assert "checkpoint of step 4 could not be written" in message and "step-000002 is intact" in message
    assert left == "step-000002"
    assert same == "True"


def test_nothing_is_left_of_a_checkpoint_that_failed(trainable, tmp_path):
    folder = tmp_path / "checkpoints"
    folder.write_text("a file where the folder should be")
    with opened(trainable) as state:
        train_one_step(state)
        with pytest.raises(CheckpointError, match="could not be written.*There is no older checkpoint"):
            save_checkpoint(state, folder, NoCallbacks())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints"]
    with contextlib.suppress(FileNotFoundError):
        assert folder.read_text().startswith("a file")
