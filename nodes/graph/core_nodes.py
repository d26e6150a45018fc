"""The core nodes that our workflows use, for running them without ComfyUI: same ids, inputs and outputs as core's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from ...training.errors import PathError
from ..host import current_host

if TYPE_CHECKING:
    from torch import Tensor

SAMPLE_PICTURE = "example.png"
"""The picture that core ComfyUI ships in its input folder; drawn where it is missing."""


class Folders(Protocol):
    """What these nodes need from the terminal host beyond `Host`."""

    def input_dir(self) -> Path: ...

    def output_dir(self) -> Path: ...

    def wrote(self, path: Path) -> None: ...


def _folders() -> Folders:
    return cast(Folders, current_host())


def input_picture(folders: Folders, name: str) -> Path:
    """The file that a LoadImage value names: `name`, `name [input]`, `name [output]`, or a path.

    Raises:
        PathError: there is no such file.
    """
    base, plain = folders.input_dir(), name.removesuffix(" [input]")
    if name.endswith(" [output]"):
        base, plain = folders.output_dir(), name.removesuffix(" [output]")
    for path in (base / plain, Path(plain).expanduser()):
        if plain and path.is_file():
            return path
    raise PathError(f"image is {name!r}; there is no such picture (looked in {base}). Put it there, or give its path.")


class LoadImage:
    """A picture file as IMAGE, with its alpha as MASK (1 where transparent)."""

    CATEGORY = "image"
    FUNCTION = "load_image"
    RETURN_TYPES = ("IMAGE", "MASK")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"image": ([SAMPLE_PICTURE], {"image_upload": True})}}

    @classmethod
    def VALIDATE_INPUTS(cls, image: str) -> bool | str:
        try:
            input_picture(_folders(), image)
        except PathError as error:
            return str(error)
        return True

    def load_image(self, image: str) -> tuple[Tensor, Tensor]:
        """image [1, H, W, 3] and mask [1, H, W], float32, 0..1; without alpha the mask is [1, 64, 64] of zeros."""
        import torch
        from PIL import Image, ImageOps, UnidentifiedImageError

        path = input_picture(_folders(), image)
        try:
            with Image.open(path) as file:
                picture = ImageOps.exif_transpose(file)
                pixels = _tensor(picture.convert("RGB"))
                if "A" in picture.getbands():
                    return pixels, 1.0 - _tensor(picture.getchannel("A").convert("RGB"))[..., 0]
        except UnidentifiedImageError as error:
            raise PathError(f"{path} is no picture that can be read. Save it as PNG or JPEG.") from error
        return pixels, torch.zeros(1, 64, 64)


class SaveImage:
    """Writes pictures as `<filename_prefix>_00001_.png`, ... into the output folder; never over an existing file."""

    CATEGORY = "image"
    FUNCTION = "save_images"
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("images",)
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"images": ("IMAGE",), "filename_prefix": ("STRING", {"default": "ComfyUI"})}}

    def save_images(self, images: Tensor, filename_prefix: str = "ComfyUI") -> tuple[Tensor]:
        """images: [B, H, W, 3], 0..1"""
        write_pictures(images, filename_prefix)
        return (images,)


class PreviewImage:
    """Writes pictures into the output folder's `previews`: a terminal has no canvas to show them on."""

    CATEGORY = "image"
    FUNCTION = "save_images"
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("images",)
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"images": ("IMAGE",)}, "hidden": {"unique_id": "UNIQUE_ID"}}

    def save_images(self, images: Tensor, unique_id: str) -> tuple[Tensor]:
        """images: [B, H, W, 3], 0..1"""
        write_pictures(images, f"previews/node-{unique_id}")
        return (images,)


CORE_NODES: dict[str, type] = {"LoadImage": LoadImage, "SaveImage": SaveImage, "PreviewImage": PreviewImage}


def write_pictures(images: Tensor, prefix: str) -> list[Path]:
    """Writes `images` [B, H, W, 3] (0..1) below the output folder under the next free numbers.

    Raises:
        PathError: `prefix` leads out of the output folder.
        OSError: the disk is full or the folder cannot be written.
    """
    from PIL import Image

    from ...training.files import replacing

    folders = _folders()
    root = folders.output_dir().resolve()
    target = (root / prefix).resolve()
    if not target.is_relative_to(root) or target == root:
        raise PathError(f"filename_prefix is {prefix!r}, which leads out of {root}. Use a name or a subfolder of it.")
    first = _next_number(target)
    written = []
    for number, image in enumerate(images, start=first):
        path = target.with_name(f"{target.name}_{number:05d}_.png")
        # Cut off, not rounded: as core writes it, so that both write the same file.
        pixels = (image.clamp(0, 1) * 255).to("cpu").byte().numpy()
        with replacing(path) as temporary:
            Image.fromarray(pixels).save(temporary, format="PNG")
        folders.wrote(path)
        written.append(path)
    return written


def _next_number(target: Path) -> int:
    pattern = re.compile(re.escape(target.name) + r"_(\d+)_\.png")
    names = (path.name for path in target.parent.iterdir()) if target.parent.is_dir() else ()
    return 1 + max((int(match[1]) for name in names if (match := pattern.fullmatch(name))), default=0)


def _tensor(picture: Any) -> Tensor:
    """PIL RGB -> [1, H, W, 3], float32, 0..1"""
    import numpy
    import torch

    return torch.from_numpy(numpy.array(picture, dtype=numpy.float32) / 255.0)[None]
