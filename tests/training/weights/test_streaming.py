"""Streaming blocks: what is away is really away, and gradients are those of the model that stays.

The device is imitated on the CPU by the code that runs on a card too: while a block is away its slots hold NaN. Here
even the copy that has been on the device is overwritten, so that whoever kept a view of it reads NaN as well.
"""

import pytest
import torch
from comfyui_longcat.training.errors import ConfigError
from comfyui_longcat.training.lora.inject import inject_lora
from comfyui_longcat.training.settings.model import ModelConfig
from comfyui_longcat.training.weights.quantisation import quantise
from comfyui_longcat.training.weights.streaming import (
    BlockSwap,
    blocks_of,
    check_streaming,
    streamed_blocks,
    uses_group_offload,
    weight_bytes,
)
from torch.multiprocessing.reductions import StorageWeakRef

CPU = torch.device("cpu")
TARGETS = ["attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"]
BLOCKS = 5


class Watched(BlockSwap):
    """Destroys what leaves the device, and remembers how many blocks' weights were in memory there at most."""

    def _bring(self, streamed):
        super()._bring(streamed)
        self.storages = getattr(self, "storages", [])
        self.storages.append([StorageWeakRef(slot.tensor.untyped_storage()) for slot in streamed.slots])
        alive = sum(any(not storage.expired() for storage in block) for block in self.storages)
        self.most = max(getattr(self, "most", 0), alive)

    def _send_away(self, number):
        for slot in self._blocks[number].slots:
            tensor = slot.tensor
            # Not in place by autograd's count: a late reader shall read NaN instead of stopping.
            tensor.data.fill_(float("nan") if tensor.is_floating_point() else 77)
        super()._send_away(number)


def build(precision="fp32"):
    from diffusers import LongCatImageTransformer2DModel

    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        model = LongCatImageTransformer2DModel(
            num_layers=2,
            num_single_layers=3,
            attention_head_dim=64,
            num_attention_heads=2,
            axes_dims_rope=[16, 24, 24],
            joint_attention_dim=64,
            pooled_projection_dim=64,
        )
    model = model.to(torch.float32 if precision == "fp32" else torch.bfloat16).eval().requires_grad_(False)
    if precision not in ("fp32", "bf16"):
        quantise(model, precision)
    return model


def streamed(model, count=BLOCKS, resident=1):
    swap = Watched(device=CPU, resident=resident)
    for block in list(blocks_of(model).values())[:count]:
        swap.add(block)
    return swap


def forward(model):
    generator = torch.Generator().manual_seed(1)
    dtype = model.x_embedder.bias.dtype
    ids = torch.zeros(40, 3)
    ids[:, 2] = torch.arange(40)
    return model(
        hidden_states=torch.randn(1, 24, 64, generator=generator).to(dtype),
        encoder_hidden_states=torch.randn(1, 16, 64, generator=generator).to(dtype),
        timestep=torch.tensor([0.5]),
        img_ids=ids[16:],
        txt_ids=ids[:16],
        return_dict=False,
    )[0].float()


def gradients(model, steps=2):
    parameters = inject_lora(model, TARGETS, 4, 0, 0)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in parameters.items():
            if "lora_B" in name:
                parameter.normal_(0, 0.02, generator=generator)
    model.enable_gradient_checkpointing()
    model.train()
    for _ in range(steps):
        forward(model).square().mean().backward()
    return {name: parameter.grad for name, parameter in parameters.items()}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8-quanto", "int8-torchao", "fp8-torchao"])
@pytest.mark.parametrize(("count", "resident"), [(BLOCKS, 1), (3, 1), (BLOCKS, 2)])
def test_gradients_are_exactly_those_of_the_resident_model(precision, count, resident):
    expected = gradients(build(precision))
    model = build(precision)
    swap = streamed(model, count, resident)
    found = gradients(model)
    difference = max((found[name] - expected[name]).abs().max().item() for name in expected)
    print(f"{precision}, {count} blocks streamed: difference {difference}, at most {swap.most} of them on the device")
    assert all(gradient.abs().sum() > 0 for gradient in expected.values())
    assert difference == 0.0
    assert swap.most == resident


def test_the_imitation_is_honest(monkeypatch):
    # A swap that sends the blocks away but never brings them back must not pass unnoticed.
    monkeypatch.setattr(Watched, "_bring", lambda self, streamed: None)
    model = build()
    streamed(model)
    with torch.no_grad():
        assert forward(model).isnan().all()


def test_without_checkpointing_weights_are_read_that_are_away():
    model = build("int8-quanto")
    streamed(model)
    parameters = inject_lora(model, TARGETS, 4, 0, 0)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.fill_(0.01)
    model.train()
    forward(model).square().mean().backward()
    assert any(parameter.grad.isnan().any() for parameter in parameters.values())


def test_streaming_takes_the_weights_off_the_device_and_leaves_the_adapters():
    model = build("bf16")
    block = model.transformer_blocks[0]
    swap = streamed(model, 1)
    weight = block.attn.to_q.weight
    assert weight.isnan().all() and weight.untyped_storage().nbytes() == weight.element_size()
    assert (weight.shape, weight.dtype, weight.device) == ((128, 128), torch.bfloat16, CPU)
    inject_lora(model, TARGETS, 4, 0, 0)
    assert not block.attn.to_q.lora_A["trained"].weight.isnan().any()
    with torch.no_grad():
        assert forward(model).isfinite().all()
    swap.release()
    assert block.attn.to_q.base_layer.weight.isnan().all()
    assert not block._forward_pre_hooks


def test_a_swap_made_in_inference_mode_trains():
    expected = gradients(build())
    model = build()
    swap = streamed(model)
    with torch.inference_mode():
        forward(model)
    found = gradients(model)
    assert swap.most == 1
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_blocks_come_in_the_order_of_the_forward_pass():
    names = [f"transformer_blocks.{n}" for n in range(2)] + [f"single_transformer_blocks.{n}" for n in range(3)]
    assert list(blocks_of(build())) == names


def test_weight_bytes_counts_what_is_stored():
    model = build("bf16")
    numbers = sum(parameter.numel() for parameter in model.parameters())
    assert weight_bytes(model) == 2 * numbers
    quantise(model, "int8-quanto")
    assert numbers < weight_bytes(model) < 1.3 * numbers


@pytest.mark.parametrize(
    ("settings", "in_training", "in_sampling", "by_diffusers"),
    [
        ({}, 0, 0, False),
        ({"blocks_to_swap": 7}, 7, 7, False),
        ({"enable_group_offload": True}, float("inf"), 0, True),
        ({"enable_group_offload": True, "blocks_to_swap": 3}, 3, 0, True),
        ({"enable_group_offload": True, "base_model_precision": "int8-quanto"}, float("inf"), float("inf"), False),
    ],
)
def test_which_mechanism_streams_how_much(settings, in_training, in_sampling, by_diffusers):
    config = ModelConfig(**settings)
    assert streamed_blocks(config, training=True) == in_training
    assert streamed_blocks(config, training=False) == in_sampling
    assert uses_group_offload(config, training=False) == by_diffusers
    assert not uses_group_offload(config, training=True)


@pytest.mark.parametrize("settings", [{"blocks_to_swap": 1}, {"enable_group_offload": True}])
def test_streaming_without_checkpointing_is_refused(settings):
    config = ModelConfig(**settings)
    check_streaming(config, gradient_checkpointing=True)
    with pytest.raises(ConfigError, match="gradient_checkpointing is off.*Switch gradient_checkpointing on"):
        check_streaming(config, gradient_checkpointing=False)
    check_streaming(ModelConfig(), gradient_checkpointing=False)
