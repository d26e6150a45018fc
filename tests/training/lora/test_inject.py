"""The adapter that is trained: where it goes, how it starts, what it leaves alone."""

import pytest
import torch
from comfyui_longcat.training.lora.inject import TRAINED_ADAPTER, inject_lora, lora_layers
from diffusers import LongCatImageTransformer2DModel

TARGETS = ["attn.to_q", "attn.to_k", "attn.to_v", "to_out.0"]


def make_transformer(dtype=torch.float32):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = LongCatImageTransformer2DModel(
            patch_size=1,
            in_channels=64,
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=[4, 6, 6],
        )
    return transformer.to(dtype).requires_grad_(False).eval()


def predict(transformer):
    generator = torch.Generator().manual_seed(1)
    dtype = transformer.dtype
    with torch.no_grad():
        return transformer(
            hidden_states=torch.randn(1, 4, 64, generator=generator).to(dtype),
            encoder_hidden_states=torch.randn(1, 3, 32, generator=generator).to(dtype),
            timestep=torch.tensor([0.5]),
            img_ids=torch.zeros(4, 3),
            txt_ids=torch.zeros(3, 3),
        ).sample


def test_adapts_the_named_linears_and_nothing_else():
    transformer = make_transformer()
    parameters = inject_lora(transformer, TARGETS, rank=4, alpha=0, seed=1)
    # 4 in the double block, 3 in each single block (they have no to_out)
    assert len(lora_layers(transformer, TRAINED_ADAPTER)) == 10
    assert len(parameters) == 20
    trainable = {name for name, parameter in transformer.named_parameters() if parameter.requires_grad}
    assert trainable == set(parameters)


def test_starts_without_any_effect_and_with_alpha_equal_to_rank():
    transformer = make_transformer()
    before = predict(transformer)
    inject_lora(transformer, TARGETS, rank=4, alpha=0, seed=1)
    assert torch.equal(predict(transformer), before)
    assert {layer.scaling[TRAINED_ADAPTER] for layer in lora_layers(transformer).values()} == {1.0}


def test_alpha_scales():
    transformer = make_transformer()
    inject_lora(transformer, TARGETS, rank=4, alpha=2.0, seed=1)
    assert {layer.scaling[TRAINED_ADAPTER] for layer in lora_layers(transformer).values()} == {0.5}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapter_is_float32_in_any_base(dtype):
    transformer = make_transformer(dtype)
    parameters = inject_lora(transformer, TARGETS, rank=4, alpha=0, seed=1)
    assert {parameter.dtype for parameter in parameters.values()} == {torch.float32}
    assert transformer.x_embedder.weight.dtype == dtype
    assert predict(transformer).dtype == dtype


def test_same_seed_same_adapter_and_global_random_state_untouched():
    torch.manual_seed(123)
    state = torch.get_rng_state()
    first = inject_lora(make_transformer(), TARGETS, rank=4, alpha=0, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)
    second = inject_lora(make_transformer(), TARGETS, rank=4, alpha=0, seed=1)
    other = inject_lora(make_transformer(), TARGETS, rank=4, alpha=0, seed=2)
    names = [name for name in first if "lora_A" in name]
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in names)
    spread = torch.cat([first[name].flatten() for name in names]).std().item()
    print(f"standard deviation of A: {spread:.4f}, wanted 1 / rank = 0.25")
    assert abs(spread - 0.25) < 0.02
