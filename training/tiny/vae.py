"""The twin's autoencoder: AutoencoderKL with weights set by hand, so that its pictures mean something without training.

Each 8 x 8 px cell becomes the colours of its four 4 x 4 px quarters (12 numbers, spread over the 16 channels), and the
decoder puts the quarters back. Legend: M height of two helper channels that hold +M and -M everywhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

CONFIG = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (8, 16, 16, 16),
    "layers_per_block": 1,
    "norm_num_groups": 1,
    "latent_channels": 16,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "force_upcast": True,
}

COLOURS = 3
QUARTERS = 4
SIGNALS = COLOURS * QUARTERS

HELPER = 64.0
"""M; so far above the signals (-1..1) that the group norm's deviation is M's alone and the norm becomes linear."""

LIFT = 16.0
"""Added before SiLU, which is the identity to 2e-6 from there on."""

SHARPNESS = 0.5
"""1 separates the halves of a cell fully but rings beside edges, 0 leaves whole cells; flat places are exact."""

LOG_VARIANCE = -30.0
"""The encoder's distribution is a point: its mode and every sample of it are the same."""


def build_vae() -> nn.Module:
    """The autoencoder in float32; scale and shift are measured so that latents have mean 0 and deviation 1."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(**CONFIG).eval()
    _silence(vae)
    _set_encoder(vae.encoder)
    _set_decoder(vae.decoder)
    raw_latents = vae.encode(_drawings()).latent_dist.mode()
    vae.register_to_config(
        shift_factor=round(raw_latents.mean().item(), 4), scaling_factor=round(1 / raw_latents.std().item(), 4)
    )
    return vae


def _silence(vae: nn.Module) -> None:
    """Zero on every path: residual branches then add nothing, and the setters write only what they need."""
    from torch import nn

    for name, module in vae.named_modules():
        if isinstance(module, nn.Conv2d) and not name.endswith(".conv1") or name.endswith(".to_out.0"):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)


def _set_encoder(encoder: nn.Module) -> None:
    blocks = encoder.down_blocks
    for channel in range(COLOURS):
        encoder.conv_in.weight[channel, channel, 1, 1] = 1
        blocks[1].resnets[0].conv_shortcut.weight[channel, channel] = 1
        for block in (blocks[0], blocks[1]):
            block.downsamplers[0].conv.weight[channel, channel, :2, :2] = 0.25
    split = blocks[2].downsamplers[0].conv
    for signal in range(SIGNALS):
        colour, quarter = divmod(signal, QUARTERS)
        split.weight[signal, colour, quarter // 2, quarter % 2] = 1
    _add_helpers(split, first=SIGNALS)
    latent_channels = CONFIG["latent_channels"]
    _set_way_out(encoder, mixing(), first_helper=SIGNALS)
    encoder.conv_out.bias[latent_channels:] = LOG_VARIANCE


def _set_decoder(decoder: nn.Module) -> None:
    import torch

    blocks = decoder.up_blocks
    decoder.conv_in.weight[:SIGNALS, :, 1, 1] = mixing().T
    # On a picture enlarged by repetition, these taps lean to the first and to the second half of a cell.
    lean = SHARPNESS / 2
    halves = (torch.tensor([-lean, 0.5, lean]), torch.tensor([lean, 0.5, -lean]))
    join = blocks[0].upsamplers[0].conv
    for signal in range(SIGNALS):
        colour, quarter = divmod(signal, QUARTERS)
        join.weight[colour, signal] = torch.outer(halves[quarter // 2], halves[quarter % 2])
    _add_helpers(join, first=COLOURS)
    for channel in range(COLOURS + 2):
        for block in (blocks[1], blocks[2]):
            block.upsamplers[0].conv.weight[channel, channel, 1, 1] = 1
        blocks[3].resnets[0].conv_shortcut.weight[channel, channel] = 1
    _set_way_out(decoder, torch.eye(COLOURS), first_helper=COLOURS)


def _add_helpers(conv: nn.Conv2d, first: int) -> None:
    conv.bias[first] = HELPER
    conv.bias[first + 1] = -HELPER


def _set_way_out(part: nn.Module, mixing: Tensor, first_helper: int) -> None:
    """Makes norm, SiLU and last convolution together the linear map `mixing` [outputs, signals].

    The norm subtracts the mean over the whole picture; the two helpers know it (their average is minus the mean),
    and the last convolution adds it back.
    """
    norm, conv = part.conv_norm_out, part.conv_out
    outputs, signals = mixing.shape
    # Deviation of +M, -M and otherwise about zero.
    norm.weight.fill_(HELPER * (2 / norm.num_channels) ** 0.5)
    norm.bias.fill_(LIFT)
    norm.bias[first_helper + 1] = LIFT + HELPER
    conv.weight[:outputs, :signals, 1, 1] = mixing
    total = mixing.sum(dim=1)
    for helper in (first_helper, first_helper + 1):
        conv.weight[:outputs, helper, 1, 1] = -total / 2
    # Signals come lifted by LIFT, the helpers' average by LIFT + M / 2.
    conv.bias[:outputs] = total * HELPER / 2


def mixing() -> Tensor:
    """[16, 12], orthonormal columns of a Hadamard matrix: every channel carries some of every quarter."""
    import torch

    size = CONFIG["latent_channels"]
    signs = [[(-1.0) ** (row & column).bit_count() for column in range(SIGNALS)] for row in range(size)]
    return torch.tensor(signs) / size**0.5


def _drawings() -> Tensor:
    """Pixels [16, 3, 64, 64]: a rectangle on a plain ground, colours drawn from torch's global generator."""
    import torch

    size = 64
    colours = torch.rand(16, 2, COLOURS, 1, 1) * 2 - 1
    pixels = colours[:, 0].expand(-1, -1, size, size).clone()
    corners = torch.randint(4, size // 2, (16, 2)).tolist()
    for picture, colour, (top, left) in zip(pixels, colours[:, 1], corners, strict=True):
        picture[:, top : top + size // 3, left : left + size // 3] = colour
    return pixels
