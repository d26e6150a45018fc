"""ComfyUI's single files: recognised by the header alone, loaded exactly, refused by name."""

import copy
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from comfyui_longcat.training.errors import ModelError
from comfyui_longcat.training.weights import image_keys, qwen_file, single_file
from safetensors.torch import save_file

HEADS_OF_128 = {"num_layers": 1, "num_single_layers": 2, "num_attention_heads": 1, "pooled_projection_dim": 256}


def randomise(model: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0.0, 0.05, generator=generator)
    return model.eval()


@pytest.fixture(scope="module")
def transformer():
    from diffusers import LongCatImageTransformer2DModel

    return randomise(LongCatImageTransformer2DModel(**HEADS_OF_128, joint_attention_dim=256))


def assert_same_weights(found, wanted) -> None:
    found, wanted = found.state_dict(), wanted.state_dict()
    assert set(found) == set(wanted)
    assert not [name for name in wanted if not torch.equal(found[name], wanted[name].to(found[name].dtype))]


# The transformer


def test_a_transformer_is_exported_recognised_and_loaded(transformer, tmp_path):
    path = tmp_path / "mine.safetensors"
    single_file.export_transformer(transformer, path, {"longcat.run": "first"})
    file = single_file.inspect(path)
    assert (file.kind, file.layout, file.precision) == ("transformer", "native", "f32")
    assert file.config["num_single_layers"] == 2
    loaded = single_file.load_transformer(path, torch.float32)
    assert_same_weights(loaded, transformer)
    assert not loaded.training
    assert {name: value for name, value in loaded.config.items() if name in file.config} == file.config
    half = single_file.load_transformer(path, torch.bfloat16)
    assert {weight.dtype for weight in half.parameters()} == {torch.bfloat16}
    assert_same_weights(half, transformer)


def test_a_diffusers_layout_file_loads_too(transformer, tmp_path):
    path = tmp_path / "hub.safetensors"
    save_file({f"diffusion_model.{name}": value for name, value in transformer.state_dict().items()}, path)
    assert single_file.inspect(path).layout == "diffusers"
    assert_same_weights(single_file.load_transformer(path, torch.float32), transformer)


def test_an_fp8_transformer_loads_as_the_numbers_it_stands_for(transformer, tmp_path):
    path = tmp_path / "fp8.safetensors"
    native = image_keys.convert(transformer.state_dict(), image_keys.NATIVE)
    stored = {name: tensor.contiguous() for name, tensor in native.items()}
    scale = torch.tensor(0.002)
    for layer in ("double_blocks.0.img_attn.qkv", "single_blocks.1.linear1", "final_layer.adaLN_modulation.1"):
        stored[f"{layer}.weight"] = (native[f"{layer}.weight"] / scale).to(torch.float8_e4m3fn)
        stored[f"{layer}.weight_scale"] = scale.clone()
        native[f"{layer}.weight"] = stored[f"{layer}.weight"].float() * scale
    save_file(stored, path)
    assert single_file.inspect(path).precision == "fp8_scaled"
    loaded = single_file.load_transformer(path, torch.float32).state_dict()
    wanted = image_keys.convert(native, image_keys.DIFFUSERS)
    assert not torch.equal(wanted["norm_out.linear.weight"], transformer.norm_out.linear.weight)
    assert not [name for name in wanted if not torch.equal(loaded[name], wanted[name])]


def test_loaded_weights_do_not_hang_on_the_file(transformer, tmp_path):
    path = tmp_path / "mine.safetensors"
    single_file.export_transformer(transformer, path)
    loaded = single_file.load_transformer(path, torch.float32)
    length = path.stat().st_size
    with path.open("rb+") as file:
        file.seek(length // 2)
        file.write(bytes(length - length // 2))
    assert_same_weights(loaded, transformer)


def bytes_read():
    """What this process has read so far; 0 where the system does not count it."""
    counts = Path("/proc/self/io")
    return int(counts.read_text().split()[1]) if counts.exists() else 0


def test_the_released_size_is_recognised_by_its_header(tmp_path):
    """12.5 GB that are not there."""
    from diffusers import LongCatImageTransformer2DModel

    with torch.device("meta"):
        released = LongCatImageTransformer2DModel(num_layers=10, num_single_layers=20).state_dict()
    header, end = {}, 0
    for name, tensor in image_keys.convert(released, image_keys.NATIVE).items():
        start, end = end, end + 2 * tensor.numel()
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    path = tmp_path / "longcat_image_bf16.safetensors"
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    before = bytes_read()
    found = single_file.inspect(path)
    assert bytes_read() - before < 10 * len(text)
    assert end == 12_541_337_728
    assert (found.precision, found.config["num_layers"], found.config["num_attention_heads"]) == ("bf16", 10, 24)


def test_a_model_with_adapters_is_not_exported(transformer, tmp_path):
    from peft import LoraConfig

    model = copy.deepcopy(transformer)
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    with pytest.raises(ModelError, match="the model to export.*a LoRA"):
        single_file.export_transformer(model, tmp_path / "mine.safetensors")
    assert not list(tmp_path.iterdir())


# What is refused


def test_other_models_are_refused_by_name(tmp_path):
    cases = {
        "a LoRA": "transformer.transformer_blocks.0.attn.to_q.lora_A.weight",
        "a LongCat-Video transformer": "blocks.0.cross_attn.kv_linear.weight",
        "a T5 text encoder": "encoder.block.0.layer.0.SelfAttention.q.weight",
        "a CLIP text encoder": "text_model.encoder.layers.0.mlp.fc1.weight",
        "a Wan VAE": "encoder.downsamples.0.residual.2.weight",
        "tensors such as something.else": "something.else",
    }
    for number, (message, name) in enumerate(cases.items()):
        path = tmp_path / f"{number}.safetensors"
        save_file({name: torch.zeros(4, 4)}, path)
        with pytest.raises(ModelError, match=message) as raised:
            single_file.inspect(path)
        assert str(path) in str(raised.value)


def test_tensors_of_another_shape_are_refused(transformer, tmp_path):
    path = tmp_path / "odd.safetensors"
    native = image_keys.convert(transformer.state_dict(), image_keys.NATIVE)
    odd = {name: tensor.contiguous() for name, tensor in native.items()} | {"txt_in.bias": torch.zeros(5)}
    save_file(odd, path)
    with pytest.raises(ModelError, match="does not fit together.*context_embedder.bias"):
        single_file.load_transformer(path, torch.float32)


def test_parts_of_different_models_are_refused():
    def part(kind: str, config: dict) -> single_file.SingleFile:
        return single_file.SingleFile(path=Path(kind), kind=kind, layout="", precision="bf16", config=config)

    transformer = part("transformer", {"joint_attention_dim": 3584, "in_channels": 64})
    vae, text_encoder = (
        part("vae", {"latent_channels": 16}),
        part("text_encoder", {"text_config": {"hidden_size": 3584}}),
    )
    single_file.check_parts(transformer, vae, text_encoder)
    with pytest.raises(ModelError, match="transformer holds a transformer; a vae is needed"):
        single_file.check_parts(transformer, transformer, text_encoder)
    with pytest.raises(ModelError, match="joint_attention_dim 3584.*gives 2048"):
        single_file.check_parts(transformer, vae, part("text_encoder", {"text_config": {"hidden_size": 2048}}))
    with pytest.raises(ModelError, match="in_channels 64.*gives 16"):
        single_file.check_parts(transformer, part("vae", {"latent_channels": 4}), text_encoder)


@pytest.mark.parametrize(
    ("scale", "stored"),
    [
        (torch.ones(4, 1), torch.float8_e4m3fn),  # block or row scales
        (torch.ones(()), torch.int8),
        (torch.ones(4, 1, dtype=torch.uint8), torch.float8_e4m3fn),
    ],
)
def test_other_quantisations_are_refused(tmp_path, scale, stored):
    path = tmp_path / "quantised.safetensors"
    weight = torch.ones(4, 4).to(stored)
    save_file({"model.layers.0.mlp.up_proj.weight": weight, "model.layers.0.mlp.up_proj.weight_scale": scale}, path)
    with pytest.raises(ModelError, match="model.layers.0.mlp.up_proj.weight is .*Choose a bf16 or fp8_scaled"):
        single_file.inspect(path)


def test_whole_numbers_are_no_weights(tmp_path):
    path = tmp_path / "nf4.safetensors"
    save_file({"img_in.weight": torch.ones(4, 4, dtype=torch.uint8)}, path)
    with pytest.raises(ModelError, match="tensors of type U8"):
        single_file.inspect(path)


def test_damaged_and_other_files_are_refused(transformer, tmp_path):
    path = tmp_path / "mine.safetensors"
    single_file.export_transformer(transformer, path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    for load in (single_file.inspect, lambda file: single_file.load_transformer(file, torch.float32)):
        with pytest.raises(ModelError, match="is damaged: it has"):
            load(path)
    path.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ModelError, match="no safetensors file"):
        single_file.inspect(path)
    with pytest.raises(ModelError, match="missing"):
        single_file.inspect(tmp_path / "nowhere.safetensors")
    gguf = path.rename(tmp_path / "model.gguf")
    with pytest.raises(ModelError, match=r"\.gguf, \.ckpt, \.pt\) are not read") as raised:
        single_file.inspect(gguf)
    assert "elete" not in str(raised.value)


@pytest.mark.parametrize("shape", [(), (3,), (0,), (0, 0), (2, 2, 2), (1, 64)])
@pytest.mark.parametrize(
    "name",
    [
        *("img_in.weight", "txt_in.weight", "double_blocks.0.img_attn.norm.query_norm.weight"),
        *(
            "double_blocks.0.img_attn.qkv.weight",
            "single_blocks.1.linear1.bias",
            "final_layer.adaLN_modulation.1.weight",
        ),
    ],
)
def test_tensors_of_any_other_shape_are_our_error(transformer, tmp_path, name, shape):
    path = tmp_path / "odd.safetensors"
    native = image_keys.convert(transformer.state_dict(), image_keys.NATIVE)
    save_file({each: tensor.contiguous() for each, tensor in native.items()} | {name: torch.zeros(shape)}, path)
    with pytest.raises(ModelError, match=r"odd\.safetensors"):
        single_file.load_transformer(path, torch.float32)


@pytest.mark.parametrize("number", ["9" * 30, "1000000", "-1", "00", "\N{ARABIC-INDIC DIGIT THREE}"])
def test_a_damaged_number_of_a_block_is_not_counted_up_to(transformer, tmp_path, number):
    path = tmp_path / "odd.safetensors"
    weights = {name: tensor.clone() for name, tensor in transformer.state_dict().items()}
    moved = weights.pop("single_transformer_blocks.1.attn.to_q.weight")
    save_file(weights | {f"single_transformer_blocks.{number}.attn.to_q.weight": moved}, path)
    with pytest.raises(ModelError, match="missing, such as single_transformer_blocks.1.attn.to_q.weight") as raised:
        single_file.inspect(path)
    assert len(str(raised.value)) < 1_000


# What is found


def test_the_image_processor_has_qwens_numbers():
    from PIL import Image

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (512, 512, 3), dtype=np.uint8))
    processed = qwen_file.image_processor()(images=[picture], return_tensors="pt")
    # 512 -> 504 px, 36 patches of 14 px a side, 324 tokens after merging (longcat-image.md, section 2.3).
    assert processed["pixel_values"].shape == (36 * 36, 1176)
    assert processed["image_grid_thw"].tolist() == [[1, 36, 36]]


def test_a_missing_tokenizer_is_explained(tiny_checkpoint, tmp_path):
    found = single_file.find_tokenizer([tmp_path, tiny_checkpoint / "tokenizer"])
    assert found == tiny_checkpoint / "tokenizer"
    with pytest.raises(ModelError, match="vocab.json, merges.txt") as raised:
        single_file.find_tokenizer([tmp_path])
    assert str(tmp_path) in str(raised.value)


def test_known_names_are_found_with_their_flavour(tmp_path):
    expected = {
        "diffusion_models/longcat_image_bf16.safetensors": ("transformer", "final"),
        "diffusion_models/sub/LongCat_Image_Edit_bf16.safetensors": ("transformer", "edit"),
        "diffusion_models/longcat-image-edit-turbo_fp8.safetensors": ("transformer", "edit-turbo"),
        "diffusion_models/longcat_image_dev_bf16.safetensors": ("transformer", "dev"),
        "text_encoders/qwen_2.5_vl_7b_fp8_scaled.safetensors": ("text_encoder", None),
        "vae/ae.safetensors": ("vae", None),
    }
    others = ("vae/vae.safetensors", "diffusion_models/flux1-dev.safetensors", "diffusion_models/longcat_image.gguf")
    for name in (*expected, *others):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    os.symlink(tmp_path / "vae", tmp_path / "vae" / "loop", target_is_directory=True)
    folders = [tmp_path / name for name in ("diffusion_models", "text_encoders", "vae", "nowhere")]
    found = single_file.find_in(folders)
    assert {file.path.relative_to(tmp_path).as_posix(): (file.kind, file.flavour) for file in found} == expected
    assert len(found) == len(expected)
