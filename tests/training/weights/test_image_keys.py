"""Names of the transformer's tensors in ComfyUI's files and in diffusers: both ways, and what is refused."""

import pytest
import torch
from comfyui_longcat.training.errors import ModelError
from comfyui_longcat.training.weights import image_keys
from comfyui_longcat.training.weights.image_keys import DIFFUSERS, NATIVE, convert, plan, recognise

WIDTH = 256


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """Random tensors of a transformer of 2 double and 3 single blocks, diffusers' names."""
    from diffusers import LongCatImageTransformer2DModel

    with torch.device("meta"):
        model = LongCatImageTransformer2DModel(
            num_layers=2, num_single_layers=3, num_attention_heads=2, joint_attention_dim=96, pooled_projection_dim=96
        )
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(tensor.shape, generator=generator) for name, tensor in model.state_dict().items()}


def shapes(tensors) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def assert_equal(found: dict, wanted: dict) -> None:
    assert set(found) == set(wanted)
    different = [name for name in wanted if not torch.equal(found[name], wanted[name])]
    assert not different


def test_there_and_back_is_exact(weights):
    native = convert(weights, NATIVE)
    print(f"{len(weights)} tensors in diffusers, {len(native)} native")
    assert (len(weights), len(native)) == (118, 84)  # longcat-image.md, section 9
    assert_equal(convert(native, DIFFUSERS), weights)
    assert_equal(convert(weights, DIFFUSERS), weights)
    assert_equal(convert(native, NATIVE), native)


def test_fused_rows_and_swapped_halves(weights):
    native = convert(weights, NATIVE)
    block = "transformer_blocks.1.attn"
    joined = native["double_blocks.1.txt_attn.qkv.bias"]
    for number, part in enumerate(("add_q_proj", "add_k_proj", "add_v_proj")):
        assert torch.equal(joined[number * WIDTH : (number + 1) * WIDTH], weights[f"{block}.{part}.bias"])
    linear1 = native["single_blocks.2.linear1.weight"]
    assert linear1.shape == (7 * WIDTH, WIDTH)
    assert torch.equal(linear1[3 * WIDTH :], weights["single_transformer_blocks.2.proj_mlp.weight"])
    shift, scale = native["final_layer.adaLN_modulation.1.weight"].chunk(2)
    assert torch.equal(torch.cat([scale, shift]), weights["norm_out.linear.weight"])
    assert torch.equal(
        native["double_blocks.0.img_attn.norm.key_norm.weight"], weights["transformer_blocks.0.attn.norm_k.weight"]
    )


@pytest.mark.parametrize("prefix", ["", "diffusion_model.", "model.diffusion_model."])
@pytest.mark.parametrize("layout", [NATIVE, DIFFUSERS])
def test_prefixes_are_taken_off_and_other_models_tensors_left_aside(weights, prefix, layout):
    tensors = {f"{prefix}{name}": tensor for name, tensor in convert(weights, layout).items()}
    if prefix:
        tensors["first_stage_model.encoder.conv_in.weight"] = torch.zeros(1)
    assert recognise(shapes(tensors), "file").layout == layout
    assert_equal(convert(tensors, DIFFUSERS), weights)


def test_older_and_borrowed_names_are_read(weights):
    older = {name.replace("_norm.weight", "_norm.scale"): value for name, value in convert(weights, NATIVE).items()}
    assert sum(name.endswith("_norm.scale") for name in older) == 2 * 4 + 3 * 2
    assert_equal(convert(older, DIFFUSERS), weights)
    borrowed = {name.replace("time_embed.", "time_text_embed."): value for name, value in weights.items()}
    assert borrowed.keys() != weights.keys()
    assert_equal(convert(borrowed, DIFFUSERS), weights)


@pytest.mark.parametrize("layout", [NATIVE, DIFFUSERS])
def test_the_released_sizes_are_inferred(layout):
    from diffusers import LongCatImageTransformer2DModel

    with torch.device("meta"):
        released = LongCatImageTransformer2DModel(num_layers=10, num_single_layers=20).state_dict()
    assert sum(tensor.numel() for tensor in released.values()) == 6_270_668_864  # longcat-image.md, section 1
    keys = recognise(shapes(convert(released, layout)), "file")
    assert keys.config == {
        "patch_size": 1,
        "in_channels": 64,
        "num_layers": 10,
        "num_single_layers": 20,
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "joint_attention_dim": 3584,
        "pooled_projection_dim": 3584,
        "axes_dims_rope": [16, 56, 56],
    }
    assert len(plan(keys, DIFFUSERS)) == 612


def test_parts_of_a_fused_tensor_follow_each_other(weights):
    """Readers keep only the last tensor of the file."""
    sources = [
        recipe.sources[0] for recipe in plan(recognise(shapes(convert(weights, NATIVE)), "f"), DIFFUSERS).values()
    ]
    changes = sum(first != second for first, second in zip(sources, sources[1:], strict=False))
    assert changes == len(set(sources)) - 1


def test_other_transformers_are_refused_by_name(weights):
    native = shapes(convert(weights, NATIVE))
    video = {"blocks.0.cross_attn.kv_linear.weight": (64, 32), "blocks.0.attn.qkv.weight": (96, 32)}
    cases = {
        "Flux.1 transformer \\(it has vector_in\\)": native | {"vector_in.in_layer.weight": (256, 768)},
        "Flux.1 transformer \\(it has guidance_in\\)": native | {"guidance_in.in_layer.weight": (256, 256)},
        "LongCat-Video transformer": video,
        "Qwen-Image transformer": {"transformer_blocks.0.img_mod.1.weight": (64, 32)},
        "Stable Diffusion UNet": {"model.diffusion_model.input_blocks.0.0.weight": (64, 32)},
        "a LoRA": {"transformer_blocks.0.attn.to_q.lora_A.weight": (4, 32)},
    }
    for message, tensors in cases.items():
        with pytest.raises(ModelError, match=message) as raised:
            recognise(tensors, "some.safetensors")
        assert "some.safetensors" in str(raised.value)


def test_missing_and_unknown_tensors_are_named(weights):
    native = shapes(convert(weights, NATIVE))
    del native["double_blocks.1.img_mlp.2.bias"]
    native["double_blocks.1.img_mlp.3.bias"] = (8,)
    with pytest.raises(ModelError, match="1 missing, such as double_blocks.1.img_mlp.2.bias; 1 unknown"):
        recognise(native, "file")


def test_sizes_that_no_tensor_tells_are_not_guessed(tiny_checkpoint):
    from safetensors.torch import load_file

    twin = load_file(tiny_checkpoint / "transformer" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(ModelError, match="heads of 16 in a width of 64.*diffusers folder"):
        recognise(shapes(twin), "file")


def test_every_module_of_the_table_is_used(weights):
    keys = recognise(shapes(weights), "file")
    used = {source for recipe in plan(keys, NATIVE).values() for source in recipe.sources}
    assert used == set(weights)
    assert image_keys.SWAPPED in {native for native, _ in image_keys.TOP}
