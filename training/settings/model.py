"""Which weights, from where, in which precision."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ConfigError
from .flavours import FAMILY_NAMES, FLAVOUR_NAMES, FLAVOURS, IMAGE_FAMILY, Flavour
from .option import Checked, option

QUANTISED_PRECISIONS = ("int8-quanto", "int4-quanto", "fp8-torchao", "int8-torchao")


BASE_PRECISIONS = ("bf16", "fp32", *QUANTISED_PRECISIONS)
"""Names and meanings as in SimpleTuner, but fp8-torchao: there it also quantises activations."""


@dataclass(kw_only=True, frozen=True)
class ModelConfig(Checked):
    """Which weights, from where, in which precision (LoadLongCat)."""

    node = "Load LongCat"

    model_family: str = option(
        IMAGE_FAMILY,
        "longcat_image draws and edits pictures; longcat_video draws clips from text or from a first picture.",
        choices=FAMILY_NAMES,
    )
    model_flavour: str = option(
        "final",
        "longcat_image: final draws pictures from text; dev is the same before its polishing (the better base for"
        " a LoRA); edit changes a reference picture by instruction; edit-turbo does so in 8 steps without guidance"
        " (sampling only). longcat_video: final draws clips. tiny, tiny-edit and tiny-video (longcat_video) are"
        " twins: models of a few megabytes that only know drawn shapes, to try a workflow on any machine.",
        choices=FLAVOUR_NAMES,
    )
    pretrained_model_name_or_path: str = option(
        "auto",
        "auto: the folder models/longcat/<name> if it is there, else a single file of the flavour in ComfyUI's"
        " diffusion_models, else a download when a run starts. A hub id: the same, without single files. Or the"
        " path of a diffusers folder or of a transformer's single file.",
    )
    transformer_file: str = option(
        "auto",
        "A single file in ComfyUI's diffusion_models, such as longcat_image_edit_bf16.safetensors. It overrides"
        " pretrained_model_name_or_path. auto: that setting decides.",
    )
    vae_file: str = option(
        "auto",
        "Only with a transformer's single file: its VAE (that of Flux.1). auto: ae.safetensors in ComfyUI's vae"
        " folder.",
        advanced=True,
    )
    text_encoder_file: str = option(
        "auto",
        "Only with a transformer's single file: its text encoder. auto: the first qwen_2.5_vl_7b*.safetensors in"
        " ComfyUI's text_encoders folder.",
        advanced=True,
    )
    base_model_precision: str = option(
        "bf16",
        "Precision of the frozen transformer (LongCat-Image: 6.3 B parameters, 12.6 GB in bf16; LongCat-Video:"
        " 13.6 B, 27 GB). int8-quanto, int8-torchao and fp8-torchao halve its memory, int4-quanto quarters it (and"
        " compiles a kernel at its first use). All of them only store the weights so and compute in bf16.",
        choices=BASE_PRECISIONS,
    )
    text_encoder_1_precision: str = option(
        "no_change",
        "Precision of the text encoder (LongCat-Image: 8.3 B parameters, 16.6 GB in bf16). no_change: bf16, or"
        " fp32 with an fp32 base; the others as for the transformer.",
        choices=("no_change", *QUANTISED_PRECISIONS),
        advanced=True,
    )
    blocks_to_swap: int = option(
        0,
        "How many of the transformer's blocks (LongCat-Image: 30, LongCat-Video: 48) stay in main memory and are"
        " copied to the card when needed: less memory on the card, slower. Training then needs"
        " gradient_checkpointing. 0: none, or all of them with enable_group_offload.",
        low=0,
        high=1000,
        step=1,
        advanced=True,
    )
    enable_group_offload: bool = option(
        False,
        "Keep the transformer's blocks in main memory and copy them to the card when needed (guide: for small"
        " cards). Training, and sampling with a quantised model, do so with blocks_to_swap of them (0: all); other"
        " sampling with all of them, by diffusers' group offload.",
        advanced=True,
    )
    group_offload_type: str = option(
        "block_level",
        "What diffusers' group offload copies at a time when sampling: whole blocks, or single layers. Training"
        " and quantised models always copy whole blocks.",
        choices=("block_level", "leaf_level"),
        advanced=True,
    )
    group_offload_blocks_per_group: int = option(
        1, "How many of the blocks from main memory are on the card at a time.", low=1, high=1000, step=1, advanced=True
    )


def flavour_of(config: ModelConfig) -> Flavour:
    """The flavour that `config` means.

    Raises:
        ConfigError: its family has no such flavour; names those that it has.
    """
    flavour = FLAVOURS.get((config.model_family, config.model_flavour))
    if flavour is None:
        known = ", ".join(name for family, name in FLAVOURS if family == config.model_family)
        others = " and ".join(family for family, name in FLAVOURS if name == config.model_flavour)
        raise ConfigError(
            f"model_flavour is {config.model_flavour!r}, but {config.model_family} has no such flavour: choose one of"
            f" {known} in Load LongCat, or model_family {others}."
        )
    return flavour
