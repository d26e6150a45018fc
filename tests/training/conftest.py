"""Fixtures of the training tests: a cached set of 12 drawn pairs for the tiny twin, made once."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from comfyui_longcat.training.events import NoCallbacks


@dataclass
class Trainable:
    """What `train` needs besides its settings; tests must not write into its folders."""

    spec: object
    cache: object


class Listener(NoCallbacks):
    """Keeps every event; stops when the step `stop_after` has been reported."""

    def __init__(self, stop_after=None):
        self.events = []
        self.stop_after = stop_after

    def on_event(self, event):
        self.events.append(event)

    def of(self, kind):
        return [event for event in self.events if isinstance(event, kind)]

    def should_stop(self):
        from comfyui_longcat.training.events import StepReport

        return self.stop_after is not None and len(self.of(StepReport)) >= self.stop_after


@pytest.fixture
def listener():
    """The class of callbacks that tests make their own of."""
    return Listener


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Several threads on busy cores wait for each other longer than they work."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def trainable(tmp_path_factory, tiny_checkpoint) -> Trainable:
    return make_trainable(tmp_path_factory.mktemp("trainable"), tiny_checkpoint)


def make_trainable(folder: Path, checkpoint: Path, precision: str = "fp32") -> Trainable:
    import torch
    from comfyui_longcat.training.caches.cache import CacheFolders
    from comfyui_longcat.training.caches.latents import cache_latents
    from comfyui_longcat.training.caches.text import cache_text
    from comfyui_longcat.training.data.sets import pair_datasets
    from comfyui_longcat.training.settings.dataset import DatasetConfig
    from comfyui_longcat.training.settings.model import ModelConfig
    from comfyui_longcat.training.tiny.examples import draw_example_pairs
    from comfyui_longcat.training.weights.spec import ModelSpec

    draw_example_pairs(folder / "targets", folder / "references")
    pairs = pair_datasets(
        DatasetConfig(id="targets", instance_data_dir=str(folder / "targets"), resolution="64"),
        DatasetConfig(
            id="references",
            instance_data_dir=str(folder / "references"),
            dataset_type="conditioning",
            caption_strategy="none",
            resolution="64",
        ),
    )
    spec = ModelSpec(
        config=ModelConfig(model_flavour="tiny-edit", base_model_precision=precision),
        models_dirs=(checkpoint.parent,),
        folder=checkpoint,
    )
    device = torch.device("cpu")
    folders = CacheFolders(targets=folder / "cache" / "targets", references=folder / "cache" / "references")
    cache, _ = cache_latents(pairs, spec, folders, device, NoCallbacks())
    cache, _ = cache_text(cache, spec, folder / "cache" / "text", device, NoCallbacks())
    return Trainable(spec=spec, cache=cache)
