"""A twin of LongCat-Video whose transformer is light and has learnt nothing.

With UMT5, as the released model, or with Qwen2.5-VL of the same width. For tests that want many steps and do not look
at the clips; the trained twin is in shipped.py. Every build gives the same weights.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfyui_longcat.training.files import replacing_folder
from comfyui_longcat.training.models.contract import QWEN, UMT5
from comfyui_longcat.training.weights.components import no_progress_bars
from comfyui_longcat.training.weights.twins import MARK, SHARED, TWINS

from .image_checkpoint import GAIN, QUERY_BIAS, QUERY_KEY_SIZE, own_random_numbers
from .video_tokenizer import pieces

if TYPE_CHECKING:
    from torch import nn

TEXT_WIDTH = 64

TRANSFORMER = {
    "in_channels": 16,
    "out_channels": 16,
    "hidden_size": 96,
    "depth": 4,
    "num_heads": 2,
    "caption_channels": TEXT_WIDTH,
    "mlp_ratio": 4,
    "adaln_tembed_dim": 64,
    "frequency_embedding_size": 64,
    "patch_size": (1, 2, 2),
    "text_tokens_zero_pad": True,
}

SCHEDULER = {"num_train_timesteps": 1000, "shift": 12.0, "use_dynamic_shifting": False}


def build_tiny_video_checkpoint(folder: Path, text_encoder: str = UMT5) -> None:
    """Builds a twin's folder in the released layout; it appears whole or not at all, an older one is replaced.

    Args:
        folder: to be made.
        text_encoder: `UMT5` or `QWEN`.

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
        shutil.copytree(TWINS / "tiny-video", temporary, copy_function=shutil.copyfile, dirs_exist_ok=True)
        (temporary / MARK).unlink()
        if text_encoder == QWEN:
            for name in ("text_encoder", "tokenizer"):
                shutil.rmtree(temporary / name)
                shutil.copytree(TWINS / SHARED / name, temporary / name, copy_function=shutil.copyfile)
        build_video_transformer().save_pretrained(temporary / "dit")


def build_video_transformer() -> nn.Module:
    """The DiT; its weights come from torch's global generator, arranged so that a short training shows an effect."""
    from comfyui_longcat.training.models.video.transformer import LongCatVideoTransformer3DModel

    transformer = LongCatVideoTransformer3DModel(**TRANSFORMER)
    for block in transformer.blocks:
        _open_gates(block.adaLN_modulation[1])
        _look_at_own_place(block.attn)
    _tie_ways_in_and_out(transformer)
    return transformer


def build_umt5() -> nn.Module:
    """The text encoder; its weights come from torch's global generator."""
    from transformers import UMT5Config, UMT5EncoderModel

    ids = {piece: number for number, (piece, _) in enumerate(pieces())}
    config = UMT5Config(
        vocab_size=len(ids),
        d_model=TEXT_WIDTH,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        relative_attention_num_buckets=8,
        pad_token_id=ids["<pad>"],
        eos_token_id=ids["</s>"],
        decoder_start_token_id=ids["<pad>"],
    )
    return UMT5EncoderModel(config).eval()


def build_scheduler() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**SCHEDULER)


def _open_gates(modulation: nn.Module) -> None:
    """Starts every adaptive gate at 1 instead of about 0, so that the adapters behind it get full gradients."""
    from torch import nn

    nn.init.zeros_(modulation.weight)
    nn.init.zeros_(modulation.bias)
    # In chunks of the width: shift, scale, gate of the attention, then the same of the feed-forward.
    for gate in modulation.bias.chunk(6)[2::3]:
        gate.fill_(1)


def _look_at_own_place(attention: nn.Module) -> None:
    """Equal queries and keys with one shared bias: attention starts as a kernel of rotary distance.

    So a token sees its own place and its neighbours, in the start frame too, which is what a clip is made from.
    """
    import torch

    queries, keys, values = attention.qkv.weight.chunk(3)
    keys.copy_(queries)
    values.mul_(GAIN)
    query_bias, key_bias, _ = attention.qkv.bias.chunk(3)
    query_bias.copy_(QUERY_BIAS * torch.randn_like(query_bias))
    key_bias.copy_(query_bias)
    attention.q_norm.weight.fill_(QUERY_KEY_SIZE)
    attention.k_norm.weight.fill_(QUERY_KEY_SIZE)
    attention.proj.weight.mul_(GAIN)


def _tie_ways_in_and_out(transformer: nn.Module) -> None:
    """What goes in comes out negated: the untrained direction from noise to data is away from the noisy clip itself."""
    from torch import nn

    way_in, way_out = transformer.x_embedder.proj, transformer.final_layer
    patches = nn.init.orthogonal_(way_in.weight.flatten(1))
    way_in.weight.copy_(patches.view_as(way_in.weight))
    # In: width, channels, 1, rows, columns. Out: rows, columns, channels, width.
    way_out.linear.weight.copy_(-way_in.weight[:, :, 0].permute(2, 3, 1, 0).flatten(0, 2))
    modulation = way_out.adaLN_modulation[1]
    for parameter in (way_in.bias, way_out.linear.bias, modulation.weight, modulation.bias):
        nn.init.zeros_(parameter)
