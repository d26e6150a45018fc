"""A virus scanner, the search index or an open window refuses one rename or one delete: the run does not notice."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import comfyui_longcat.training.files as files
import pytest
import torch
from comfyui_longcat.training.caches.latents import cache_latents
from comfyui_longcat.training.events import NoCallbacks
from comfyui_longcat.training.loop.train import RunPlaces, train
from comfyui_longcat.training.settings.run import TrainConfig, TrainingOptions
from comfyui_longcat.training.settings.validation import ValidationConfig

CPU, QUIET = torch.device("cpu"), NoCallbacks()
CONFIG = TrainConfig(
    run_name="run",
    max_train_steps=2,
    learning_rate=1e-2,
    lora_rank=2,
    options=TrainingOptions(gradient_checkpointing=False, checkpoint_step_interval=1, checkpoints_total_limit=1),
    validation=ValidationConfig(
        validation_steps=1, validation_resolution="64x64", validation_num_inference_steps=1, num_samples=1
    ),
)
OF_THE_MOMENT = ("manifest.json", "events.jsonl")
"""Files that hold times."""

CALLS = ("replace", "rename", "unlink", "remove", "rmdir")


class Refusals:
    """Counts renames and deletes below a folder, and refuses one of them, as Windows does."""

    def __init__(self, below: Path, refused: int | None) -> None:
        self.below, self.refused = str(below), refused
        self.count = 0
        self.what = ""

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in CALLS:
            monkeypatch.setattr(os, name, self._wrapped(name, getattr(os, name)))

    def _wrapped(self, name, real):
        def call(path, *args, **kwargs):
            # rmtree names what it removes relative to an open folder.
            if str(path).startswith(self.below) or kwargs.get("dir_fd") is not None:
                self.count += 1
                if self.count - 1 == self.refused:
                    self.what = f"{name} {path}"
                    raise PermissionError(13, "The process cannot access the file", str(path))
            return real(path, *args, **kwargs)

        return call


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    """No waits between attempts."""
    monkeypatch.setattr(files, "WAITS", (0.0,) * len(files.WAITS))


def refusing(act, folder: Path, refused: int | None) -> tuple[dict[str, object], Refusals]:
    """(what `act(folder)` leaves, the refusals) where call number `refused` is refused."""
    refusals = Refusals(folder, refused)
    with pytest.MonkeyPatch.context() as patch:
        refusals.install(patch)
        act(folder)
    return _tree(folder), refusals


@pytest.mark.parametrize("kind", ["caching", "training"])
def test_any_single_refused_rename_or_delete_changes_nothing(kind, trainable, tmp_path):
    few = replace(trainable.cache, records=trainable.cache.records[:2])

    def cache(folder):
        for _ in range(2):
            cached = replace(few.folders, targets=folder / "t", references=folder / "r")
            cache_latents(replace(few.dataset, records=few.dataset.records[:1]), trainable.spec, cached, CPU, QUIET)

    def run(folder):
        places = RunPlaces(runs_dir=folder / "runs", lora_dir=folder / "loras", device=CPU)
        train(CONFIG, trainable.spec, few, places, QUIET)

    act = {"caching": cache, "training": run}[kind]
    # All in one place: a run's files hold its path.
    folder = tmp_path / "one"
    expected, refusals = refusing(act, folder, None)
    assert refusals.count >= {"caching": 6, "training": 40}[kind]
    for refused in range(refusals.count):
        shutil.rmtree(folder)
        found, tried = refusing(act, folder, refused)
        assert tried.what, f"call {refused} of {refusals.count} was never made"
        assert found.keys() == expected.keys(), f"after {tried.what} was refused once"
        changed = [name for name in found if not name.endswith(OF_THE_MOMENT) and found[name] != expected[name]]
        assert changed == [], f"after {tried.what} was refused once"


def _tree(folder: Path) -> dict[str, object]:
    return {path.relative_to(folder).as_posix(): _content(path) for path in folder.rglob("*") if path.is_file()}


def _content(path: Path) -> object:
    """What is in a file; safetensors writes the entries of its header in any order."""
    data = path.read_bytes()
    if path.suffix != ".safetensors":
        return data
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]
