"""The video twin's autoencoder: AutoencoderKLWan with weights set by hand, as the image twin's (see vae.py).

Each 8 x 8 px cell of a frame becomes the colours of its four quarters. Of each four frames after the first one the last
is kept, and the decoder shows it four times. Legend: M height of a helper channel that holds +M everywhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .vae import COLOURS, LIFT, LOG_VARIANCE, QUARTERS, SHARPNESS, SIGNALS, mixing

if TYPE_CHECKING:
    from torch import Tensor, nn

CONFIG = {
    "base_dim": 8,
    "z_dim": 16,
    "dim_mult": [1, 2, 2, 2],
    "num_res_blocks": 1,
    "temperal_downsample": [False, True, True],
}

HELPER = 4096.0
"""M; so far above the signals that the norm divides by M alone and is linear."""

NOW = 2
"""Tap of a causal convolution over three frames that lies on the current one."""


def build_video_vae() -> nn.Module:
    """The autoencoder in float32; means and deviations are measured so that normalised latents have 0 and 1."""
    import torch
    from diffusers import AutoencoderKLWan

    vae = AutoencoderKLWan(**CONFIG).eval()
    _silence(vae)
    _set_encoder(vae.encoder)
    _set_decoder(vae.decoder)
    for conv in (vae.quant_conv, vae.post_quant_conv):
        conv.weight[:, :, 0, 0, 0] = torch.eye(conv.out_channels)
    raw_latents = vae.encode(_drawings()).latent_dist.mode()
    channels = raw_latents.transpose(0, 1).flatten(1)
    vae.register_to_config(
        latents_mean=[round(value, 4) for value in channels.mean(dim=1).tolist()],
        latents_std=[round(value, 4) for value in channels.std(dim=1).tolist()],
    )
    return vae


def _silence(vae: nn.Module) -> None:
    """Zero on every path but the shortcuts, which pass what they get; the setters write only what they need."""
    from torch import nn

    for name, module in vae.named_modules():
        if not isinstance(module, (nn.Conv2d, nn.Conv3d)):
            continue
        nn.init.zeros_(module.weight)
        nn.init.zeros_(module.bias)
        if name.endswith("conv_shortcut"):
            _pass_on(module.weight[:, :, 0, 0, 0])
        if name.endswith("time_conv"):
            # Going down, one output a channel; going up, two, which are two frames.
            for frame in module.weight.split(module.in_channels):
                _pass_on(frame[:, :, NOW, 0, 0])


def _pass_on(weight: Tensor) -> None:
    weight.fill_diagonal_(1)


def _set_encoder(encoder: nn.Module) -> None:
    """In `down_blocks` residual blocks and downsamplers take turns."""
    _pass_on(encoder.conv_in.weight[:COLOURS, :, NOW, 1, 1])
    halve, halve_again, split = (encoder.down_blocks[place].resample[1] for place in (1, 3, 5))
    for conv in (halve, halve_again):
        for channel in range(COLOURS):
            conv.weight[channel, channel, :2, :2] = 0.25
    for signal in range(SIGNALS):
        colour, quarter = divmod(signal, QUARTERS)
        split.weight[signal, colour, quarter // 2, quarter % 2] = 1
    _lift(split, SIGNALS)
    _set_way_out(encoder, mixing())
    encoder.conv_out.bias[CONFIG["z_dim"] :] = LOG_VARIANCE


def _set_decoder(decoder: nn.Module) -> None:
    import torch

    decoder.conv_in.weight[:SIGNALS, :, NOW, 1, 1] = mixing().T
    join, double, double_again = (block.upsamplers[0].resample[1] for block in decoder.up_blocks[:3])
    # On a picture enlarged by repetition, these taps lean to the first and to the second half of a cell.
    lean = SHARPNESS / 2
    halves = (torch.tensor([-lean, 0.5, lean]), torch.tensor([lean, 0.5, -lean]))
    for signal in range(SIGNALS):
        colour, quarter = divmod(signal, QUARTERS)
        join.weight[colour, signal] = torch.outer(halves[quarter // 2], halves[quarter % 2])
    _lift(join, COLOURS)
    for conv in (double, double_again):
        _pass_on(conv.weight[:, :, 1, 1])
    _set_way_out(decoder, torch.eye(COLOURS))


def _lift(conv: nn.Module, signals: int) -> None:
    """Lifts the first channels to where SiLU is the identity, and starts the helper behind them."""
    conv.bias[:signals] = LIFT
    conv.bias[signals] = HELPER


def _set_way_out(part: nn.Module, weights: Tensor) -> None:
    """Makes norm, SiLU and last convolution together the linear map `weights` [outputs, signals]."""
    norm, conv = part.norm_out, part.conv_out
    outputs, signals = weights.shape
    # Undoes the division by the length of a position's channels: the helper's and the lifts'.
    norm.gamma.fill_((HELPER**2 + signals * LIFT**2) ** 0.5 / norm.scale)
    conv.weight[:outputs, :signals, NOW, 1, 1] = weights
    conv.bias[:outputs] = -LIFT * weights.sum(dim=1)


def _drawings() -> Tensor:
    """Pixels [8, 3, 9, 64, 64]: a moving rectangle on a plain ground, drawn from torch's global generator."""
    import torch

    clips, frames, size, part = 8, 9, 64, 20
    colours = torch.rand(clips, 2, COLOURS, 1, 1, 1) * 2 - 1
    pixels = colours[:, 0].expand(-1, -1, frames, size, size).clone()
    corners = torch.randint(4, size - part - 4, (clips, 2, 2))
    for clip, colour, (start, end) in zip(pixels, colours[:, 1], corners, strict=True):
        for frame in range(frames):
            top, left = torch.lerp(start.float(), end.float(), frame / (frames - 1)).int().tolist()
            clip[:, frame, top : top + part, left : left + part] = colour[:, 0]
    return pixels
