"""The video transformer against numbers made by the official module: outputs, gradients, cache, LoRA.

The golden file's metadata says how each case was made. Every test prints the difference it found.
"""

import json
import re

import pytest
import torch
from comfyui_longcat.training.models.video.transformer import LongCatVideoTransformer3DModel
from safetensors import safe_open

FP32 = 1e-5
BF16 = 2e-2

# Case -> (timesteps, condition frames, prompt mask, zero padding)
CASES = {
    "t2v": ("timestep_t2v", 0, True, True),
    "i2v": ("timestep_i2v", 1, True, True),
    "t2v_nomask": ("timestep_t2v", 0, False, True),
    "t2v_varlen": ("timestep_t2v", 0, True, False),
    "i2v_varlen": ("timestep_i2v", 1, True, False),
}


@pytest.fixture(scope="module")
def golden(repository):
    with safe_open(repository / "tests" / "assets" / "longcat_video_golden.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        return tensors, json.loads(file.metadata()["config"])


def build(golden, zero_pad=True) -> LongCatVideoTransformer3DModel:
    tensors, config = golden
    model = LongCatVideoTransformer3DModel.from_config({**config, "text_tokens_zero_pad": zero_pad})
    model.load_state_dict({name[3:]: tensor for name, tensor in tensors.items() if name.startswith("sd.")})
    return model.eval()


def arguments(golden, case) -> dict:
    tensors, _ = golden
    timestep, num_cond_latents, masked, _ = CASES[case]
    return {
        "hidden_states": tensors["in.x"].clone(),
        "timestep": tensors[f"in.{timestep}"],
        "encoder_hidden_states": tensors["in.caption"].squeeze(1).clone(),
        "encoder_attention_mask": tensors["in.caption_mask"] if masked else None,
        "num_cond_latents": num_cond_latents,
    }


def assert_near(what, found, wanted, tolerance) -> None:
    difference = (found - wanted).abs().max().item()
    print(f"{what}: differs by {difference:.2e} (allowed {tolerance:.0e}), scale {wanted.abs().max().item():.3g}")
    assert found.shape == wanted.shape
    assert difference <= tolerance


@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_equal_the_official_ones(golden, case):
    tensors, _ = golden
    model = build(golden, zero_pad=CASES[case][-1])
    inputs = arguments(golden, case)
    latents = inputs["hidden_states"].requires_grad_()
    caption = inputs["encoder_hidden_states"].requires_grad_()
    output = model(**inputs)
    assert output.dtype == torch.float32
    assert_near(case, output, tensors[f"out.{case}"], FP32)
    (output * tensors["in.cotangent"]).sum().backward()
    assert_near(f"{case} latents' gradient", latents.grad, tensors[f"grad_x.{case}"], FP32)
    assert_near(f"{case} caption's gradient", caption.grad, tensors[f"grad_caption.{case}"].squeeze(1), FP32)
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None for gradient in gradients)
    norms = {
        "x": latents.grad.norm(),
        "caption": caption.grad.norm(),
        "params": torch.stack([gradient.norm() for gradient in gradients]).norm(),
    }
    for name, norm in norms.items():
        wanted = tensors[f"grad_norm_{name}.{case}"].squeeze()
        assert_near(f"{case} norm of the gradient of {name}, relative", norm / wanted, torch.tensor(1.0), FP32)


@pytest.mark.parametrize("case", ["t2v", "i2v"])
def test_bfloat16_equals_the_official_bfloat16(golden, case):
    tensors, _ = golden
    model = build(golden).to(torch.bfloat16)
    with torch.no_grad():
        output = model(**arguments(golden, case))
    assert output.dtype == torch.float32
    assert_near(f"{case} in bfloat16", output, tensors[f"out.{case}_bf16"], BF16)


def test_a_cache_of_the_condition_frame_equals_the_whole_clip(golden):
    tensors, _ = golden
    model = build(golden)
    inputs = arguments(golden, "i2v")
    latents = inputs["hidden_states"]
    cache = model.cache_cond_latents(latents[:1, :, :1])
    assert len(cache) == 2
    assert_near("keys of block 0", cache[0].keys, tensors["kv.k0"], FP32)
    assert_near("values of block 0", cache[0].values, tensors["kv.v0"], FP32)
    rest = {
        "hidden_states": latents[:, :, 1:],
        "timestep": inputs["timestep"][:, 1:],
        "encoder_hidden_states": inputs["encoder_hidden_states"],
        "encoder_attention_mask": inputs["encoder_attention_mask"],
    }
    latents[1, :, 0] = latents[0, :, 0]
    with torch.no_grad():
        continued = model(**rest, cond_cache=cache)
        whole = model(**inputs)
    assert_near("cached", continued, tensors["out.kvcache"], FP32)
    assert_near("uncached", whole, tensors["out.kvcache_equivalent_i2v"], FP32)
    assert_near("cached against uncached", continued, whole[:, :, 1:], FP32)


def test_an_official_lora_acts_the_same_through_peft(golden):
    from peft import LoraConfig

    tensors, _ = golden
    model = build(golden)
    adapters = official_lora(tensors)
    assert {name: pair[0].shape[0] for name, pair in adapters.items()} == {
        "blocks.0.attn.qkv": 12,
        "blocks.0.ffn.w2": 4,
        "blocks.1.adaLN_modulation.1": 24,
        "blocks.1.cross_attn.kv_linear": 8,
    }
    ranks = {f"^{re.escape(name)}": down.shape[0] for name, (down, _) in adapters.items()}
    model.add_adapter(LoraConfig(target_modules="|".join(ranks), rank_pattern=ranks, alpha_pattern=dict(ranks)))
    for name, (down, up) in adapters.items():
        layer = model.get_submodule(name)
        layer.lora_A["default"].weight.data.copy_(down)
        layer.lora_B["default"].weight.data.copy_(up)
    with torch.no_grad():
        output = model(**arguments(golden, "t2v"))
    assert (output - tensors["out.t2v"]).abs().max() > 0.05
    assert_near("LoRA", output, tensors["out.t2v_lora"], FP32)


def official_lora(tensors) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Module -> (down [s r, in], block-diagonal up [out, s r] with the scale in it)."""
    modules: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("lora."):
            flat, _, part = name.removeprefix("lora.lora___lorahyphen___").partition(".")
            modules.setdefault(flat.replace("___lorahyphen___", "."), {})[part] = tensor
    pairs = {}
    for module, parts in modules.items():
        ups = [parts[part] for part in sorted(parts) if part.startswith("lora_up.")]
        pairs[module] = parts["lora_down.weight"], parts["alpha_scale"] * torch.block_diag(*ups)
    return pairs
