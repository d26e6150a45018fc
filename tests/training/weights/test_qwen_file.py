"""Qwen2.5-VL from ComfyUI's single file: names, settings, fp8."""

import copy

import pytest
import torch
from comfyui_longcat.training.errors import ModelError
from comfyui_longcat.training.weights import qwen_file, single_file
from comfyui_longcat.training.weights.tensor_file import read_tensor_file
from safetensors.torch import load_file, save_file


@pytest.fixture(scope="module")
def text_encoder():
    """Heads of 128 and 80, as in the released sizes; 9 vision blocks, so that one attends to the whole picture."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = {"vocab_size": 300, "hidden_size": 256, "intermediate_size": 48, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    vision = {"depth": 9, "hidden_size": 80, "intermediate_size": 40, "num_heads": 1, "out_hidden_size": 256}
    tokens = {"image_token_id": 290, "video_token_id": 291, "vision_start_token_id": 292, "vision_end_token_id": 293}
    config = Qwen2_5_VLConfig(
        text_config={**text, **heads, **copy.deepcopy(qwen_file.LANGUAGE)},
        vision_config={**vision, "fullatt_block_indexes": [7]},
        **tokens,
    )
    model = Qwen2_5_VLForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0.0, 0.05, generator=generator)
    return model


def hub_names(model, head: bool) -> dict[str, torch.Tensor]:
    """State dict under the names of the hub's first release."""
    old = {}
    for name, tensor in model.state_dict().items():
        name = name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")
        if head or name != "lm_head.weight":
            old[name] = tensor.clone()
    return old


def quantised(tensors: dict, layout: str) -> tuple[dict, dict]:
    """(what an fp8_scaled file holds, the numbers it stands for); linears only, as ComfyUI's files do."""
    stored, meant = {}, dict(tensors)
    for name, tensor in tensors.items():
        layer = name.removesuffix(".weight")
        if tensor.ndim != 2 or "embed" in name or layer == name:
            stored[name] = tensor
            continue
        scale = tensor.abs().max() / 448
        stored[name] = (tensor / scale).to(torch.float8_e4m3fn)
        meant[name] = stored[name].float() * scale
        if layout == "older":
            stored[f"{layer}.scale_weight"] = scale
            stored[f"{layer}.scale_input"] = torch.ones(())
        else:
            stored[f"{layer}.weight_scale"] = scale.reshape(1)
            stored[f"{layer}.comfy_quant"] = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
    if layout == "older":
        stored["scaled_fp8"] = torch.zeros(2).to(torch.float8_e4m3fn)
    return stored, meant


def last_states(model) -> torch.Tensor:
    """Hidden states of a prompt with a picture of 4 x 4 patches."""
    ids = torch.tensor([[5, 6, 292, 290, 290, 290, 290, 293, 7, 8]])
    positions = torch.arange(ids.shape[1]).expand(3, 1, -1)
    pixels = torch.randn(16, 1176, generator=torch.Generator().manual_seed(2))
    model.config.image_token_id = 290  # the released id lies beyond the tiny vocabulary
    with torch.no_grad():
        return model.base_model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            position_ids=positions,
            pixel_values=pixels,
            image_grid_thw=torch.tensor([[1, 4, 4]]),
        ).last_hidden_state


@pytest.mark.parametrize("names", ["hub", "hub without head", "transformers"])
def test_a_text_encoder_loads_under_old_and_new_names(text_encoder, tmp_path, names):
    path = tmp_path / "qwen_2.5_vl_7b.safetensors"
    newer = {name: tensor.clone() for name, tensor in text_encoder.state_dict().items()}
    save_file(newer if names == "transformers" else hub_names(text_encoder, names == "hub"), path)
    file = single_file.inspect(path)
    assert (file.kind, file.config["text_config"]["num_hidden_layers"]) == ("text_encoder", 3)
    before = copy.deepcopy(qwen_file.LANGUAGE)
    loaded = single_file.load_text_encoder(path, torch.float32)
    assert qwen_file.LANGUAGE == before
    assert not loaded.training
    wanted = last_states(text_encoder)
    assert wanted.std() > 0.01
    assert torch.equal(last_states(loaded), wanted)
    head = loaded.lm_head.weight.data_ptr() == loaded.get_input_embeddings().weight.data_ptr()
    assert head == (names == "hub without head")


@pytest.mark.parametrize("layout", ["older", "newer"])
def test_an_fp8_text_encoder_loads_as_the_numbers_it_stands_for(text_encoder, tmp_path, layout):
    stored, meant = quantised(hub_names(text_encoder, head=False), layout)
    path = tmp_path / "qwen_2.5_vl_7b_fp8_scaled.safetensors"
    save_file(stored, path)
    file = single_file.inspect(path)
    assert (file.kind, file.precision) == ("text_encoder", "fp8_scaled")
    loaded = hub_names(single_file.load_text_encoder(path, torch.bfloat16), head=False)
    assert set(loaded) == set(meant)
    assert not [name for name in meant if not torch.equal(loaded[name], meant[name].bfloat16())]
    exact = last_states(text_encoder)
    error = (last_states(single_file.load_text_encoder(path, torch.float32)) - exact).norm() / exact.norm()
    print(f"relative error of fp8 hidden states: {error:.3f}")
    assert 0.001 < error < 0.2


def test_the_released_text_encoders_settings_are_inferred(tmp_path):
    """Against the released config.json's numbers (longcat-image.md, section 1; huggingface/transformers)."""
    shapes = {
        "model.embed_tokens.weight": (152064, 3584),
        "model.layers.0.self_attn.q_proj.weight": (3584, 3584),
        "model.layers.0.self_attn.k_proj.weight": (512, 3584),
        "model.layers.0.self_attn.k_proj.bias": (512,),
        "model.layers.0.mlp.gate_proj.weight": (18944, 3584),
        "model.layers.27.input_layernorm.weight": (3584,),
        "visual.blocks.0.attn.proj.weight": (1280, 1280),
        "visual.blocks.0.mlp.gate_proj.weight": (3420, 1280),
        "visual.blocks.31.norm1.weight": (1280,),
        "visual.merger.mlp.2.weight": (3584, 5120),
    }
    config = qwen_file.text_encoder_config(qwen_file.text_encoder_names(shapes), shapes, tmp_path)
    text, vision = config["text_config"], config["vision_config"]
    assert [text[name] for name in ("num_hidden_layers", "num_attention_heads", "num_key_value_heads")] == [28, 28, 4]
    assert [text[name] for name in ("vocab_size", "hidden_size", "intermediate_size")] == [152064, 3584, 18944]
    assert (vision["depth"], vision["num_heads"], vision["intermediate_size"]) == (32, 16, 3420)
    assert vision["fullatt_block_indexes"] == [7, 15, 23, 31]


def test_other_text_encoders_are_refused_by_name(text_encoder, tmp_path):
    whole = hub_names(text_encoder, head=False)
    qwen3 = whole | {"model.layers.0.self_attn.q_norm.weight": torch.zeros(4)}
    del qwen3["model.layers.0.self_attn.k_proj.bias"]
    cases = {
        "a Qwen3 or Gemma text encoder": qwen3,
        "no visual.blocks.0": {name: tensor for name, tensor in whole.items() if "visual" not in name},
    }
    for number, (message, tensors) in enumerate(cases.items()):
        path = tmp_path / f"{number}.safetensors"
        save_file(tensors, path)
        with pytest.raises(ModelError, match=message) as raised:
            single_file.inspect(path)
        assert str(path) in str(raised.value)


@pytest.mark.parametrize("shape", [(), (0,), (7,), (0, 0), (7, 255), (2, 2, 2)])
@pytest.mark.parametrize("part", qwen_file.PARTS)
def test_tensors_of_any_other_shape_are_our_error(text_encoder, tmp_path, part, shape):
    save_file(
        hub_names(text_encoder, head=False) | {qwen_file.PARTS[part]: torch.zeros(shape)}, tmp_path / "odd.safetensors"
    )
    with pytest.raises(ModelError, match=r"odd\.safetensors"):
        single_file.load_text_encoder(tmp_path / "odd.safetensors", torch.float32)


@pytest.mark.parametrize("number", ["9" * 400, "1000000", "\N{ARABIC-INDIC DIGIT THREE}"])
def test_a_damaged_number_of_a_block_is_not_counted_up_to(text_encoder, tmp_path, number):
    path = tmp_path / "odd.safetensors"
    weights = hub_names(text_encoder, head=False)
    weights[f"model.layers.{number}.mlp.up_proj.weight"] = weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, path)
    with pytest.raises(ModelError, match="1 tensors are missing.*layers.1.mlp.up_proj"):
        single_file.load_text_encoder(path, torch.float32)


def test_missing_and_misshapen_tensors_are_refused(text_encoder, tmp_path):
    path = tmp_path / "odd.safetensors"
    odd = hub_names(text_encoder, head=True)
    del odd["model.layers.1.mlp.up_proj.weight"]
    save_file(odd, path)
    with pytest.raises(ModelError, match="1 tensors are missing.*layers.1.mlp.up_proj"):
        single_file.load_text_encoder(path, torch.float32)
    odd["model.layers.1.mlp.up_proj.weight"] = torch.zeros(2, 2)
    save_file(odd, path)
    with pytest.raises(ModelError, match="does not fit together"):
        single_file.load_text_encoder(path, torch.float32)


def test_markers_of_quantisation_are_no_weights(tmp_path):
    stored, _ = quantised({"layer.weight": torch.ones(4, 4), "layer.bias": torch.ones(4)}, "older")
    save_file(stored, tmp_path / "one.safetensors")
    file = read_tensor_file(tmp_path / "one.safetensors")
    assert set(file.shapes) == {"layer.weight", "layer.bias"}
    assert set(load_file(file.path)) > set(file.shapes)
