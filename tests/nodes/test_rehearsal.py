"""LoadLongCat's option: the user's graph on the twin, in the same nodes, and nothing of it in the real run."""

from pathlib import Path

import pytest
import torch
from comfyui_longcat.nodes.data import (
    CacheVAELatents,
    LongCatCacheText,
    LongCatDataset,
    LongCatJoinDatasets,
    PairDatasets,
)
from comfyui_longcat.nodes.encode import EncodeEditPrompt
from comfyui_longcat.nodes.load import LoadLongCat
from comfyui_longcat.nodes.lora import LongCatConvertLoRA, LongCatLoadLoRA
from comfyui_longcat.nodes.sample import LongCatSampleEdit
from comfyui_longcat.nodes.train import LongCatTrainingOptions, LongCatValidation, TrainLoRA
from comfyui_longcat.training.errors import ConfigError, DataError
from comfyui_longcat.training.events import ReportReady
from comfyui_longcat.training.rehearsal.report import RehearsalError
from PIL import Image
from safetensors.torch import save_file

RUN = {"max_train_steps": 500, "learning_rate": 1e-4, "lora_rank": 8, "train_batch_size": 1, "seed": 3}


def defaults(node):
    return {name: settings["default"] for name, (_, settings) in node.INPUT_TYPES()["required"].items()}


def write(folder: Path, names: str) -> None:
    for side in ("after", "before"):
        (folder / side).mkdir(parents=True, exist_ok=True)
        for name in names:
            Image.effect_noise((800, 480), 90).convert("RGB").save(folder / side / f"{name}.png")
            (folder / "after" / f"{name}.txt").write_text(f"instruction {name}")


def load(rehearsal=True, flavour="edit", path="auto"):
    return LoadLongCat().load(
        model_family="longcat_image",
        model_flavour=flavour,
        pretrained_model_name_or_path=path,
        base_model_precision="bf16",
        rehearsal=rehearsal,
    )[0]


def sides():
    return (
        LongCatDataset().describe(
            instance_data_dir="mine/after",
            id="after",
            dataset_type="image",
            caption_strategy="textfile",
            resolution="512",
        )[0],
        LongCatDataset().describe(
            instance_data_dir="mine/before",
            id="before",
            dataset_type="conditioning",
            caption_strategy="none",
            resolution="512",
        )[0],
    )


def cached(model):
    pairs, _, _ = PairDatasets().pair(*sides())["result"]
    latents, _ = CacheVAELatents().cache(model, pairs, "vae/targets", "vae/references")
    return LongCatCacheText().cache_text(model, latents, "text")[0]


@pytest.fixture
def data(host):
    write(host.home / "input" / "mine", "abc")
    return host.home / "input" / "mine"


def test_the_users_graph_is_tried_and_reported(host, data):
    (data / "after" / "b.png").write_bytes((data / "after" / "b.png").read_bytes()[:5000])
    model = load()
    assert model.spec.config.model_flavour == "tiny-edit" and model.real.config.model_flavour == "edit"
    cache = cached(model)
    assert {each.bucket for each in cache.real.dataset.records} == {(640, 384)}
    assert {each.record.bucket for each in cache.records} == {(80, 48)}, "the aspect stays"
    plan = LongCatValidation().plan(**defaults(LongCatValidation) | {"num_samples": 1})[0]
    options = LongCatTrainingOptions().choose(**defaults(LongCatTrainingOptions))[0]
    result = TrainLoRA().train(model, cache, run_name="mine", **RUN, validation=plan, options=options)
    (text,) = result["ui"]["report"]
    assert "Your 2 pairs, captions, caches, training (8 steps), validation" in text
    assert "b.png cannot be read as a picture" in text
    assert "500 of batch 1, that is 250.0 epochs of 2 samples" in text
    assert "graphics memory: about" in text
    (done,) = [event for event in host.events if isinstance(event, ReportReady)]
    assert done.report == text
    lora, path, losses, *_ = result["result"]
    assert len(losses["loss"]) == 8
    assert Path(path).parent == host.runs_dir() / "rehearsal" / "loras"
    assert not (host.home / "loras").exists() and not (host.runs_dir() / "mine").exists()
    converted = LongCatConvertLoRA().convert("none", "native", "", lora=lora)
    assert Path(converted["result"][1]).parent == Path(path).parent
    assert not (host.home / "loras").exists()


def test_rehearsing_again_begins_anew(host, data):
    model = load()
    cache = cached(model)
    first, again = (TrainLoRA().train(model, cache, run_name="mine", **RUN | {"max_train_steps": 2}) for _ in range(2))
    assert first["result"][1] == again["result"][1]
    assert len(list((host.runs_dir() / "rehearsal").glob("mine*"))) == 1
    assert first["result"][2] == again["result"][2]


def test_faults_are_shown_where_they_are_found_and_stop_every_stage_that_is_no_rehearsal(host, data):
    (data / "after" / "b.txt").unlink()
    (data / "before" / "c.png").write_bytes((data / "before" / "c.png").read_bytes()[:5000])
    paired = PairDatasets().pair(*sides())
    pairs, _, report = paired["result"]
    assert len(pairs.records) == 1
    # ComfyUI shows this again on Pair Datasets whenever it remembers the outputs.
    assert paired["ui"] == {"report": [report]} and "b.txt" in report and "c.png" in report
    joined = LongCatJoinDatasets().join(pairs)["result"][0]
    for found in (pairs, joined):
        with pytest.raises(DataError, match=r"^Found by Pair Datasets: (.|\n)*b\.txt(.|\n)*c\.png"):
            CacheVAELatents().cache(load(rehearsal=False, flavour="tiny-edit"), found, "vae/targets", "vae/references")
    assert not any("loading" in getattr(event, "stage", "") for event in host.events)
    assert not (host.cache_dir() / "vae").exists()
    # A folder that no node has looked at before.
    with pytest.raises(DataError, match=r"^1 of 3 pictures have no caption(.|\n)*b\.txt"):
        CacheVAELatents().cache(load(rehearsal=False, flavour="tiny"), sides()[0], "vae/targets", "vae/references")


def test_latents_of_the_twin_never_reach_another_model(host, data):
    model, other = load(), load(rehearsal=False, flavour="tiny-edit")
    cache = cached(model)
    with pytest.raises(ConfigError, match="for a rehearsal"):
        TrainLoRA().train(other, cache, run_name="mine", **RUN)
    with pytest.raises(ConfigError, match="for a rehearsal"):
        LongCatCacheText().cache_text(other, cache, "text")
    with pytest.raises(ConfigError, match="for a rehearsal"):
        TrainLoRA().train(model, cached(other), run_name="mine", **RUN)


def test_no_usable_data_still_gives_a_report(host, data):
    for path in (data / "after").glob("*.txt"):
        path.unlink()
    model = load(path="no/such/folder")
    cache = cached(model)
    with pytest.raises(RehearsalError) as caught:
        TrainLoRA().train(model, cache, run_name="mine", **RUN)
    for words in ("The twin was not trained", "3 of 3 targets have no caption file", "'no/such/folder'"):
        assert words in str(caught.value)


def test_sampling_in_the_same_graph_shrinks(host, data):
    model = load()
    reference = torch.rand(1, 480, 640, 3)
    positive, negative = EncodeEditPrompt().encode(model, reference, "make it night", "", width=1024, height=1024)
    settings = {"width": 1024, "height": 1024, "num_inference_steps": 50, "guidance_scale": 4.5, "seed": 1}
    image, _ = LongCatSampleEdit().sample(model, positive, negative, **settings)
    assert image.shape == (1, 64, 64, 3)


def test_loras_of_the_real_model_are_left_out(host, data):
    (host.home / "loras").mkdir()
    names = ("lora_A", (2, 4)), ("lora_B", (4, 2))
    tensors = {f"transformer.transformer_blocks.0.attn.to_q.{name}.weight": torch.ones(shape) for name, shape in names}
    save_file(tensors, host.home / "loras" / "real.safetensors")
    assert LongCatLoadLoRA().load(load(), "real.safetensors", 1.0)[0].spec.loras == ()
    assert len(LongCatLoadLoRA().load(load(rehearsal=False), "real.safetensors", 1.0)[0].spec.loras) == 1


def test_of_the_nodes_only_the_one_that_chooses_the_model_knows_of_rehearsals(repository):
    knowing = [
        path.name for path in (repository / "nodes").glob("*.py") if "rehears" in path.read_text("utf-8").lower()
    ]
    assert knowing == ["load.py"]


def test_a_missing_package_is_a_fault_and_the_twin_does_without(host, data, monkeypatch):
    from comfyui_longcat.training.weights import precisions

    monkeypatch.setattr(precisions, "_is_installed", lambda module: False)
    model = LoadLongCat().load(
        model_family="longcat_image",
        model_flavour="edit",
        pretrained_model_name_or_path="auto",
        base_model_precision="int8-quanto",
        rehearsal=True,
    )[0]
    assert model.spec.config.base_model_precision == "bf16"
    assert model.real.config.base_model_precision == "int8-quanto"
    (fault,) = model.faults
    assert "pip install optimum-quanto" in fault
