"""The video twins: same on every build, in the released layout, readable by the same code; and what does not fit."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from comfyui_longcat.tests.twins.video_checkpoint import build_tiny_video_checkpoint
from comfyui_longcat.training.errors import ModelError
from comfyui_longcat.training.events import NoCallbacks
from comfyui_longcat.training.models.contract import QWEN, UMT5, TextEncoder
from comfyui_longcat.training.models.video.family import LongCatVideoFamily
from comfyui_longcat.training.settings.model import ModelConfig
from comfyui_longcat.training.weights.source import component_config, identity_of
from comfyui_longcat.training.weights.spec import ModelSpec
from comfyui_longcat.training.weights.video_components import (
    check_folder,
    load_text_encoder,
    load_transformer,
    load_vae,
    text_width,
)
from safetensors.torch import load_file, save_file

FAMILY = LongCatVideoFamily()


@pytest.fixture(scope="module", params=[UMT5, QWEN])
def twin(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / request.param
    build_tiny_video_checkpoint(folder, request.param)
    return folder


@pytest.fixture
def copy(twin, tmp_path) -> Path:
    return Path(shutil.copytree(twin, tmp_path / "model"))


def change(path: Path, **values) -> None:
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | values), encoding="utf-8")


def test_two_builds_are_equal_and_leave_the_random_state_alone(twin, tmp_path):
    before = torch.get_rng_state()
    with torch.inference_mode():
        build_tiny_video_checkpoint(tmp_path / "again", twin.name)
    assert torch.equal(torch.get_rng_state(), before)
    files = [path.relative_to(twin) for path in twin.rglob("*") if path.is_file()]
    for name in files:
        if name.suffix == ".safetensors":
            first, second = load_file(twin / name), load_file(tmp_path / "again" / name)
            assert first.keys() == second.keys()
            assert all(torch.equal(first[key], second[key]) for key in first), name
        else:
            assert (twin / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_folder_is_small_and_laid_out_like_the_released_one(twin):
    assert {path.name for path in twin.iterdir() if path.is_dir()} == {
        "dit",
        "scheduler",
        "text_encoder",
        "tokenizer",
        "vae",
    }
    size = sum(path.stat().st_size for path in twin.rglob("*") if path.is_file())
    print(f"{size / 1e6:.1f} MB")
    assert size < 8_000_000
    assert json.loads((twin / "scheduler" / "scheduler_config.json").read_text())["shift"] == 12.0
    assert json.loads((twin / "dit" / "config.json").read_text())["text_tokens_zero_pad"] is True


def test_a_failing_build_leaves_nothing(tmp_path, monkeypatch):
    from comfyui_longcat.tests.twins import video_checkpoint

    def full_disk():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(video_checkpoint, "build_video_transformer", full_disk)
    with pytest.raises(OSError, match="No space"):
        build_tiny_video_checkpoint(tmp_path / "tiny-video")
    assert list(tmp_path.iterdir()) == []


def test_every_part_is_read_in_the_precision_asked_for(twin):
    check_folder(twin)
    assert load_vae(twin).dtype == torch.float32
    for dtype in (torch.float32, torch.bfloat16):
        assert {p.dtype for p in load_transformer(twin, dtype).parameters()} == {dtype}
        assert load_text_encoder(twin, dtype).dtype == dtype


def test_parts_are_finished_block_by_block(twin):
    seen = []
    load_transformer(twin, torch.float32, lambda part, name, is_block: seen.append((name, is_block)))
    assert [name for name, is_block in seen if is_block] == [f"blocks.{number}" for number in range(4)]
    assert {"x_embedder.proj", "final_layer.linear"} <= {name for name, is_block in seen if not is_block}


@torch.no_grad()
def test_a_prompt_and_a_start_frame_go_through_all_parts(twin):
    from transformers import AutoTokenizer

    vae = load_vae(twin)
    text_encoder = TextEncoder(
        model=load_text_encoder(twin, torch.float32),
        tokenizer=AutoTokenizer.from_pretrained(twin / "tokenizer"),
        image_processor=None,
    )
    transformer = load_transformer(twin, torch.float32)
    pixels = torch.rand(1, 3, 5, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = FAMILY.encode_pixels(vae, pixels)
    embeds = FAMILY.encode_prompt(text_encoder, "a red circle moves up", [])
    other = FAMILY.encode_prompt(text_encoder, "a blue square moves down", [])
    sigmas = torch.tensor([0.5])
    results = [
        FAMILY.predict(transformer, latents, sigmas, FAMILY.prepare_inputs(latents.shape, each, [latents[:, :, :1]]))
        for each in (embeds, other)
    ]
    assert results[0].shape == latents.shape
    assert results[0].isfinite().all()
    assert (results[0] - results[1])[:, :, 1:].abs().max() > 1e-4
    assert torch.equal(results[0][:, :, 0], results[1][:, :, 0])
    assert FAMILY.decode(vae, latents).shape == pixels.shape


@torch.no_grad()
def test_untrained_it_points_away_from_the_noise(twin):
    transformer = load_transformer(twin, torch.float32)
    noise = torch.randn(1, 16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    embeds = torch.randn(1, 4, 64, generator=torch.Generator().manual_seed(1))
    predicted = FAMILY.predict(transformer, noise, torch.ones(1), FAMILY.prepare_inputs(noise.shape, embeds, []))
    likeness = torch.nn.functional.cosine_similarity(predicted.flatten(), noise.flatten(), dim=0).item()
    print(f"cosine of velocity and noise {likeness:.2f}")
    assert likeness > 0.3


def test_a_text_encoder_of_another_width_is_refused_with_both_numbers(copy):
    change(copy / "text_encoder" / "config.json", d_model=3584, hidden_size=3584, text_config=None)
    with pytest.raises(ModelError, match=r"text_encoder gives embeddings 3584 wide, .*dit was trained on 64"):
        check_folder(copy)


def test_widths_of_the_encoders_in_all_their_layouts():
    assert text_width({"model_type": "umt5", "d_model": 4096}) == 4096
    assert text_width({"model_type": "qwen2_5_vl", "hidden_size": 3584}) == 3584
    assert text_width({"model_type": "qwen2_5_vl", "text_config": {"hidden_size": 3584}}) == 3584
    assert text_width({"model_type": "clip", "hidden_size": 768}) is None


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        ("vae", {"_class_name": "AutoencoderKL"}, "vae holds a AutoencoderKL; .* AutoencoderKLWan"),
        ("vae", {"z_dim": 48}, "48 latent channels, .* takes 16"),
        ("vae", {"latents_mean": None}, "no latents_mean of 16 numbers"),
        ("vae", {"latents_std": [1.0]}, "no latents_std of 16 numbers"),
        ("vae", {"z_dim": [16]}, r"\[16\] latent channels, .* takes 16"),
        ("vae", {"latents_mean": ["1"] * 16}, "no latents_mean of 16 numbers"),
        ("vae", {"latents_std": [0] * 16}, "no latents_std of 16 numbers"),
        ("text_encoder", {"architectures": ["CLIPTextModel"]}, "CLIPTextModel; .* UMT5EncoderModel or Qwen2_5_VL"),
        ("text_encoder", {"architectures": {"a": 1}, "model_type": "x"}, "text_encoder holds a x; "),
        ("text_encoder", {"model_type": ["umt5"]}, "text_encoder gives embeddings None wide"),
        ("text_encoder", {"text_config": [], "model_type": 7}, "text_encoder gives embeddings None wide"),
        ("dit", {"mlp_ratio": "4"}, "has mlp_ratio 4; it must be a number"),
        ("dit", {"text_tokens_zero_pad": 1}, "has text_tokens_zero_pad 1; it must be true or false"),
        ("dit", {"auto_map": {"AutoModel": "a.B"}}, "asks to run Python code"),
        ("tokenizer", {"auto_map": {"AutoTokenizer": ["a.B", None]}}, "asks to run Python code"),
    ],
)
def test_parts_of_other_models_are_refused(copy, part, values, message):
    change(copy / part / ("tokenizer_config.json" if part == "tokenizer" else "config.json"), **values)
    with pytest.raises(ModelError, match=message):
        check_folder(copy)


@pytest.mark.parametrize("missing", ["dit/config.json", "vae/config.json", "tokenizer/tokenizer_config.json"])
def test_incomplete_folders_are_refused(copy, missing):
    (copy / missing).unlink()
    with pytest.raises(ModelError, match=Path(missing).name):
        check_folder(copy)


def test_damaged_weights_are_refused_without_loading(copy):
    path = copy / "dit" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"diffusion_pytorch_model\.safetensors is damaged"):
        check_folder(copy)


def test_weights_that_lack_a_tensor_are_refused(copy):
    path = copy / "dit" / "diffusion_pytorch_model.safetensors"
    tensors = {name: t.clone() for name, t in load_file(path).items() if name != "final_layer.linear.weight"}
    save_file(tensors, path)
    with pytest.raises(ModelError, match=r"final_layer\.linear\.weight"):
        load_transformer(copy, torch.float32)


def test_transformers_with_other_tensors_are_refused_by_name(copy):
    path = copy / "dit" / "diffusion_pytorch_model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    save_file(tensors | {"audio_proj.proj1.weight": torch.zeros(4)}, path)
    with pytest.raises(ModelError, match="dit holds LongCat-Video-Avatar"):
        check_folder(copy)
    save_file({"patch_embedding.weight": torch.zeros(4)}, path)
    with pytest.raises(ModelError, match="dit is no transformer of LongCat-Video"):
        check_folder(copy)


def test_the_folder_may_have_fastvideos_name_and_no_settings(copy, twin):
    (copy / "dit").rename(copy / "transformer")
    (copy / "transformer" / "config.json").write_text('{"num_attention_heads": 2}', encoding="utf-8")
    check_folder(copy)
    loaded, wanted = (load_transformer(folder, torch.float32) for folder in (copy, twin))
    assert loaded.config.text_tokens_zero_pad is True
    assert all(torch.equal(tensor, wanted.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    model = ModelConfig(model_family="longcat_video", model_flavour="tiny-video")
    spec = ModelSpec(config=model, models_dirs=(), folder=copy)
    assert len(identity_of(spec, "transformer", NoCallbacks())) == 64
    assert component_config(spec, "transformer", NoCallbacks())["caption_channels"] == 64


def test_padding_is_attended_as_the_checkpoint_says(copy):
    change(copy / "dit" / "config.json", text_tokens_zero_pad=False)
    assert load_transformer(copy, torch.float32).config.text_tokens_zero_pad is False


def test_sharded_weights_are_read(copy):
    path = copy / "dit" / "diffusion_pytorch_model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    names = sorted(tensors)
    shards = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for shard, inside in shards.items():
        save_file({name: tensors[name] for name in inside}, path.with_name(shard))
    path.unlink()
    weight_map = {name: shard for shard, inside in shards.items() for name in inside}
    index = path.with_name(f"{path.name}.index.json")
    index.write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    check_folder(copy)
    loaded = load_transformer(copy, torch.float32).state_dict()
    assert all(torch.equal(loaded[name], tensors[name]) for name in names)
