"""What a cached tensor depends on. The parts' hash is the file's name, and the parts lie in its metadata."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from importlib import metadata
from pathlib import Path

import torch

from ..data.clips import Clip
from ..data.media import image_info
from ..data.video_files import probe_video
from ..errors import DataError
from ..events import Callbacks
from ..files import sha256_of_file, sha256_of_json
from ..settings.model import ModelConfig
from .store import tracked

LATENTS_CODE = "1"
"""Counts up when the way from a picture to its latents changes: reading, resize, crop, normalisation."""

CLIP_CODE = "1"
"""Counts up when the way from a video to a clip's frames changes: decoding, choice of frames."""

TEXT_CODE = "1"
"""Counts up when the way from an instruction and its reference to the embeddings changes, the template included."""


def latents_parts(
    family: str, vae: str, picture: str, bucket: tuple[int, int], crop: tuple[float, float]
) -> dict[str, str]:
    """Parts of a picture's latents.

    Args:
        family: key of `ModelConfig.model_family`.
        vae: `source.component_identity` of the VAE.
        picture: of `hash_pictures`.
        bucket: (width, height) px that the picture is cropped to.
        crop: `Record.crop`.
    """
    return {
        "family": family,
        "space": "normalised latents",
        "picture": picture,
        "bucket": _size_text(bucket),
        "crop": _crop_text(crop),
        "VAE": vae,
        "dtype": "float32",
        "code": LATENTS_CODE,
    }


def clip_parts(clip: Clip | None) -> dict[str, str]:
    """What a clip's latents depend on besides `latents_parts`; nothing for a picture.

    The decoders are not among it: all conforming ones give the same pictures.
    """
    if clip is None:
        return {}
    return {"frames": str(clip.frames), "fps": f"{clip.fps:g}", "start": str(clip.start), "clip code": CLIP_CODE}


def text_parts(
    model: ModelConfig,
    text_encoder: str,
    dtypes: tuple[torch.dtype, torch.dtype],
    caption: str,
    references: Sequence[str],
    bucket: tuple[int, int],
    crop: tuple[float, float],
) -> dict[str, str]:
    """Parts of an instruction's or caption's embeddings; without a reference, the size of the picture is none of them.

    Versions of transformers differ numerically (pad positions, image resize), so the installed one is a part.

    Args:
        model: its family and the precision of its text encoder.
        text_encoder: `source.component_identity` of the text encoder.
        dtypes: that the text encoder should compute in, and that the device computes in. Only where they differ is the
            second one a part, so that the keys of all other machines are one.
        caption: the instruction or caption; may be empty.
        references: of `hash_pictures`, for each reference picture.
        bucket: (width, height) px that the references are cropped to.
        crop: `Record.crop`.
    """
    wanted, used = dtypes
    return {
        "family": model.model_family,
        "instruction": caption,
        "reference": " ".join(references),
        "bucket": _size_text(bucket) if references else "",
        "crop": _crop_text(crop) if references else "",
        "text encoder": text_encoder,
        "precision": model.text_encoder_1_precision,
        "dtype": _dtype_text(wanted),
        **({"encoded in": _dtype_text(used)} if used != wanted else {}),
        "transformers": metadata.version("transformers"),
        "code": TEXT_CODE,
    }


def hash_pictures(paths: Sequence[Path], callbacks: Callbacks, videos: Collection[Path] = ()) -> dict[Path, str]:
    """What stands for each file in keys: the hash of its bytes, and how it is read where that is more than decoding.

    Of a folder (pictures of a video) the hash of all its files. Every file is read once.

    Args:
        videos: those of `paths` that are read as videos.

    Raises:
        StoppedByUserError: `callbacks.should_stop()`.
        DataError: a file cannot be read.
    """
    unique = list(dict.fromkeys(paths))
    return {path: _hash_of(path, path in videos) for path in tracked(unique, "hashing pictures", callbacks)}


def _hash_of(picture: Path, is_video: bool) -> str:
    try:
        if picture.is_dir():
            digest = sha256_of_json({path.name: sha256_of_file(path) for path in picture.iterdir() if path.is_file()})
        else:
            digest = sha256_of_file(picture)
    except OSError as error:
        raise DataError(f"{picture} cannot be read: {error}. Put it back, or remove its pair.") from error
    reading = probe_video(picture).reading if is_video else image_info(picture).reading
    return f"{digest} {reading.rule}" if reading.rule else digest


def _dtype_text(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _crop_text(crop: tuple[float, float]) -> str:
    return f"{crop[0]:.6f} {crop[1]:.6f}"


def _size_text(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
