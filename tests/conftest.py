"""Fixtures that several test files share. Nothing heavy is imported until a test asks for it."""

import copy
import gc
import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

QWEN_IDS = {
    "<|endoftext|>": 151643,
    "<|im_start|>": 151644,
    "<|im_end|>": 151645,
    "<|vision_start|>": 151652,
    "<|vision_end|>": 151653,
    "<|vision_pad|>": 151654,
    "<|image_pad|>": 151655,
    "<|video_pad|>": 151656,
}
"""Qwen2.5's own special tokens, which no tensor of a single file holds."""


ORDER_SEED = os.environ.get("ORDER_SEED")
"""Another order of the test files for every number; within a file the order stays. Unset: by name."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("comfy") or item.get_closest_marker("install"):
            item.add_marker("slow")
    if ORDER_SEED:
        files = sorted({item.path for item in items})
        random.Random(ORDER_SEED).shuffle(files)
        items.sort(key=lambda item: files.index(item.path))


@pytest.fixture(autouse=True, scope="module")
def libraries_are_no_garbage() -> Iterator[None]:
    """Every stage ends with a garbage collection, which need not look at all objects of torch and transformers."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository, which is also the package's folder."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder of the light twin of LongCat-Image-Edit; tests must not write into it."""
    from comfyui_longcat.tests.twins.image_checkpoint import build_tiny_image_checkpoint

    folder = tmp_path_factory.mktemp("models") / "tiny-edit"
    build_tiny_image_checkpoint(folder)
    return folder


@pytest.fixture
def example_pairs(tmp_path: Path) -> tuple[Path, Path]:
    """Folders (targets, references) of 12 drawn pairs with instructions; each test gets its own."""
    from comfyui_longcat.training.tiny.examples import draw_example_pairs

    targets, references = tmp_path / "targets", tmp_path / "references"
    draw_example_pairs(targets, references)
    return targets, references


@pytest.fixture(scope="session")
def single_file_twins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One small model twice: `files/<kind>/...` as ComfyUI has it, and the diffusers folder `LongCat-Image-Edit`."""
    root = tmp_path_factory.mktemp("twins")
    build_single_file_twins(root)
    return root


def build_single_file_twins(root: Path) -> None:
    """See `single_file_twins`."""
    from comfyui_longcat.training.settings.flavours import EDIT
    from comfyui_longcat.training.weights import qwen_file, single_file
    from safetensors.torch import save_file

    files, folder = root / "files", root / "LongCat-Image-Edit"
    parts = _build_single_file_parts()
    for kind, part in parts.items():
        part.save_pretrained(folder / kind)
        (files / kind).mkdir(parents=True)
    single_file.export_transformer(parts["transformer"], files / "transformer" / "longcat_image_edit_bf16.safetensors")
    save_file(parts["vae"].state_dict(), files / "vae" / "ae.safetensors")
    hub = {
        name.replace("model.language_model.", "model.").replace("model.visual.", "visual."): tensor
        for name, tensor in parts["text_encoder"].state_dict().items()
        if name != "lm_head.weight"
    }
    save_file(hub, files / "text_encoder" / "qwen_2.5_vl_7b.safetensors")
    _write_tokenizer_with_qwen_ids(files / "tokenizer")
    for name in ("tokenizer", "text_processor"):
        shutil.copytree(files / "tokenizer", folder / name)
    settings = json.dumps(qwen_file.IMAGE_PROCESSOR)
    (folder / "text_processor" / "preprocessor_config.json").write_text(settings, encoding="utf-8")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": EDIT}), encoding="utf-8")


def _build_single_file_parts() -> dict:
    """One head each of the sizes that single files have; small but for the vocabulary's full length."""
    import torch
    from comfyui_longcat.training.weights import qwen_file
    from diffusers import AutoencoderKL, LongCatImageTransformer2DModel
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    width = 128
    heads = {"num_attention_heads": 1, "joint_attention_dim": width, "pooled_projection_dim": width}
    text = {"vocab_size": 151669, "hidden_size": width, "intermediate_size": 64, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 1, "num_key_value_heads": 1, "tie_word_embeddings": True}
    vision = {"depth": 1, "hidden_size": 80, "intermediate_size": 40, "num_heads": 1, "out_hidden_size": width}
    config = Qwen2_5_VLConfig(
        text_config=text | copy.deepcopy(qwen_file.LANGUAGE),
        vision_config=vision | {"fullatt_block_indexes": []},
        tie_word_embeddings=True,
        **qwen_file.TOKENS,
    )
    vae = {"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1, "latent_channels": 16}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    scales = {"scaling_factor": 0.3611, "shift_factor": 0.1159}
    with torch.inference_mode(False), torch.no_grad():
        parts = {
            "transformer": LongCatImageTransformer2DModel(num_layers=1, num_single_layers=1, **heads),
            "text_encoder": Qwen2_5_VLForConditionalGeneration(config),
            "vae": AutoencoderKL(**vae, **blocks, **scales, use_quant_conv=False, use_post_quant_conv=False),
        }
        generator = torch.Generator().manual_seed(0)
        for part in parts.values():
            for name, weight in part.named_parameters():
                weight.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.05, generator=generator)
    return parts


def _write_tokenizer_with_qwen_ids(folder: Path) -> None:
    from comfyui_longcat.tests.twins.tokenizer import write_tokenizer

    write_tokenizer(folder)
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    (folder / "vocab.json").write_text(json.dumps(vocabulary | QWEN_IDS), encoding="utf-8")
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    by_name = {entry["content"]: entry for entry in config["added_tokens_decoder"].values()}
    config["added_tokens_decoder"] = {str(number): by_name[token] for token, number in QWEN_IDS.items()}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
