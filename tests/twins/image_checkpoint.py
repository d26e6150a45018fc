"""A twin of LongCat-Image or LongCat-Image-Edit whose transformer is light and has learnt nothing.

For tests that want many steps and do not look at the pictures; the trained twins are in shipped.py. Every build gives
the same weights. The two released models have the same parts: only model_index.json differs.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfyui_longcat.training.files import replacing_folder
from comfyui_longcat.training.settings.flavours import EDIT
from comfyui_longcat.training.weights.components import no_progress_bars
from comfyui_longcat.training.weights.twins import SHARED, TWINS

from .tokenizer import byte_level_merges, token_ids

if TYPE_CHECKING:
    from torch import nn

SEED = 0

MODEL_PARTS = {
    "_diffusers_version": "0.37.0",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "Qwen2_5_VLForConditionalGeneration"],
    "text_processor": ["transformers", "Qwen2_5_VLProcessor"],
    "tokenizer": ["transformers", "Qwen2Tokenizer"],
    "transformer": ["diffusers", "LongCatImageTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}

TRANSFORMER = {
    "patch_size": 1,
    "in_channels": 64,
    "num_layers": 2,
    "num_single_layers": 3,
    "attention_head_dim": 16,
    "num_attention_heads": 4,
    "joint_attention_dim": 64,
    "pooled_projection_dim": 64,
    "axes_dims_rope": [4, 6, 6],
}

SCHEDULER = {
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}


GAIN = 3**0.5
"""torch starts a linear at variance 1 / (3 inputs); with this gain a signal keeps its size."""

QUERY_BIAS = 1.5
QUERY_KEY_SIZE = 1.6
"""Weights of the query and key norms: own place gets a logit of up to 1.6^2 x 16 / sqrt(16) = 10."""

TEXT_KEY_SIZE = 0.5
"""Smaller for text: its 512 slots, most of them padding, would else drown the picture's few tokens."""


def build_tiny_image_checkpoint(folder: Path, pipeline: str = EDIT) -> None:
    """Builds a twin's diffusers folder; `folder` appears whole or not at all, an older one is replaced.

    Args:
        folder: to be made.
        pipeline: `Flavour.pipeline` of the twin.

    Raises:
        OSError: the disk is full or the parent folder cannot be written.
    """
    import torch

    with (
        replacing_folder(folder) as temporary,
        torch.inference_mode(False),
        torch.no_grad(),
        own_random_numbers(),
        no_progress_bars(),
    ):
        shutil.copytree(TWINS / SHARED, temporary, copy_function=shutil.copyfile, dirs_exist_ok=True)
        build_transformer().save_pretrained(temporary / "transformer")
        write_settings(temporary / "model_index.json", {"_class_name": pipeline, **MODEL_PARTS})


def build_transformer() -> nn.Module:
    """The DiT; its weights come from torch's global generator, arranged so that a short training shows an effect."""
    from diffusers import LongCatImageTransformer2DModel

    transformer = LongCatImageTransformer2DModel(**TRANSFORMER)
    for block in transformer.transformer_blocks:
        _open_gates(block.norm1)
        _open_gates(block.norm1_context)
        block.attn.norm_added_k.weight.fill_(TEXT_KEY_SIZE)
        block.attn.to_out[0].weight.mul_(GAIN)
    for block in transformer.single_transformer_blocks:
        _open_gates(block.norm)
    for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
        _look_at_own_place(block.attn)
        block.attn.to_v.weight.mul_(GAIN)
    _tie_ways_in_and_out(transformer)
    return transformer


def build_text_encoder() -> nn.Module:
    """The Qwen2.5-VL; its weights come from torch's global generator."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    ids = token_ids(byte_level_merges())
    text = {
        "vocab_size": len(ids),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 8192,
        "rope_theta": 1e6,
        # The three sections fill half of the head's 16.
        "rope_scaling": {"type": "mrope", "rope_type": "default", "mrope_section": [2, 3, 3]},
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": 64,
        "fullatt_block_indexes": [1],
    }
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def build_scheduler() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**SCHEDULER)


def _tie_ways_in_and_out(transformer: nn.Module) -> None:
    """What goes in comes out: the untrained velocity is about the noisy picture itself, so noise can be taken away."""
    from torch import nn

    nn.init.orthogonal_(transformer.x_embedder.weight)
    transformer.proj_out.weight.copy_(transformer.x_embedder.weight.T)
    for linear in (transformer.x_embedder, transformer.proj_out):
        nn.init.zeros_(linear.bias)
    nn.init.zeros_(transformer.norm_out.linear.weight)
    nn.init.zeros_(transformer.norm_out.linear.bias)


def _open_gates(norm: nn.Module) -> None:
    """Starts every adaptive gate at 1 instead of about 0, so that the adapters behind it get full gradients."""
    width = norm.linear.in_features
    # In chunks of the width: shift, scale, gate of the attention; in double blocks the same again for the feed-forward.
    for chunk in norm.linear.bias.split(width)[2::3]:
        chunk.add_(1)


def _look_at_own_place(attention: nn.Module) -> None:
    """Equal queries and keys with one shared bias: attention starts as a kernel of rotary distance.

    So a token sees its own place, its neighbours, and the reference's token of the same row and column, which is
    what an edit copies from; the norms' size makes that stronger than all text slots together.
    """
    import torch

    bias = QUERY_BIAS * torch.randn_like(attention.to_q.bias)
    attention.to_k.weight.copy_(attention.to_q.weight)
    attention.to_q.bias.copy_(bias)
    attention.to_k.bias.copy_(bias)
    attention.norm_q.weight.fill_(QUERY_KEY_SIZE)
    attention.norm_k.weight.fill_(QUERY_KEY_SIZE)


@contextlib.contextmanager
def own_random_numbers() -> Iterator[None]:
    """Seeds torch's CPU generator for the block and puts it back; library constructors draw from that one."""
    import torch

    # `torch.manual_seed` would also seed every accelerator.
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(SEED)
        yield


def write_settings(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
