"""The core nodes that our workflows use, for running them without ComfyUI: same ids, inputs and outputs as core's."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from ...training.errors import ConfigError, PathError
from ...training.files import replacing
from .. import NODES
from ..host import current_host
from .signature import is_link

if TYPE_CHECKING:
    from torch import Tensor

SAMPLE_PICTURE = "example.png"
"""The picture that core ComfyUI ships in its input folder; drawn where it is missing."""

SAMPLE_SIDE = 512
"""Px"""


class Folders(Protocol):
    """What these nodes need from the terminal host beyond `Host`."""

    def input_dir(self) -> Path: ...

    def output_dir(self) -> Path: ...

    def wrote(self, path: Path) -> None: ...


def _folders() -> Folders:
    return cast(Folders, current_host())


def input_picture(folders: Folders, name: str) -> Path:
    """The file of a LoadImage value: `name`, `name [input]`, `name [output]`, or a path.

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


def named_pictures(graph: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(node id, value) of every LoadImage in an API graph."""
    for node_id, node in graph.items():
        value = node["inputs"].get("image")
        if node["class_type"] == "LoadImage" and isinstance(value, str) and not is_link(value):
            yield node_id, value


def draw_missing_samples(graph: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draws the sample picture into `folder` if the graph names it and it is missing. Others are the user's."""
    names = {name for _, name in named_pictures(graph)}
    path = folder / SAMPLE_PICTURE
    if SAMPLE_PICTURE not in names or path.exists():
        return []
    draw_sample(path)
    return [path]


def draw_sample(path: Path) -> None:
    """The picture that the shipped prompts describe; the tiny twins know pictures like it."""
    import torch

    from ...training.tiny.world import Look, draw, pictures, place_scenes

    look = Look(shape="circle", colour="purple", background="white", position="middle")
    (picture,) = pictures(draw(place_scenes([look], torch.Generator().manual_seed(0)), SAMPLE_SIDE))
    with replacing(path) as temporary:
        picture.save(temporary, format="PNG")


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
    """Writes pictures into the output folder's `previews`: a terminal cannot show them."""

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


@dataclass(frozen=True, kw_only=True)
class Video:
    """The value of a VIDEO link."""

    images: Tensor
    """[F, H, W, 3], 0..1"""
    frame_rate: Fraction
    bit_depth: int


class CreateVideo:
    """Frames and a frame rate as VIDEO."""

    CATEGORY = "video"
    FUNCTION = "create"
    RETURN_TYPES = ("VIDEO",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "images": ("IMAGE",),
                "fps": ("FLOAT", {"default": 30.0, "min": 1.0, "max": 120.0, "step": 1.0}),
            },
            "optional": {
                "audio": ("AUDIO",),
                "bit_depth": ("INT", {"default": 8, "min": 8, "max": 10, "step": 2}),
            },
        }

    def create(self, images: Tensor, fps: float, audio: None = None, bit_depth: int = 8) -> tuple[Video]:
        """images: [F, H, W, 3], 0..1; no node here makes AUDIO"""
        return (Video(images=images, frame_rate=Fraction(fps), bit_depth=bit_depth),)


class SaveVideo:
    """Writes `<filename_prefix>_00001_.mp4`, ... (H.264) into the output folder; never over an existing file."""

    CATEGORY = "video"
    FUNCTION = "save"
    RETURN_TYPES = ("VIDEO",)
    RETURN_NAMES = ("video",)
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "video": ("VIDEO",),
                "filename_prefix": ("STRING", {"default": "video/ComfyUI"}),
                "format": (["auto", "mp4"], {"default": "auto"}),
                "codec": (["auto", "h264"], {"default": "auto"}),
            }
        }

    def save(self, video: Video, filename_prefix: str, format: str, codec: str) -> tuple[Video]:
        write_video(video, filename_prefix)
        return (video,)


class PrimitiveInt:
    """Holds a value for widgets of other nodes; so do the next ones."""

    CATEGORY = "utilities/primitive"
    FUNCTION = "give"
    RETURN_TYPES: tuple[str, ...] = ("INT",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        limits = {"min": -sys.maxsize, "max": sys.maxsize}
        return {"required": {"value": ("INT", {**limits, "control_after_generate": "fixed"})}}

    def give(self, value: Any) -> tuple[Any]:
        return (value,)


class PrimitiveFloat(PrimitiveInt):
    RETURN_TYPES = ("FLOAT",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": ("FLOAT", {"min": -sys.maxsize, "max": sys.maxsize, "step": 0.1})}}


class PrimitiveString(PrimitiveInt):
    RETURN_TYPES = ("STRING",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": ("STRING", {"multiline": False})}}


class PrimitiveStringMultiline(PrimitiveInt):
    RETURN_TYPES = ("STRING",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": ("STRING", {"multiline": True})}}


class PrimitiveBoolean(PrimitiveInt):
    RETURN_TYPES = ("BOOLEAN",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": ("BOOLEAN", {})}}


CONSTANTS: dict[str, type] = {
    node.__name__: node
    for node in (PrimitiveInt, PrimitiveFloat, PrimitiveString, PrimitiveStringMultiline, PrimitiveBoolean)
}

CORE_NODES: dict[str, type] = {
    **{node.__name__: node for node in (LoadImage, SaveImage, PreviewImage, CreateVideo, SaveVideo)},
    **CONSTANTS,
}


def node_classes() -> dict[str, type]:
    """Every node class that runs without ComfyUI, by id: core's above and this pack's."""
    return {**CORE_NODES, **NODES}


def write_pictures(images: Tensor, prefix: str) -> list[Path]:
    """Writes `images` [B, H, W, 3] (0..1) below the output folder under the next free numbers.

    Raises:
        PathError: `prefix` points outside the output folder.
        OSError: the disk is full or the folder cannot be written.
    """
    from PIL import Image

    written = []
    for image in images:
        with _next_file(prefix, ".png") as (path, temporary):
            Image.fromarray(_levels(image, 255)).save(temporary, format="PNG")
        written.append(path)
    return written


def write_video(video: Video, prefix: str) -> Path:
    """Writes `video` as core does, below the output folder under the next free number.

    Raises:
        ConfigError: a side is odd, which H.264's halved colour planes cannot have.
        PathError: `prefix` points outside the output folder.
        OSError: the disk is full or the folder cannot be written.
    """
    import av

    height, width = video.images.shape[1:3]
    if height % 2 or width % 2:
        raise ConfigError(f"The video is {width}x{height} px; both sides must be even. Resize its frames.")
    rgb, planes, most = ("rgb48le", "yuv420p10le", 65535) if video.bit_depth == 10 else ("rgb24", "yuv420p", 255)
    with _next_file(prefix, ".mp4") as (path, temporary), av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream("h264", rate=Fraction(round(video.frame_rate * 1000), 1000))
        stream.width, stream.height, stream.pix_fmt = width, height, planes
        for image in video.images:
            frame = av.VideoFrame.from_ndarray(_levels(image, most), format=rgb)
            container.mux(stream.encode(frame.reformat(format=planes)))
        container.mux(stream.encode())
    return path


@contextmanager
def _next_file(prefix: str, suffix: str) -> Iterator[tuple[Path, Path]]:
    """(the file under the next free number, a temporary one to be written in its place)."""
    folders = _folders()
    root = folders.output_dir().resolve()
    target = (root / prefix).resolve()
    if not target.is_relative_to(root) or target == root:
        raise PathError(f"filename_prefix is {prefix!r}, which is outside {root}. Use a name or a subfolder of it.")
    path = target.with_name(f"{target.name}_{_next_number(target, suffix):05d}_{suffix}")
    with replacing(path) as temporary:
        yield path, temporary
    folders.wrote(path)


def _next_number(target: Path, suffix: str) -> int:
    pattern = re.compile(re.escape(target.name) + r"_(\d+)_" + re.escape(suffix))
    names = (path.name for path in target.parent.iterdir()) if target.parent.is_dir() else ()
    return 1 + max((int(match[1]) for name in names if (match := pattern.fullmatch(name))), default=0)


def _levels(image: Tensor, most: int) -> Any:
    """[H, W, 3], 0..1 -> whole numbers up to `most`; rounded down, as core does."""
    import numpy

    levels = (image.float().clamp(0, 1) * most).cpu().numpy()
    return levels.astype(numpy.uint8 if most == 255 else numpy.uint16)


def _tensor(picture: Any) -> Tensor:
    """PIL RGB -> [1, H, W, 3], float32, 0..1"""
    import numpy
    import torch

    return torch.from_numpy(numpy.array(picture, dtype=numpy.float32) / 255.0)[None]
