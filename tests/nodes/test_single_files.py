"""ComfyUI's single files through the nodes: found, offered, chosen, and computing what a diffusers folder computes."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from comfyui_longcat.nodes import NODE_CLASS_MAPPINGS
from comfyui_longcat.nodes.host import use_host
from comfyui_longcat.nodes.load import LoadLongCat
from comfyui_longcat.nodes.terminal.host import TerminalHost
from comfyui_longcat.training.errors import ConfigError, ModelError, PathError
from comfyui_longcat.training.events import WarningRaised

NAMES = {
    "transformer": "longcat_image_edit_bf16.safetensors",
    "vae": "ae.safetensors",
    "text_encoder": "qwen_2.5_vl_7b.safetensors",
}


def call(node_id: str, **inputs):
    """The node's outputs; what is not given has its default."""
    node = NODE_CLASS_MAPPINGS[node_id]
    declared = node.INPUT_TYPES()["required"]
    defaults = {name: settings["default"] for name, (_, settings) in declared.items() if "default" in settings}
    return getattr(node(), node.FUNCTION)(**(defaults | inputs))


@pytest.fixture
def files(host, single_file_twins) -> Path:
    """A host whose folders hold the four parts, as links: a test may take one away."""
    for kind in ("transformer", "vae", "text_encoder", "tokenizer"):
        (host.home / kind).mkdir()
        for path in (single_file_twins / "files" / kind).iterdir():
            os.symlink(path, host.home / kind / path.name)
    return host.home


def load(**choice):
    return call("LoadLongCat", **({"model_flavour": "edit", "base_model_precision": "fp32"} | choice))[0]


def small_run(model, name: str) -> tuple[list[float], torch.Tensor, Path]:
    """Losses of two steps, a picture sampled with the new LoRA, and the run's folder."""
    sides = {"targets": ("image", "textfile"), "references": ("conditioning", "none")}
    datasets = {
        side: call(
            "LongCatDataset",
            instance_data_dir=side,
            dataset_type=kind,
            caption_strategy=captions,
            resolution="64",
        )[0]
        for side, (kind, captions) in sides.items()
    }
    pairs = call("PairDatasets", **datasets)["result"][0]
    cache = call("CacheVAELatents", model=model, pairs=pairs)[0]
    cache = call("LongCatCacheText", model=model, cache=cache)[0]
    trained = call(
        "TrainLoRA", model=model, cache=cache, run_name=name, max_train_steps=2, learning_rate=1e-2, lora_rank=2
    )["result"]
    with_lora = call("LongCatLoadLoRA", model=model, lora=trained[0])[0]
    picture = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(3))
    positive, negative = call(
        "EncodeEditPrompt", model=with_lora, reference=picture, prompt="make it red", width=64, height=64
    )
    image = call("LongCatSampleEdit", model=with_lora, positive=positive, negative=negative, num_inference_steps=2)[0]
    return list(trained[2]["loss"]), image, trained[0].folder


def test_files_compute_what_a_diffusers_folder_of_the_same_weights_computes(files, single_file_twins, host):
    from comfyui_longcat.training.tiny.examples import draw_example_pairs

    draw_example_pairs(host.home / "input" / "targets", host.home / "input" / "references", count=2)
    model = load()
    assert model.spec.files.transformer == files / "transformer" / NAMES["transformer"]
    losses, image, run = small_run(model, "files")
    recorded = json.loads((run / "config.json").read_text(encoding="utf-8"))
    assert recorded["model_files"] == {kind: str(path) for kind, path in vars(model.spec.files).items()}
    assert recorded["model_folder"] is None
    assert not [event for event in host.events if isinstance(event, WarningRaised)]

    shutil.rmtree(host.cache_dir())
    host.models = (single_file_twins,)
    whole = load()
    assert whole.spec.files is None
    wanted_losses, wanted_image, _ = small_run(whole, "folder")
    # Equal weights lie elsewhere in memory, and matrix products round by alignment.
    difference = (image - wanted_image).abs().max().item()
    print(f"losses {losses}, by the folder {wanted_losses}; largest difference of the pictures {difference:.1e}")
    assert len(losses) == 2 and losses[0] != losses[1]
    assert losses == pytest.approx(wanted_losses, rel=1e-5)
    assert image.std() > 0.01
    assert difference < 1e-4


def test_what_is_there_is_offered(files):
    def choices() -> dict[str, list[str]]:
        optional = LoadLongCat.INPUT_TYPES()["optional"]
        return {kind: optional[f"{kind}_file"][0] for kind in NAMES}

    assert choices() == {kind: ["auto", name] for kind, name in NAMES.items()}
    (files / "transformer" / "old").mkdir()
    for name in ("old/longcat_image_dev_bf16.safetensors", "flux1-dev.safetensors", "ae.safetensors"):
        (files / "transformer" / name).touch()
    assert choices()["transformer"] == ["auto", NAMES["transformer"], "old/longcat_image_dev_bf16.safetensors"]


def test_auto_goes_by_flavour_and_prefers_a_folder(files, host, single_file_twins):
    assert load().spec.files is not None
    final = load(model_flavour="final")
    assert (final.spec.files, final.spec.folder) == (None, None)
    assert load(pretrained_model_name_or_path="meituan-longcat/LongCat-Image-Edit").spec.files is None
    chosen = load(model_flavour="final", transformer_file=NAMES["transformer"])
    assert chosen.spec.files.transformer.name == NAMES["transformer"]
    assert ["looks like flavour edit" in event.message for event in host.events] == [True]
    host.models = (single_file_twins,)
    assert load().spec.files is None
    assert load(transformer_file=NAMES["transformer"]).spec.files is not None


def test_a_transformer_is_named_by_path_too(files, host):
    for name in (NAMES["transformer"], str(files / "transformer" / "mine.safetensors")):
        shutil.copy(files / "transformer" / NAMES["transformer"], files / "transformer" / "mine.safetensors")
        assert (
            load(pretrained_model_name_or_path=name).spec.files.transformer == files / "transformer" / Path(name).name
        )
    outside = host.home / "mine.safetensors"
    outside.touch()
    with pytest.raises(PathError, match="outside the allowed folders"):
        load(pretrained_model_name_or_path=str(outside))
    with pytest.raises(PathError, match="no such folder or file"):
        load(pretrained_model_name_or_path="longcat_image_v2.safetensors")


def test_the_hub_id_of_another_flavour_is_refused(host):
    with pytest.raises(ConfigError, match="which is flavour final, but model_flavour is edit"):
        load(pretrained_model_name_or_path="meituan-longcat/LongCat-Image")


def test_on_a_terminal_the_files_lie_below_the_home_folder(single_file_twins, tmp_path):
    models = tmp_path / "models"
    for kind, folder in (("transformer", "diffusion_models"), ("vae", "vae"), ("text_encoder", "text_encoders")):
        shutil.copytree(single_file_twins / "files" / kind, models / folder, copy_function=os.symlink)
    with use_host(TerminalHost(tmp_path, device="cpu")):
        with pytest.raises(ModelError, match="tokenizer") as raised:
            load()
        tokenizer = models / "text_encoders" / "qwen25_tokenizer"
        assert str(tokenizer) in str(raised.value)
        shutil.copytree(single_file_twins / "files" / "tokenizer", tokenizer)
        assert load().spec.files.tokenizer == tokenizer


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("vae", "the VAE: ae.safetensors in .*vae"),
        ("text_encoder", "qwen_2.5_vl_7b_fp8_scaled.safetensors in .*text_encoder"),
        ("tokenizer", "needs a tokenizer.*vocab.json, merges.txt"),
    ],
)
def test_a_missing_part_is_named_with_its_folder(files, kind, message):
    shutil.rmtree(files / kind)
    with pytest.raises(ModelError, match=message) as raised:
        load()
    assert str(files / kind) in str(raised.value)


def test_parts_that_do_not_fit_are_refused(files, host):
    (files / "vae" / NAMES["vae"]).unlink()
    os.symlink(files / "transformer" / NAMES["transformer"], files / "vae" / NAMES["vae"])
    with pytest.raises(ModelError, match="holds a transformer; a vae is needed here"):
        load()
    with pytest.raises(ModelError, match="vae_file .* is 'gone.safetensors'.*one of auto, ae.safetensors"):
        load(vae_file="gone.safetensors")
    with pytest.raises(ConfigError, match="vae_file .* is 'ae.safetensors', but the transformer comes from"):
        load(pretrained_model_name_or_path=str(host.models[0]), vae_file="ae.safetensors")


def test_the_node_runs_again_when_files_have_changed(files):
    choice = {"model_family": "longcat_image", "model_flavour": "edit", "base_model_precision": "bf16"}
    before = LoadLongCat.IS_CHANGED(unique_id="1", **choice)
    assert before and LoadLongCat.IS_CHANGED(**choice) == before
    path = files / "vae" / NAMES["vae"]
    path.rename(path.with_name("AE.safetensors"))
    assert LoadLongCat.IS_CHANGED(**choice) not in ("", before)
    (files / "transformer" / NAMES["transformer"]).unlink()
    assert LoadLongCat.IS_CHANGED(**choice) == LoadLongCat.IS_CHANGED(**choice) not in ("", before)
    assert LoadLongCat.IS_CHANGED(model_flavour=None) == ""
