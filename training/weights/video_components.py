"""The parts of a LongCat-Video folder: whether they are there and fit together, and how each is read.

The released layout has the transformer in `dit`, and no model_index.json; FastVideo's has it in `transformer`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ModelError
from ..models.contract import QWEN, UMT5
from .checkpoint_files import check_component, class_name, read_config, read_header, text_setting, weight_files
from .loading import Finish, fill, from_folder, reading, reading_folder
from .tensor_file import read_tensor_file
from .video_keys import VideoKeys, assemble, recognise

if TYPE_CHECKING:
    import torch
    from torch import nn

TRANSFORMER_FOLDERS = ("dit", "transformer")

SETTINGS = {"mlp_ratio": (int, float), "text_tokens_zero_pad": (bool,)}
"""Entries of the transformer's config.json that do not follow from its tensors, and the types they may have."""

CLASSES = {
    "vae": ("AutoencoderKLWan",),
    "text_encoder": ("UMT5EncoderModel", "Qwen2_5_VLForConditionalGeneration"),
}
"""Folder to the classes that its config.json may name."""

WIDTH_KEYS = {UMT5: "d_model", QWEN: "hidden_size"}

LATENT_CHANNELS = "z_dim"


def check_folder(folder: Path) -> None:
    """Refuses a folder that is not a complete LongCat-Video checkpoint whose parts fit together; loads no weights.

    Raises:
        ModelError: naming what was found and what is wanted.
    """
    path = transformer_folder(folder)
    configs = {part: read_config(folder / part / "config.json") for part in CLASSES}
    for part, wanted in CLASSES.items():
        found = class_name(configs[part])
        if found not in wanted:
            raise ModelError(
                f"{folder / part} holds a {found}; longcat_video needs a {' or '.join(wanted)} there. Choose a folder"
                " of LongCat-Video (such as meituan-longcat/LongCat-Video), or another model_family."
            )
    for part in (path.name, *CLASSES, "tokenizer"):
        check_component(folder / part)
    _check_widths(folder, configs, path, _transformer_config(path, _transformer_keys(path)))
    if not (folder / "tokenizer" / "tokenizer_config.json").is_file():
        raise ModelError(
            f"{folder / 'tokenizer'} has no tokenizer_config.json. The folder is incomplete: copy or download it again."
        )
    for part in CLASSES:
        for weights in weight_files(folder / part):
            read_header(weights)


def transformer_folder(folder: Path) -> Path:
    """Where the transformer is; `dit`, if it is nowhere."""
    paths = [folder / name for name in TRANSFORMER_FOLDERS]
    return next((path for path in paths if (path / "config.json").is_file()), paths[0])


def transformer_config(folder: Path) -> dict[str, Any]:
    """Settings of the checkpoint's transformer in our names, whatever its own config.json calls them; reads headers.

    Raises:
        ModelError: incomplete, damaged or of another model.
    """
    path = transformer_folder(folder)
    return _transformer_config(path, _transformer_keys(path))


def text_width(config: dict[str, Any]) -> int | None:
    """Width of a text encoder's embeddings by its config.json; None if it is of no known kind."""
    key = WIDTH_KEYS.get(str(config.get("model_type")))
    width = text_setting(config, key) if key else None
    return width if type(width) is int else None


def load_vae(folder: Path) -> nn.Module:
    """AutoencoderKLWan in float32, on the CPU.

    Raises:
        ModelError: the files are damaged or of another model.
    """
    import torch
    from diffusers import AutoencoderKLWan

    return from_folder(AutoencoderKLWan, folder / "vae", torch.float32)


def load_text_encoder(folder: Path, dtype: torch.dtype) -> nn.Module:
    """UMT5EncoderModel or Qwen2_5_VLForConditionalGeneration, as its config.json says, on the CPU.

    Raises:
        ModelError: the files are damaged or of another model.
    """
    from transformers import Qwen2_5_VLForConditionalGeneration, UMT5EncoderModel

    classes = {UMT5: UMT5EncoderModel, QWEN: Qwen2_5_VLForConditionalGeneration}
    path = folder / "text_encoder"
    kind = str(read_config(path / "config.json").get("model_type"))[:80]
    if kind not in classes:
        raise ModelError(f"{path} holds a {kind}; longcat_video reads prompts with {' or '.join(classes)}.")
    return from_folder(classes[kind], path, dtype)


def load_transformer(folder: Path, dtype: torch.dtype, finish: Finish | None = None) -> nn.Module:
    """LongCatVideoTransformer3DModel, read block by block from any layout of names.

    Args:
        folder: of the checkpoint.
        dtype: of the weights.
        finish: see `loading.fill`.

    Raises:
        ModelError: the files are damaged or of another model.
    """
    import torch

    from ..models.video.transformer import LongCatVideoTransformer3DModel

    path = transformer_folder(folder)
    keys = _transformer_keys(path)
    with reading(path), torch.device("meta"):
        model = LongCatVideoTransformer3DModel(**_transformer_config(path, keys))
    with reading_folder(path, dtype) as (_, read):
        fill(model, keys.sources, lambda name: assemble(keys, name, read), finish, path)
    return model.eval()


def _transformer_keys(path: Path) -> VideoKeys:
    shapes = {name: shape for file in weight_files(path) for name, shape in read_tensor_file(file).shapes.items()}
    return recognise(shapes, path)


def _transformer_config(path: Path, keys: VideoKeys) -> dict[str, Any]:
    settings = read_config(path / "config.json")
    for name, kinds in SETTINGS.items():
        if name in settings and type(settings[name]) not in kinds:
            raise ModelError(
                f"{path / 'config.json'} has {name} {str(settings[name])[:40]}; it must be"
                f" {'true or false' if bool in kinds else 'a number'}. Copy or download it again."
            )
    return keys.config | {name: settings[name] for name in SETTINGS if name in settings}


def _check_widths(folder: Path, configs: dict[str, dict[str, Any]], path: Path, transformer: dict[str, Any]) -> None:
    width, wanted = text_width(configs["text_encoder"]), transformer["caption_channels"]
    if width is None or width != wanted:
        raise ModelError(
            f"{folder / 'text_encoder'} gives embeddings {width} wide, {path} was trained on {wanted}"
            " (caption_channels). They are of different models; filling up or cutting would give it texts that mean"
            " nothing. Use the text encoder that came with this transformer (UMT5-XXL, 4096, in the released model)."
        )
    channels, wanted = configs["vae"].get(LATENT_CHANNELS), transformer["in_channels"]
    if type(channels) is not int or channels != wanted:
        raise ModelError(
            f"{folder / 'vae'} has {str(channels)[:40]} latent channels, {path} takes {wanted}. They are of different"
            " models: copy or download the folder again."
        )
    _check_statistics(folder / "vae", configs["vae"])


def _check_statistics(path: Path, config: dict[str, Any]) -> None:
    """Without them, latents would be in another space than the transformer's, and nothing would fail."""
    for name in ("latents_mean", "latents_std"):
        values = config.get(name)
        numbers = isinstance(values, list) and all(type(value) in (int, float) for value in values)
        if not numbers or len(values) != config[LATENT_CHANNELS] or (name == "latents_std" and 0 in values):
            raise ModelError(
                f"{path / 'config.json'} has no {name} of {config[LATENT_CHANNELS]} numbers. Copy or download it again."
            )
