"""Flux.1's VAE from ComfyUI's `ae.safetensors`, in both layouts."""

import pytest
import torch
from comfyui_longcat.training.errors import ModelError
from comfyui_longcat.training.weights import single_file
from safetensors.torch import save_file


@pytest.fixture(scope="module")
def vae():
    from diffusers import AutoencoderKL

    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 32, 64, 64),
        layers_per_block=2,
        latent_channels=16,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0.0, 0.05, generator=generator)
    return model.eval()


def original_names(vae) -> dict[str, torch.Tensor]:
    """An AutoencoderKL's state dict as Flux's `ae.safetensors` has it, written out independently of diffusers."""
    top = len(vae.config.block_out_channels) - 1
    attention = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    original = {}
    for name, tensor in vae.state_dict().items():
        parts = name.split(".")
        if parts[1] in ("down_blocks", "up_blocks"):
            side, number = parts[1].removesuffix("_blocks"), int(parts[2])
            level = number if side == "down" else top - number
            if parts[3] == "resnets":
                middle = ["block", parts[4], parts[5].replace("conv_shortcut", "nin_shortcut")]
            else:
                middle = [f"{side}sample", "conv"]
            parts = [parts[0], side, str(level), *middle, parts[-1]]
        elif parts[1:3] == ["mid_block", "resnets"]:
            parts = [parts[0], "mid", f"block_{int(parts[3]) + 1}", *parts[4:]]
        elif parts[1:3] == ["mid_block", "attentions"]:
            kind = attention[".".join(parts[4:-1])]
            tensor = tensor[:, :, None, None] if tensor.ndim == 2 else tensor
            parts = [parts[0], "mid", "attn_1", kind, parts[-1]]
        elif parts[1] == "conv_norm_out":
            parts[1] = "norm_out"
        original[".".join(parts)] = tensor.clone()
    return original


def assert_same_weights(found, wanted) -> None:
    found, wanted = found.state_dict(), wanted.state_dict()
    assert set(found) == set(wanted)
    assert not [name for name in wanted if not torch.equal(found[name], wanted[name].to(found[name].dtype))]


@pytest.mark.parametrize("prefix", ["", "vae.", "first_stage_model."])
@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_a_vae_loads_in_either_layout(vae, tmp_path, prefix, layout):
    tensors = original_names(vae) if layout == "original" else vae.state_dict()
    path = tmp_path / "ae.safetensors"
    save_file({f"{prefix}{name}": tensor for name, tensor in tensors.items()}, path)
    file = single_file.inspect(path)
    assert (file.kind, file.layout) == ("vae", layout)
    loaded = single_file.load_vae(path)
    assert_same_weights(loaded, vae)
    assert (loaded.config.scaling_factor, loaded.config.shift_factor) == (0.3611, 0.1159)
    assert not loaded.training
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(loaded.encode(pixels).latent_dist.mode(), vae.encode(pixels).latent_dist.mode())


def test_a_half_precision_vae_is_computed_in_float32(vae, tmp_path):
    path = tmp_path / "ae.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in original_names(vae).items()}, path)
    assert {weight.dtype for weight in single_file.load_vae(path).parameters()} == {torch.float32}


def test_vaes_of_other_latents_are_refused(vae, tmp_path):
    cases = {
        "a VAE with 4 latent channels": original_names(vae) | {"decoder.conv_in.weight": torch.zeros(64, 4, 3, 3)},
        "of another model family": original_names(vae) | {"quant_conv.weight": torch.zeros(32, 32, 1, 1)},
    }
    for message, tensors in cases.items():
        path = tmp_path / "ae.safetensors"
        save_file(tensors, path)
        for read in (single_file.inspect, single_file.load_vae):
            with pytest.raises(ModelError, match=message):
                read(path)


@pytest.mark.parametrize("shape", [(), (0,), (16,), (16, 16), (0, 16, 3, 3), (33, 16, 3, 3)])
@pytest.mark.parametrize(
    "name", ["encoder.conv_in.weight", "decoder.conv_in.weight", "encoder.down.0.block.0.conv1.weight"]
)
def test_convolutions_of_any_other_shape_are_our_error(vae, tmp_path, name, shape):
    save_file(original_names(vae) | {name: torch.zeros(shape)}, tmp_path / "ae.safetensors")
    with pytest.raises(ModelError, match=r"ae\.safetensors"):
        single_file.load_vae(tmp_path / "ae.safetensors")


def test_missing_tensors_are_named(vae, tmp_path):
    path = tmp_path / "ae.safetensors"
    lacking = original_names(vae)
    del lacking["decoder.norm_out.bias"]
    save_file(lacking, path)
    with pytest.raises(ModelError, match="does not fit together.*decoder.conv_norm_out.bias"):
        single_file.load_vae(path)
