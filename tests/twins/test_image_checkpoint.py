"""The tiny twin: same on every build, whole, with the released folder's structure, and of use for training."""

import json
from pathlib import Path

import pytest
import torch
from comfyui_longcat.tests.twins.image_checkpoint import build_tiny_image_checkpoint
from comfyui_longcat.tests.twins.tokenizer import SPECIAL_TOKENS
from comfyui_longcat.training.settings.flavours import FLAVOURS
from comfyui_longcat.training.tiny.examples import draw_pairs
from safetensors.torch import load_file

WEIGHTS = (
    "transformer/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
)

EDIT_PREFIX = (
    "<|im_start|>system\nAs an image editing expert, first analyze the content and attributes of the input image(s)."
    "<|im_end|>\n<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>"
)


@pytest.fixture(scope="module")
def twin(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-edit"
    build_tiny_image_checkpoint(folder)
    return folder


def test_two_builds_are_equal_and_leave_the_random_state_alone(twin, tmp_path):
    before = torch.get_rng_state()
    with torch.inference_mode():
        build_tiny_image_checkpoint(tmp_path / "again")
    assert torch.equal(torch.get_rng_state(), before)
    for name in WEIGHTS:
        first, second = load_file(twin / name), load_file(tmp_path / "again" / name)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first), name
    plain = [path for path in twin.rglob("*") if path.is_file() and path.suffix != ".safetensors"]
    assert all(path.read_bytes() == (tmp_path / "again" / path.relative_to(twin)).read_bytes() for path in plain)


def test_the_text_to_image_twin_differs_in_its_index_alone(twin, tmp_path):
    other = tmp_path / "tiny"
    build_tiny_image_checkpoint(other, FLAVOURS["longcat_image", "tiny"].pipeline)
    names = {path.relative_to(twin) for path in twin.rglob("*") if path.is_file()}
    assert names == {path.relative_to(other) for path in other.rglob("*") if path.is_file()}
    different = {name.as_posix() for name in names if (twin / name).read_bytes() != (other / name).read_bytes()}
    assert different == {"model_index.json"}
    assert json.loads((other / "model_index.json").read_text())["_class_name"] == "LongCatImagePipeline"


def test_folder_is_small_and_laid_out_like_the_released_one(twin):
    index = json.loads((twin / "model_index.json").read_text())
    assert index["_class_name"] == "LongCatImageEditPipeline"
    parts = {name for name in index if not name.startswith("_")}
    assert parts == {"scheduler", "text_encoder", "text_processor", "tokenizer", "transformer", "vae"}
    assert parts == {path.name for path in twin.iterdir() if path.is_dir()}
    assert sum(path.stat().st_size for path in twin.rglob("*") if path.is_file()) < 8_000_000


def test_a_failing_build_leaves_nothing(tmp_path, monkeypatch):
    from comfyui_longcat.tests.twins import image_checkpoint

    def full_disk(path, value):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(image_checkpoint, "write_settings", full_disk)
    with pytest.raises(OSError, match="No space"):
        build_tiny_image_checkpoint(tmp_path / "tiny-edit")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("folder", ["tokenizer", "text_processor"])
def test_tokenizer_keeps_special_tokens_whole_and_loses_no_text(twin, folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(twin / folder)
    ids = tokenizer(EDIT_PREFIX)["input_ids"]
    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert tokens[-3:] == ["<|vision_start|>", "<|image_pad|>", "<|vision_end|>"]
    assert [tokens.count(special) for special in ("<|im_start|>", "<|im_end|>", "<|image_pad|>")] == [2, 1, 1]
    assert tokenizer.decode(ids) == EDIT_PREFIX
    chinese = "\u6dfb\u52a0\u84dd\u8272\u8fb9\u6846"
    assert tokenizer.decode(tokenizer(chinese)["input_ids"]) == chinese
    assert tokenizer.padding_side == "right"
    assert tokenizer.pad_token == "<|endoftext|>"
    assert len({tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}) == len(SPECIAL_TOKENS)


def test_text_encoder_knows_the_tokenizers_special_ids(twin):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(twin / "tokenizer")
    config = json.loads((twin / "text_encoder" / "config.json").read_text())
    for key, token in (("image_token_id", "<|image_pad|>"), ("vision_start_token_id", "<|vision_start|>")):
        assert config[key] == tokenizer.convert_tokens_to_ids(token)
    assert config["text_config"]["vocab_size"] == len(tokenizer)


def test_autoencoder_shows_what_it_was_given(twin):
    from comfyui_longcat.training.data.media import to_pixels
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(twin / "vae")
    pixels = torch.cat([to_pixels(reference, (64, 64)) for _, reference, _, _ in draw_pairs(8)])
    with torch.no_grad():
        raw_latents = vae.encode(pixels).latent_dist.mode()
        decoded = vae.decode(raw_latents).sample
        flat = torch.full((1, 3, 64, 96), 0.3)
        decoded_flat = vae.decode(vae.encode(flat).latent_dist.mode()).sample
    latents = (raw_latents - vae.config.shift_factor) * vae.config.scaling_factor
    psnr = 10 * torch.log10(4 / ((decoded - pixels) ** 2).mean())
    print(f"PSNR {psnr:.1f} dB, latents {latents.mean():.2f} +- {latents.std():.2f}")
    assert raw_latents.shape == (8, 16, 8, 8)
    assert psnr > 30
    assert abs(latents.mean()) < 0.2 and 0.8 < latents.std() < 1.2
    assert (decoded_flat - flat).abs().mean() < 0.05
