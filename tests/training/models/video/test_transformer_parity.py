"""The video transformer as trainers and samplers use it: memory savers, batches, files, adapters."""

import json
import logging

import pytest
import torch
from comfyui_longcat.training.errors import ConfigError
from comfyui_longcat.training.models.video.attention import prompt_rows
from comfyui_longcat.training.models.video.transformer import LongCatVideoTransformer3DModel
from comfyui_longcat.training.weights.loading import fill, reading_folder
from comfyui_longcat.training.weights.streaming import BlockSwap, blocks_of
from diffusers.utils import logging as diffusers_logging

SIZES = {
    "hidden_size": 64,
    "depth": 2,
    "num_heads": 2,
    "caption_channels": 24,
    "adaln_tembed_dim": 32,
    "frequency_embedding_size": 16,
}

RELEASED = {
    "_class_name": "LongCatVideoTransformer3DModel",
    "adaln_tembed_dim": 512,
    "bsa_params": {"sparsity": 0.9375, "chunk_3d_shape_q": [4, 4, 4], "chunk_3d_shape_k": [4, 4, 4]},
    "caption_channels": 4096,
    "cp_split_hw": None,
    "depth": 48,
    "enable_bsa": False,
    "enable_flashattn2": True,
    "enable_flashattn3": False,
    "enable_xformers": False,
    "frequency_embedding_size": 256,
    "hidden_size": 4096,
    "in_channels": 16,
    "mlp_ratio": 4,
    "num_heads": 32,
    "out_channels": 16,
    "patch_size": [1, 2, 2],
    "text_tokens_zero_pad": True,
}


def normal(*shape, seed=0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def build(**changes) -> LongCatVideoTransformer3DModel:
    model = LongCatVideoTransformer3DModel(**{**SIZES, **changes})
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            drawn = torch.randn(weight.shape, generator=generator)
            is_gain = name.endswith("norm.weight")
            weight.copy_(1 + 0.1 * drawn if is_gain else drawn / max(weight[0].numel(), 32) ** 0.5)
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return build()


def inputs(batch=2, frames=3, slots=64, lengths=(5, 11), height=4, width=6) -> dict[str, torch.Tensor]:
    return {
        "hidden_states": normal(batch, 16, frames, height, width),
        "timestep": torch.tensor([732.0, 88.0])[:batch],  # bfloat16 holds both
        "encoder_hidden_states": normal(batch, slots, 24, seed=1),
        "encoder_attention_mask": torch.stack([(torch.arange(slots) < length).long() for length in lengths[:batch]]),
    }


def largest(found, wanted) -> float:
    difference = (found - wanted).abs().max().item()
    print(f"differs by {difference:.1e}, scale {wanted.abs().max().item():.3g}")
    return difference


# The released sizes and the folder


def test_the_released_config_has_the_released_parameters(tmp_path):
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append
    (tmp_path / "config.json").write_text(json.dumps(RELEASED), encoding="utf-8")
    logger = diffusers_logging.get_logger("diffusers.configuration_utils")
    logger.addHandler(handler)
    try:
        with torch.device("meta"):
            config = LongCatVideoTransformer3DModel.load_config(tmp_path)
            released = LongCatVideoTransformer3DModel.from_config(config)
    finally:
        logger.removeHandler(handler)
    assert not [record.getMessage() for record in records if record.levelno >= logging.WARNING]
    count = sum(parameter.numel() for parameter in released.parameters())
    in_block = sum(parameter.numel() for parameter in released.blocks[0].parameters())
    print(f"{count:,} parameters, {in_block:,} in a block, {len(released.state_dict())} tensors")
    assert count == 13_581_071_424
    assert in_block == 282_132_992
    assert len(released.state_dict()) == 1022
    assert list(released.blocks[0].ffn.w1.weight.shape) == [11008, 4096]


@pytest.mark.parametrize("shard_size", ["10GB", "300KB"])
def test_a_saved_folder_loads_with_equal_results(model, tmp_path, shard_size):
    model.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard_size == "300KB")
    loaded, report = LongCatVideoTransformer3DModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert loaded.config.text_tokens_zero_pad is True
    with torch.no_grad():
        assert torch.equal(loaded(**inputs()), model(**inputs()))


def test_a_folder_loads_in_bfloat16(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = LongCatVideoTransformer3DModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert loaded.compute_dtype == torch.bfloat16
    with torch.no_grad():
        output = loaded(**inputs())
        assert output.dtype == torch.float32
        assert 0 < largest(output, model(**inputs())) < 0.1


def test_a_folder_loads_block_by_block(model, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="300KB")
    with torch.device("meta"):
        empty = LongCatVideoTransformer3DModel.from_config(model.load_config(tmp_path))
    finished = []
    with reading_folder(tmp_path, torch.float32) as (names, read):
        fill(empty, names, read, lambda part, name, is_block: finished.append((name, is_block)), tmp_path)
    assert finished[:2] == [("blocks.0", True), ("blocks.1", True)]
    with torch.no_grad():
        assert torch.equal(empty(**inputs()), model(**inputs()))


# Memory savers change nothing


@pytest.mark.parametrize("num_cond_latents", [0, 1])
def test_checkpointing_gives_identical_gradients(num_cond_latents):
    gradients = []
    for checkpointing in (False, True):
        model = build()
        if checkpointing:
            model.enable_gradient_checkpointing()
        entered = []
        model.blocks[0].ffn.register_forward_hook(lambda *_, entered=entered: entered.append(1))
        model(**inputs(), num_cond_latents=num_cond_latents)[:, :, num_cond_latents:].square().mean().backward()
        assert len(entered) == 1 + checkpointing
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    plain, recomputed = gradients
    assert all(gradient is not None for gradient in plain.values())
    assert not [name for name in plain if not torch.equal(plain[name], recomputed[name])]


def with_lora(model) -> LongCatVideoTransformer3DModel:
    """All linears of the blocks adapted, everything else frozen."""
    from peft import LoraConfig

    model.requires_grad_(False)
    targets = r"blocks\.\d+\.(attn\.(qkv|proj)|cross_attn\.(q_linear|kv_linear|proj)|ffn\.w[123]|adaLN_modulation\.1)"
    model.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=targets))
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    model.enable_gradient_checkpointing()
    return model


def lora_gradients(model) -> dict[str, torch.Tensor | None]:
    model(**inputs(), num_cond_latents=1)[:, :, 1:].square().mean().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if "lora_" in name}


def test_a_lora_gets_gradients_everywhere_with_checkpointing_and_a_condition_frame():
    trained = with_lora(build())
    gradients = lora_gradients(trained)
    assert len(gradients) == 2 * 2 * 9
    assert not [name for name, gradient in gradients.items() if gradient is None or not gradient.abs().max() > 0]
    assert all(parameter.grad is None for name, parameter in trained.named_parameters() if "lora_" not in name)


def test_streamed_blocks_give_identical_gradients():
    wanted = lora_gradients(with_lora(build(depth=4)))
    streamed = build(depth=4).requires_grad_(False)
    swap = BlockSwap(device=torch.device("cpu"))
    assert list(blocks_of(streamed)) == [f"blocks.{number}" for number in range(4)]
    for block in blocks_of(streamed).values():
        swap.add(block)
    assert streamed.blocks[3].attn.qkv.weight.isnan().all()
    found = lora_gradients(with_lora(streamed))
    assert not [name for name in wanted if not torch.equal(found[name], wanted[name])]


def test_quantised_blocks_compute_nearly_the_same(model):
    quanto = pytest.importorskip("optimum.quanto")
    quantised = build()
    kept = ["t_embedder.*", "y_embedder.*", "final_layer.*", "*adaLN_modulation*"]
    quanto.quantize(quantised, weights=quanto.qint8, exclude=kept)
    quanto.freeze(quantised)
    linears = [name for name, module in quantised.named_modules() if type(module).__name__ == "QLinear"]
    assert len(linears) == 2 * 8
    with torch.no_grad():
        wanted = model(**inputs(), num_cond_latents=1)
        found = quantised(**inputs(), num_cond_latents=1)
    relative = ((found - wanted).norm() / wanted.norm()).item()
    print(f"int8 differs by {relative:.4f}")
    assert 0 < relative < 0.02


# Samples and frames do not disturb each other


def test_each_sample_of_a_batch_is_computed_as_if_alone(model):
    both = inputs()
    both["timestep"] = torch.tensor([[0.0, 732.0, 700.0], [0.0, 88.0, 90.0]])
    with torch.no_grad():
        batched = model(**both, num_cond_latents=1)
        alone = [model(**{k: v[i : i + 1] for k, v in both.items()}, num_cond_latents=1) for i in range(2)]
    assert largest(batched, torch.cat(alone)) < 1e-5


def test_one_timestep_a_sample_is_the_same_one_for_each_frame(model):
    given = inputs()
    with torch.no_grad():
        wanted = model(**given)
        given["timestep"] = given["timestep"][:, None].expand(-1, 3)
        assert torch.equal(model(**given), wanted)


def test_condition_frames_hear_neither_noise_nor_prompt(model):
    given = inputs(frames=4)
    given["timestep"] = torch.tensor([[0.0, 0.0, 700.0, 700.0]]).expand(2, -1)
    with torch.no_grad():
        before = model(**given, num_cond_latents=2)
        given["hidden_states"][:, :, 2:] += 1
        given["encoder_hidden_states"] += 1
        after = model(**given, num_cond_latents=2)
        free = model(**given)
    assert torch.equal(before[:, :, :2], after[:, :, :2])
    assert not torch.allclose(before[:, :, 2:], after[:, :, 2:], atol=1e-2)
    assert not torch.allclose(free[:, :, :2], after[:, :, :2], atol=1e-2)


@pytest.mark.parametrize("cached_samples", [1, 2])
def test_a_continuation_with_cache_equals_the_whole_clip(model, cached_samples):
    given = inputs(frames=5)
    given["hidden_states"][:, :, :2] = given["hidden_states"][:1, :, :2]
    given["timestep"] = torch.tensor([[0.0, 0.0, 700.0, 700.0, 700.0]]).expand(2, -1)
    cache = model.cache_cond_latents(given["hidden_states"][:cached_samples, :, :2])
    assert [list(entry.keys.shape) for entry in cache] == [[cached_samples, 2, 12, 32]] * 2
    rest = {**given, "hidden_states": given["hidden_states"][:, :, 2:], "timestep": given["timestep"][:, 2:]}
    with torch.no_grad():
        whole = model(**given, num_cond_latents=2)[:, :, 2:]
        assert largest(model(**rest, cond_cache=cache), whole) < 1e-5
        assert largest(model(**rest), whole) > 1e-2


def test_the_cache_is_made_in_the_models_dtype(model):
    half = build().bfloat16()
    clip = normal(1, 16, 4, 4, 6)
    cache = half.cache_cond_latents(clip[:, :, :1])
    assert {each.dtype for entry in cache for each in entry} == {torch.bfloat16}
    given = inputs(batch=1, frames=4)
    given["timestep"] = torch.tensor([[0.0, 700.0, 700.0, 700.0]])
    rest = {**given, "hidden_states": given["hidden_states"][:, :, 1:], "timestep": given["timestep"][:, 1:]}
    given["hidden_states"] = torch.cat([clip[:, :, :1], given["hidden_states"][:, :, 1:]], dim=2)
    with torch.no_grad():
        assert largest(half(**rest, cond_cache=cache), half(**given, num_cond_latents=1)[:, :, 1:]) < 2e-2


# Padded slots


def without_shortcut(model, given, **others) -> torch.Tensor:
    """All slots computed, the padded ones zeroed behind the text embedder."""
    mask = given["encoder_attention_mask"].unsqueeze(-1)
    hook = model.y_embedder.register_forward_hook(lambda module, arguments, output: output * mask.to(output))
    try:
        return model(**{**given, "encoder_attention_mask": None}, **others)
    finally:
        hook.remove()


@pytest.mark.parametrize("lengths", [(5, 11), (1, 60), (0, 3)])
def test_few_zero_rows_stand_for_all_512_slots(model, lengths):
    given = inputs(slots=512, lengths=lengths)
    rows = prompt_rows(given["encoder_hidden_states"], given["encoder_attention_mask"], zero_pad=True)
    assert rows.embeds.shape[1] == {11: 16, 60: 64, 3: 16}[max(lengths)]
    with torch.no_grad():
        found, wanted = model(**given), without_shortcut(model, given)
        trimmed = model(
            **{
                **given,
                "encoder_hidden_states": given["encoder_hidden_states"][:, : rows.embeds.shape[1]],
                "encoder_attention_mask": given["encoder_attention_mask"][:, : rows.embeds.shape[1]],
            }
        )
    assert largest(found, wanted) < 1e-5
    assert largest(trimmed, wanted) > 1e-2  # what leaving the other slots out would do


def test_zero_rows_stand_for_all_slots_in_bfloat16_too():
    half = build().bfloat16()
    given = inputs(slots=512)
    with torch.no_grad():
        assert largest(half(**given), without_shortcut(half, given)) < 5e-2


def test_zero_rows_pass_gradients_as_all_slots_do(model):
    gradients = []
    for forward in (lambda given: model(**given), lambda given: without_shortcut(model, given)):
        given = inputs(slots=512)
        given["encoder_hidden_states"].requires_grad_()
        forward(given).square().sum().backward()
        gradients.append(given["encoder_hidden_states"].grad)
    assert gradients[1].abs().max() > 0.1
    assert largest(*gradients) < 2e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [1, 13, 14, 77, 450])
def test_zero_rows_weigh_as_much_as_the_slots_they_stand_for(dtype, length):
    mask = torch.zeros(2, 512, dtype=torch.long)
    mask[0, :length] = 1
    mask[1, : length // 2] = 1
    rows = prompt_rows(torch.zeros(2, 512, 8, dtype=dtype), mask, zero_pad=True)
    weights = rows.bias.double().exp()[:, 0, 0]
    assert rows.bias.dtype == dtype
    assert (weights[rows.keep.bool()] == 1).all()
    for sample, valid in enumerate((length, length // 2)):
        weight = weights[sample, valid:].sum().item()
        print(f"{dtype}: {512 - valid} slots weigh {weight:.4f}")
        assert weight == pytest.approx(512 - valid, rel=1e-6 if dtype == torch.float32 else 1e-3)


def test_holes_in_a_mask_are_padding_too(model):
    given = inputs(slots=256)
    given["encoder_attention_mask"][0, 2] = 0
    with torch.no_grad():
        assert largest(model(**given), without_shortcut(model, given)) < 1e-5


def test_without_zero_padding_only_valid_slots_count():
    model = build(text_tokens_zero_pad=False)
    given = inputs()
    with torch.no_grad():
        found = model(**given)
        for sample, length in enumerate((5, 11)):
            alone = {name: value[sample : sample + 1] for name, value in given.items()}
            alone["encoder_hidden_states"] = alone["encoder_hidden_states"][:, :length]
            assert largest(found[sample : sample + 1], model(**{**alone, "encoder_attention_mask": None})) < 1e-5
        given["encoder_attention_mask"][1] = 0
        with pytest.raises(ConfigError, match="no valid slot"):
            model(**given)
