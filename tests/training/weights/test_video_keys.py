"""The names of LongCat-Video's tensors: three layouts recognised and converted, everything else refused by name."""

import re

import pytest
import torch
from comfyui_longcat.training.errors import ModelError
from comfyui_longcat.training.models.video.transformer import LongCatVideoTransformer3DModel
from comfyui_longcat.training.weights import video_keys as keys
from comfyui_longcat.training.weights.tensor_file import read_tensor_file
from safetensors.torch import save_file

SIZES = {
    "hidden_size": 32,
    "depth": 2,
    "num_heads": 2,
    "caption_channels": 24,
    "adaln_tembed_dim": 16,
    "frequency_embedding_size": 8,
}

# Written out from the published converters, and not taken from the table that is being tested.
FASTVIDEO = (
    (r"^x_embedder\.", "patch_embed."),
    (r"^t_embedder\.mlp\.0", "time_embedder.linear_1"),
    (r"^t_embedder\.mlp\.2", "time_embedder.linear_2"),
    (r"^y_embedder\.y_proj\.0", "caption_embedder.linear_1"),
    (r"^y_embedder\.y_proj\.2", "caption_embedder.linear_2"),
    (r"^final_layer\.adaLN_modulation\.1", "final_layer.adaln_linear"),
    (r"^final_layer\.linear", "final_layer.proj"),
    (r"\.adaLN_modulation\.1", ".adaln_linear_1"),
    (r"\.pre_crs_attn_norm", ".norm_cross"),
    (r"\.attn\.proj", ".self_attn.to_out"),
    (r"\.attn\.", ".self_attn."),
    (r"\.cross_attn\.q_linear", ".cross_attn.to_q"),
    (r"\.cross_attn\.proj", ".cross_attn.to_out"),
)
WRAPPER = (
    (r"^x_embedder\.proj", "patch_embedding"),
    (r"^t_embedder", "time_embedding"),
    (r"^y_embedder\.y_proj", "text_embedding"),
    (r"^final_layer\.adaLN_modulation", "head.modulation"),
    (r"^final_layer\.linear", "head.head"),
    (r"\.adaLN_modulation", ".modulation"),
    (r"\.pre_crs_attn_norm", ".norm3"),
    (r"attn\.q_norm", "attn.norm_q"),
    (r"attn\.k_norm", "attn.norm_k"),
    (r"\.cross_attn\.q_linear", ".cross_attn.q"),
    (r"attn\.proj", "attn.o"),
    (r"\.attn\.", ".self_attn."),
)


def renamed(official, rules, prefix="") -> dict[str, torch.Tensor]:
    start = "to_" if rules is FASTVIDEO else ""
    tensors = {}
    for name, tensor in official.items():
        for old, new in rules:
            name = re.sub(old, new, name)
        parts = {"qkv": "qkv", "kv_linear": "kv"}.get(name.split(".")[-2])
        if parts is None:
            tensors[prefix + name] = tensor
            continue
        for part, rows in zip(parts, tensor.chunk(len(parts)), strict=True):
            tensors[prefix + name.replace("qkv", "kv_linear").replace("kv_linear", start + part)] = rows.clone()
    return tensors


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return LongCatVideoTransformer3DModel(**SIZES)


@pytest.fixture(scope="module")
def official(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("prefix", ["", "diffusion_model.", "model.diffusion_model.", "transformer."])
@pytest.mark.parametrize("layout", keys.LAYOUTS)
def test_every_layout_is_recognised_and_converted(model, official, layout, prefix):
    rules = {keys.OFFICIAL: None, keys.FASTVIDEO: FASTVIDEO, keys.WRAPPER: WRAPPER}[layout]
    given = renamed(official, rules, prefix) if rules else {prefix + name: each for name, each in official.items()}
    if prefix:
        given["vae.encoder.conv_in.weight"] = torch.zeros(1)  # whole checkpoints hold other parts too
    found = keys.recognise({name: tuple(tensor.shape) for name, tensor in given.items()}, "file")
    assert found.layout == layout
    wanted = {**dict(model.config), **{"patch_size": list(model.config.patch_size)}}
    assert found.config == {name: wanted[name] for name in found.config}
    assert found.config.items() >= SIZES.items()
    converted = keys.convert(given)
    assert converted.keys() == official.keys()
    assert not [name for name in official if not torch.equal(converted[name], official[name])]
    LongCatVideoTransformer3DModel(**found.config).load_state_dict(converted)


def test_fp8_files_of_the_wrapper_are_read_as_the_numbers_they_stand_for(official, tmp_path):
    tensors = renamed(official, WRAPPER, "diffusion_model.")
    scaled = {}
    for name, tensor in tensors.items():
        if "self_attn.k.weight" in name:
            scaled[name] = (tensor / 0.01).to(torch.float8_e4m3fn)
            scaled[name.replace(".weight", ".scale_weight")] = torch.tensor(0.01)
        else:
            scaled[name] = tensor
    scaled["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    save_file(scaled, tmp_path / "longcat.safetensors")
    file = read_tensor_file(tmp_path / "longcat.safetensors")
    found = keys.recognise(file.shapes, file.path)
    assert found.layout == keys.WRAPPER
    with file.reading() as read:
        joined = keys.assemble(found, "blocks.1.attn.qkv.weight", read)
    wanted = official["blocks.1.attn.qkv.weight"]
    assert torch.equal(joined[:32], wanted[:32]) and torch.equal(joined[64:], wanted[64:])
    error = (joined[32:64] - wanted[32:64]).abs().max()
    print(f"fp8 keys differ by {error:.1e}")
    assert 0 < error < 0.07 * wanted.abs().max()


def shapes_of(tensors) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def changed(shapes, added=None, removed=()) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, shape in {**shapes, **(added or {})}.items() if name not in removed}


@pytest.mark.parametrize(
    ("added", "removed", "message"),
    [
        ({"audio_proj.proj1.weight": (4, 4)}, (), "LongCat-Video-Avatar"),
        ({"blocks.0.audio_cross_attn.q_linear.weight": (4, 4)}, (), "LongCat-Video-Avatar"),
        ({"blocks.1.audio_adaLN_modulation.1.weight": (4, 4)}, (), "LongCat-Video-Avatar"),
        ({"blocks.0.ffn.w1.weight_int8": (4, 4)}, ("blocks.0.ffn.w1.weight",), "stored as int8"),
        ({}, ("blocks.1.attn.qkv.bias",), "1 tensors are missing, such as blocks.1.attn.qkv.bias"),
        ({"blocks.1.attn.extra.weight": (4,)}, (), "1 tensors are unknown, such as blocks.1.attn.extra.weight"),
        ({"x_embedder.proj.weight": (32, 64)}, (), "other shapes"),
    ],
)
def test_faulty_and_foreign_files_are_refused_by_name(official, added, removed, message):
    with pytest.raises(ModelError, match=re.escape(message)) as caught:
        keys.recognise(changed(shapes_of(official), added, removed), "some/file.safetensors")
    assert "some/file.safetensors" in str(caught.value)


@pytest.mark.parametrize(
    ("names", "model"),
    [
        (["blocks.0.self_attn.q.weight", "blocks.0.modulation", "head.modulation"], "a Wan transformer"),
        (["double_blocks.0.img_attn.qkv.weight", "vector_in.in_layer.weight"], "a Flux.1 transformer"),
        (["anything.weight"], "tensors such as anything.weight"),
    ],
)
def test_other_models_are_named(names, model):
    with pytest.raises(ModelError, match=re.escape(model)):
        keys.recognise(dict.fromkeys(names, (4, 4)), "file")
    assert not keys.is_video_transformer(names)


def test_is_video_transformer_knows_every_layout(official):
    for given in (official, renamed(official, FASTVIDEO), renamed(official, WRAPPER, "diffusion_model.")):
        assert keys.is_video_transformer(given)
