"""The stages behind one interface: what they refuse before anything is loaded."""

import inspect

import pytest
import torch
from comfyui_longcat.training.caches.cache import Cache, CacheFolders
from comfyui_longcat.training.data.records import TrainingSet
from comfyui_longcat.training.errors import ConfigError, DataError
from comfyui_longcat.training.events import NoCallbacks
from comfyui_longcat.training.loop.stages import RealStages, Stages
from comfyui_longcat.training.loop.train import RunPlaces
from comfyui_longcat.training.rehearsal.cache import RealData, RehearsedCache
from comfyui_longcat.training.rehearsal.stages import RehearsalStages
from comfyui_longcat.training.settings.model import ModelConfig
from comfyui_longcat.training.settings.run import TrainConfig
from comfyui_longcat.training.weights.spec import ModelSpec

FAULTY = TrainingSet(sources=(), records=(), faults=("a.txt is missing.", "b.png is broken."), found_by="Pair Datasets")
CPU = torch.device("cpu")


@pytest.fixture
def spec(tmp_path):
    """A model that is nowhere: whatever loads it fails otherwise."""
    return ModelSpec(config=ModelConfig(model_flavour="edit"), models_dirs=(tmp_path / "nowhere",))


@pytest.fixture
def folders(tmp_path):
    return CacheFolders(targets=tmp_path / "targets", references=tmp_path / "references")


@pytest.fixture
def places(tmp_path):
    return RunPlaces(runs_dir=tmp_path / "runs", lora_dir=tmp_path / "loras", device=CPU)


@pytest.mark.parametrize("stages", [RealStages, RehearsalStages])
def test_both_fulfil_the_interface(stages):
    for name, method in inspect.getmembers(Stages, inspect.isfunction):
        if not name.startswith("_"):
            assert list(inspect.signature(getattr(stages, name)).parameters) == list(
                inspect.signature(method).parameters
            )
    assert "spec" in stages.__dataclass_fields__


def test_faults_are_refused_with_all_of_them_and_who_found_them(tmp_path, spec, folders, places):
    words = r"^Found by Pair Datasets: The data cannot be used, for 2 reasons:\n- a.txt is missing.\n- b.png is broken."
    stages = RealStages(spec=spec)
    with pytest.raises(DataError, match=words):
        stages.cache_latents(FAULTY, folders, CPU, NoCallbacks())
    cache = Cache(model_family="longcat_image", dataset=FAULTY, folders=folders, records=())
    with pytest.raises(DataError, match=words):
        stages.train(TrainConfig(), cache, places, NoCallbacks())
    assert list(tmp_path.iterdir()) == []


def test_each_takes_its_own_caches_only(tmp_path, spec, folders, places):
    real = Cache(model_family="longcat_image", dataset=FAULTY, folders=folders, records=())
    twin = RehearsedCache(**vars(real), real=RealData(dataset=FAULTY, folders=folders))
    rehearsal = RehearsalStages(spec=spec, real=spec, faults=(), cache_dir=tmp_path)
    for stages, cache in ((RealStages(spec=spec), twin), (rehearsal, real)):
        with pytest.raises(ConfigError, match="rehearsal.*Wire one Load LongCat"):
            stages.cache_text(cache, tmp_path / "text", CPU, NoCallbacks())
        with pytest.raises(ConfigError, match="rehearsal.*Wire one Load LongCat"):
            stages.train(TrainConfig(), cache, places, NoCallbacks())
    assert list(tmp_path.iterdir()) == []
