"""The single files that ComfyUI users already have: recognised by their headers, loaded tensor by tensor, written.

models/diffusion_models/longcat_image*.safetensors   the transformer
models/text_encoders/qwen_2.5_vl_7b*.safetensors     the text encoder; its tokenizer ships inside ComfyUI
models/vae/ae.safetensors                            the VAE, Flux.1's
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import ModelError
from ..files import write_safetensors
from ..settings.geometry import LATENTS_PER_TOKEN
from . import image_keys, qwen_file, vae_file
from .loading import Finish, fill, misfit, reading
from .tensor_file import Shapes, TensorFile, read_tensor_file, what_it_holds

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Kind = Literal["transformer", "text_encoder", "vae"]

KNOWN_NAMES: tuple[tuple[str, Kind, str | None], ...] = (
    ("longcat[_-]image[_-]edit[_-]turbo*.safetensors", "transformer", "edit-turbo"),
    ("longcat[_-]image[_-]edit*.safetensors", "transformer", "edit"),
    ("longcat[_-]image[_-]dev*.safetensors", "transformer", "dev"),
    ("longcat[_-]image*.safetensors", "transformer", "final"),
    ("qwen_2.5_vl_7b*.safetensors", "text_encoder", None),
    ("ae.safetensors", "vae", None),
)
"""Pattern of a lower-case file name, what it is, and the flavour it suggests; the first that fits counts."""

TOKENIZER_IN_COMFYUI = Path("comfy", "text_encoders", "qwen25_tokenizer")
TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer_config.json")


@dataclass(frozen=True, kw_only=True)
class SingleFile:
    """What a file's header says; no tensor has been read."""

    path: Path
    kind: Kind
    layout: str
    """transformer: native, diffusers; vae: original, diffusers; text_encoder: hub."""
    precision: str
    """Most frequent type, such as bf16, or fp8_scaled."""
    config: dict[str, Any]
    """Arguments of the model class, or of its config class."""


@dataclass(frozen=True, kw_only=True)
class FoundFile:
    """A file in ComfyUI's folders that its name suggests; unread."""

    path: Path
    kind: Kind
    flavour: str | None
    """Flavours have equal tensors, so the name is all there is to go by; the user decides."""


def inspect(path: Path) -> SingleFile:
    """Recognises a single file by its header.

    Raises:
        ModelError: not one of the three kinds, truncated, or quantised in a way that is not read here.
    """
    return _describe(read_tensor_file(path))


def load_transformer(path: Path, dtype: torch.dtype, finish: Finish | None = None) -> nn.Module:
    """The LongCatImageTransformer2DModel in `path`; on the CPU, unless `finish` moves its parts as they are filled.

    Raises:
        ModelError: see `inspect`; or the file holds another kind, or its shapes do not fit together.
    """
    import torch
    from diffusers import LongCatImageTransformer2DModel

    file = read_tensor_file(path)
    keys = image_keys.recognise(file.shapes, path)
    with reading(path), torch.device("meta"):
        model = LongCatImageTransformer2DModel(**keys.config)
    recipes = image_keys.plan(keys, image_keys.DIFFUSERS)
    with file.reading() as read:
        fill(model, recipes, lambda name: _copy(image_keys.assemble(recipes[name], read), dtype), finish, path)
    return model.eval()


def load_vae(path: Path) -> nn.Module:
    """The AutoencoderKL in `path`, float32, on the CPU.

    Raises:
        ModelError: as `load_transformer`.
    """
    import torch
    from diffusers import AutoencoderKL

    file = read_tensor_file(path)
    config = vae_file.vae_config(file.shapes, path)
    layout = vae_file.vae_layout(file.shapes)
    with reading(path), torch.device("meta"):
        model = AutoencoderKL(**config)
    with file.reading() as read:
        weights = {
            name: _copy(read(in_file), torch.float32) for name, in_file in vae_file.vae_names(file.shapes).items()
        }
    with reading(path):
        model.load_state_dict(vae_file.to_diffusers(weights, layout, config), strict=True, assign=True)
    return model.eval()


def load_text_encoder(path: Path, dtype: torch.dtype) -> nn.Module:
    """The Qwen2_5_VLForConditionalGeneration in `path`, on the CPU.

    Without a language head in the file, as ComfyUI's have it, the model encodes prompts but cannot write text.

    Raises:
        ModelError: as `load_transformer`.
    """
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    file = read_tensor_file(path)
    names = qwen_file.text_encoder_names(file.shapes)
    config = qwen_file.text_encoder_config(names, file.shapes, path)
    with file.reading() as read:
        weights = {name: _copy(read(in_file), dtype) for name, in_file in names.items()}
    with reading(path):
        # Given a state dict, transformers translates the names, makes the buffers, and keeps our tensors.
        model, report = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            None,
            config=Qwen2_5_VLConfig(**config),
            state_dict=weights,
            dtype=dtype,
            output_loading_info=True,
            trust_remote_code=False,
        )
    missing = [*report["missing_keys"], *report["mismatched_keys"]]
    if missing:
        raise misfit(path, f"{len(missing)} tensors are missing or of another shape, such as {missing[0]}")
    return model.eval()


def find_tokenizer(folders: Sequence[Path]) -> Path:
    """The first of `folders` that holds a Qwen2.5 tokenizer; ComfyUI's is in `TOKENIZER_IN_COMFYUI` below its root.

    Raises:
        ModelError: none does.
    """
    for folder in folders:
        if all((folder / name).is_file() for name in TOKENIZER_FILES):
            return folder
    looked = ", ".join(str(folder) for folder in folders) or "no folder"
    raise ModelError(
        f"The text encoder's single file needs a tokenizer, and none was found (looked in: {looked}). It ships"
        f" with ComfyUI ({TOKENIZER_IN_COMFYUI.as_posix()}); elsewhere, copy {', '.join(TOKENIZER_FILES)} of the folder"
        " `tokenizer` of meituan-longcat/LongCat-Image-Edit, or of Qwen/Qwen2.5-VL-7B-Instruct, into one of these."
    )


def check_parts(transformer: SingleFile, vae: SingleFile, text_encoder: SingleFile) -> None:
    """Refuses files that are each in order but not of one model.

    Raises:
        ModelError: a file is of another kind than its place, or widths differ.
    """
    for kind, file in (("transformer", transformer), ("vae", vae), ("text_encoder", text_encoder)):
        if file.kind != kind:
            raise ModelError(f"{file.path} holds a {file.kind}; a {kind} is needed here. Choose another file.")
    pairs = (
        ("joint_attention_dim", transformer, text_encoder, text_encoder.config["text_config"]["hidden_size"]),
        ("in_channels", transformer, vae, LATENTS_PER_TOKEN * vae.config["latent_channels"]),
    )
    for setting, wants, gives, given in pairs:
        if wants.config[setting] != given:
            raise ModelError(
                f"{wants.path} takes {setting} {wants.config[setting]}, {gives.path} gives {given}. These files are of"
                " different models: choose the ones of LongCat-Image."
            )


def export_transformer(transformer: nn.Module, path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Writes a LongCatImageTransformer2DModel as a native single file, which ComfyUI's own loader reads.

    Raises:
        ModelError: the model carries adapters or quantised weights: only the released tensors have native names.
        OSError: the disk is full or the folder cannot be written.
    """
    weights = image_keys.convert(transformer.state_dict(), image_keys.NATIVE, "the model to export")
    write_safetensors(path, weights, metadata or {})


def find_in(folders: Iterable[Path]) -> list[FoundFile]:
    """Files below `folders` that have a known name, sorted within each folder; nothing is read, links are followed."""
    found = []
    for folder in folders:
        for path in sorted(_files_below(folder)):
            known = known_file(path)
            if known is not None:
                found.append(known)
    return found


def known_file(path: Path) -> FoundFile | None:
    """What the name of `path` suggests; None: nothing. The file is not read."""
    known = next((known for known in KNOWN_NAMES if fnmatch.fnmatchcase(path.name.lower(), known[0])), None)
    return FoundFile(path=path, kind=known[1], flavour=known[2]) if known else None


def _describe(file: TensorFile) -> SingleFile:
    kind, layout, config = _recognised(file.shapes, file.path)
    return SingleFile(path=file.path, kind=kind, layout=layout, precision=file.precision, config=config)


def _recognised(shapes: Shapes, path: Path) -> tuple[Kind, str, dict[str, Any]]:
    names = qwen_file.text_encoder_names(shapes)
    vae_layout = vae_file.vae_layout(shapes)
    if image_keys.is_transformer(shapes):
        keys = image_keys.recognise(shapes, path)
        return "transformer", keys.layout, keys.config
    if qwen_file.PARTS["query"] in names:
        return "text_encoder", "hub", qwen_file.text_encoder_config(names, shapes, path)
    if vae_layout is not None:
        return "vae", vae_layout, vae_file.vae_config(shapes, path)
    raise ModelError(
        f"{path} holds {what_it_holds(shapes)}; LongCat-Image is made of a transformer (longcat_image*.safetensors), a"
        " text encoder (qwen_2.5_vl_7b*.safetensors) and a VAE (ae.safetensors). Choose one of these."
    )


def _copy(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """In memory of its own, so that the file can be replaced or unplugged while the model is in use."""
    return tensor.to(dtype, copy=True)


def _files_below(folder: Path) -> Iterator[Path]:
    seen = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(root, name) for name in files)
