"""The estimate's numbers, counted again on the classes they are about; what it does with a user's settings."""

import weakref

import pytest
import torch
from comfyui_longcat.training.data.clips import Clip
from comfyui_longcat.training.data.records import ClipRecord, Record
from comfyui_longcat.training.data.video_files import VideoInfo
from comfyui_longcat.training.lora.inject import inject_lora
from comfyui_longcat.training.models.registry import family_of
from comfyui_longcat.training.models.video.transformer import LongCatVideoTransformer3DModel
from comfyui_longcat.training.rehearsal.estimate import (
    SIZES,
    adapter_weights,
    needs_of,
    released_transformer,
    resident_bytes,
    tokens_of,
)
from comfyui_longcat.training.settings.flavours import IMAGE_FAMILY, VIDEO_FAMILY
from comfyui_longcat.training.settings.model import ModelConfig
from comfyui_longcat.training.settings.run import TrainConfig, TrainingOptions
from comfyui_longcat.training.settings.validation import ValidationConfig
from comfyui_longcat.training.weights.quantisation import linears_to_quantise
from comfyui_longcat.training.weights.streaming import blocks_of
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

CHANNELS = 256
"""Of the small models that activations are counted on; two heads, as wide as the released ones."""


class LiveBytes(TorchDispatchMode):
    """Counts the storages that are alive, and the most of them at once."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_flatten(result)[0]:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self.alive:
                storage = tensor.untyped_storage()
                self.alive[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self.alive.pop, storage._cdata, 0)
        self.peak = max(self.peak, sum(self.alive.values()))
        return result


def image_transformer(double, single):
    from diffusers import LongCatImageTransformer2DModel

    return LongCatImageTransformer2DModel(
        num_layers=double, num_single_layers=single, num_attention_heads=2, joint_attention_dim=64
    )


def video_transformer(depth):
    return LongCatVideoTransformer3DModel(
        hidden_size=CHANNELS, depth=depth, num_heads=2, caption_channels=64, adaln_tembed_dim=64
    )


def kept_bytes(transformer, family_name, shape, preset, checkpointing=False):
    """What a training step keeps between forward and backward, the weights left out."""
    family = family_of(family_name)
    transformer = transformer.to(torch.bfloat16)
    inject_lora(transformer, family.lora_targets(preset), 4, 4, 0)
    if checkpointing:
        transformer.enable_gradient_checkpointing()
    transformer.train()
    weights = {parameter.untyped_storage().data_ptr() for parameter in transformer.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    inputs = family.prepare_inputs(shape, torch.randn(1, 512, 64), [])
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = family.predict(transformer, torch.randn(shape), torch.full((1,), 0.5), inputs)
    assert output.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("preset", ["simpletuner", "official"])
def test_kept_of_an_image_block_is_what_a_block_keeps(preset):
    shape, tokens = (1, 16, 96, 96), 48 * 48 + 512
    one, double, single = (
        kept_bytes(image_transformer(*blocks), IMAGE_FAMILY, shape, preset) for blocks in ((1, 1), (2, 1), (1, 2))
    )
    largest = max(double - one, single - one) / tokens / CHANNELS
    assert 0.9 * SIZES[IMAGE_FAMILY].kept[preset] <= largest <= SIZES[IMAGE_FAMILY].kept[preset]


@pytest.mark.parametrize("preset", ["attention", "attention+ffn"])
def test_kept_of_a_video_block_is_what_a_block_keeps(preset):
    shape, tokens = (1, 16, 3, 64, 64), 3 * 32 * 32
    one, two = (kept_bytes(video_transformer(depth), VIDEO_FAMILY, shape, preset) for depth in (1, 2))
    assert 0.9 * SIZES[VIDEO_FAMILY].kept[preset] <= (two - one) / tokens / CHANNELS
    assert (two - one) / tokens / CHANNELS <= SIZES[VIDEO_FAMILY].kept[preset]


def test_a_checkpointed_block_keeps_its_input_alone():
    shape, tokens = (1, 16, 64, 64), 32 * 32 + 512
    one, two = (kept_bytes(image_transformer(1, single), IMAGE_FAMILY, shape, "simpletuner", True) for single in (1, 2))
    assert (two - one) / tokens / CHANNELS == pytest.approx(2.0, rel=0.01)


def test_vae_needs_are_those_of_its_feature_maps():
    from diffusers import AutoencoderKL, AutoencoderKLWan

    side = 128
    with torch.device("meta"):
        picture = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=16,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
        clip = AutoencoderKLWan()
        work = {
            (IMAGE_FAMILY, "encode"): lambda: picture.encode(torch.empty(1, 3, side, side)),
            (IMAGE_FAMILY, "decode"): lambda: picture.decode(torch.empty(1, 16, side // 8, side // 8)),
            (VIDEO_FAMILY, "encode"): lambda: clip.encode(torch.empty(1, 3, 9, side, side)),
            (VIDEO_FAMILY, "decode"): lambda: clip.decode(torch.empty(1, 16, 3, side // 8, side // 8)),
        }
        for (family, what), function in work.items():
            with torch.no_grad(), LiveBytes() as live:
                function()
            assert live.peak / side**2 == pytest.approx(getattr(SIZES[family], what), rel=0.06), (family, what)
    for family, vae in ((IMAGE_FAMILY, picture), (VIDEO_FAMILY, clip)):
        assert sum(parameter.numel() for parameter in vae.parameters()) == SIZES[family].vae_weights


def test_text_encoders_are_counted_exactly():
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, UMT5Config, UMT5EncoderModel

    text = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "vocab_size": 152064}
    text |= {"num_attention_heads": 28, "num_key_value_heads": 4, "tie_word_embeddings": False}
    vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584}
    umt5 = {"d_model": 4096, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "d_kv": 64, "vocab_size": 256384}
    with torch.device("meta"):
        qwen = Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False)
        models = {
            IMAGE_FAMILY: Qwen2_5_VLForConditionalGeneration(qwen),
            VIDEO_FAMILY: UMT5EncoderModel(UMT5Config(feed_forward_proj="gated-gelu", **umt5)),
        }
    for family, model in models.items():
        quantised = sum(
            block.get_submodule(linear).weight.numel()
            for name, block in blocks_of(model).items()
            for linear in linears_to_quantise(block, name)
        )
        assert sum(parameter.numel() for parameter in model.parameters()) == SIZES[family].text_weights
        assert quantised == SIZES[family].text_quantised


def test_transformers_are_the_released_ones():
    weights = [sum(p.numel() for p in released_transformer(name).parameters()) for name in (IMAGE_FAMILY, VIDEO_FAMILY)]
    # Counted from the released files.
    assert weights == [6_270_668_864, 13_581_071_424]


@pytest.mark.parametrize("preset", ["simpletuner", "official"])
def test_adapter_is_counted_as_it_is_injected(preset):
    config = TrainConfig(lora_rank=8, options=TrainingOptions(lora_target=preset))
    with torch.device("meta"):
        from diffusers import LongCatImageTransformer2DModel

        transformer = LongCatImageTransformer2DModel(num_layers=10, num_single_layers=20)
        parameters = inject_lora(transformer, family_of(IMAGE_FAMILY).lora_targets(preset), 8, 8, 0)
    assert adapter_weights(IMAGE_FAMILY, config) == sum(parameter.numel() for parameter in parameters.values())


def record(side=768, pairs=True, tmp="x.png"):
    from pathlib import Path

    references = (Path("reference.png"),) if pairs else ()
    return Record(name="x", target=Path(tmp), references=references, caption="x", bucket=(side, side))


def clip_record(frames=93):
    from pathlib import Path

    return ClipRecord(
        name="x",
        target=Path("x.mp4"),
        caption="x",
        bucket=(832, 480),
        clip=Clip(start=0, frames=frames),
        video=VideoInfo(size=(832, 480), frames=frames, last=None),
        is_i2v=False,
    )


def test_tokens_of_samples():
    # 48 x 48 patches, twice, and a prompt that sees 14 x 14 patches of the reference between two marks.
    assert tokens_of(record()) == 2 * 48 * 48 + 512 + 14 * 14 + 2
    assert tokens_of(record(pairs=False)) == 48 * 48 + 512
    assert tokens_of(clip_record()) == 24 * 52 * 30


def test_settings_that_save_memory_save_memory():
    config, edit = TrainConfig(), ModelConfig(model_flavour="edit")

    def training(train=config, model=edit, side=768):
        return needs_of(train, model, [record(side)]).memory["training"]

    whole = training()
    assert 15e9 < whole < 20e9, "weights alone are 12.5 GB in bf16"
    assert training(model=ModelConfig(base_model_precision="int8-quanto")) < whole - 6e9
    assert training(model=ModelConfig(base_model_precision="int4-quanto")) < whole - 9e9
    assert training(model=ModelConfig(base_model_precision="fp32")) > whole + 12e9
    # 10 of the 30 blocks are double ones, with more than half of the weights.
    assert training(model=ModelConfig(blocks_to_swap=10)) < whole - 2e9
    assert training(model=ModelConfig(blocks_to_swap=30)) < training(model=ModelConfig(blocks_to_swap=10)) - 5e9
    assert training(model=ModelConfig(enable_group_offload=True)) == training(model=ModelConfig(blocks_to_swap=30))
    assert training(side=512) < whole < training(side=1024)
    assert training(TrainConfig(train_batch_size=4)) > whole + 2e9
    assert training(TrainConfig(lora_rank=128)) > whole + 0.5e9
    assert training(TrainConfig(options=TrainingOptions(gradient_checkpointing=False))) > whole + 10e9


def test_streamed_blocks_never_leave_less_than_nothing():
    for name in (IMAGE_FAMILY, VIDEO_FAMILY):
        flavour = "final" if name == VIDEO_FAMILY else "edit"
        sizes = [
            resident_bytes(ModelConfig(model_family=name, model_flavour=flavour, blocks_to_swap=count))
            for count in (0, 1, 2, 3, 10, 30, 1000)
        ]
        assert sizes == sorted(sizes, reverse=True) and sizes[-1] > 0


def test_phases_follow_the_settings():
    config = TrainConfig(validation=ValidationConfig(validation_resolution="1024x1024"))
    needs = needs_of(config, ModelConfig(), [record()])
    assert set(needs.memory) == {"training", "validation", "encoding prompts", "encoding pictures"}
    assert needs.memory["encoding prompts"] > 16.6e9
    small = needs_of(config, ModelConfig(text_encoder_1_precision="int8-quanto"), [record()])
    assert small.memory["encoding prompts"] < needs.memory["encoding prompts"] - 6e9
    assert "validation" not in needs_of(TrainConfig(), ModelConfig(), [record()]).memory


def test_a_long_clip_needs_more_than_a_picture():
    video = ModelConfig(model_family=VIDEO_FAMILY, model_flavour="final", base_model_precision="int8-quanto")
    short, long = (needs_of(TrainConfig(), video, [clip_record(frames)]) for frames in (9, 93))
    assert long.memory["training"] > short.memory["training"] + 20e9
    assert long.caches > short.caches


def test_checkpoints_count_what_is_kept():
    def bytes_of(**options):
        return needs_of(TrainConfig(options=TrainingOptions(**options)), ModelConfig(), [record()])

    three = bytes_of()
    assert three.checkpoints > 4 * three.checkpoint, "three kept, a fourth while it is written"
    all_of_them = bytes_of(checkpoints_total_limit=0, checkpoint_step_interval=10)
    assert all_of_them.checkpoints > 100 * three.checkpoint
    assert bytes_of(use_ema=True).checkpoint > three.checkpoint
    assert bytes_of(optimizer="adafactor").checkpoint < three.checkpoint
