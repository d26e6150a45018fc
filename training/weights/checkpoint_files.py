"""Reading a diffusers folder without loading it: json files, and the headers of its weight files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ..errors import ModelError

WEIGHT_NAMES = ("diffusion_pytorch_model.safetensors", "model.safetensors")
"""As diffusers and transformers write them; sharded ones have `<name>.index.json` instead."""

SAMPLES_PER_FILE = 64
SAMPLE_BYTES = 4096

LARGEST_HEADER = 100_000_000
"""Bytes; the bound that safetensors itself sets."""


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`.

    Raises:
        ModelError: the file is missing or holds no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(
            f"{path} is missing or cannot be read ({error.strerror}). The model folder is incomplete: copy or download"
            " it again."
        ) from error
    except ValueError as error:
        raise ModelError(f"{path} holds no valid JSON ({error}). Copy or download this file again.") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds a JSON {type(value).__name__}, not an object. Copy or download it again.")
    return value


def weight_files(component: Path) -> list[Path]:
    """The safetensors files of a component's folder, by its index if it is sharded; they need not exist.

    Raises:
        ModelError: there are neither weights nor an index, or the index is faulty.
    """
    for name in WEIGHT_NAMES:
        index = component / f"{name}.index.json"
        if index.is_file():
            return [component / shard for shard in _shards(index)]
        if (component / name).is_file():
            return [component / name]
    there = ", ".join(sorted(path.name for path in component.glob("*"))[:10]) or "nothing"
    raise ModelError(
        f"{component} holds no weights: there is {there}; needed is {' or '.join(WEIGHT_NAMES)}, or its .index.json"
        " with all shards (other formats are not read). Copy or download the folder again."
    )


def check_weights(path: Path) -> None:
    """Compares a safetensors file's size with what its header promises.

    Raises:
        ModelError: missing, truncated, or no safetensors file.
    """
    remedy = "Delete this file and copy or download it again."
    try:
        size = path.stat().st_size
        header = json.loads(read_header(path))
        data = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
    except OSError as error:
        raise ModelError(f"{path} is missing or cannot be read ({error.strerror}). {remedy}") from error
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise ModelError(f"{path} is no safetensors file, or its header is damaged ({error}). {remedy}") from error
    expected = 8 + _header_length(path) + data
    if size != expected:
        raise ModelError(f"{path} is damaged: it has {size} bytes, its header promises {expected}. {remedy}")


def read_header(path: Path) -> bytes:
    """The JSON header of a safetensors file: 8 bytes little-endian length, then that many bytes.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is shorter than its header.
    """
    length = _header_length(path)
    with path.open("rb") as file:
        file.seek(8)
        header = file.read(length)
    if len(header) != length:
        raise ValueError(f"the header should have {length} bytes, there are {len(header)}")
    return header


def weights_identity(path: Path) -> str:
    """Hash of a weight file's size, header and samples spread over its data.

    Reading all 16 GB of a text encoder before every run would take longer than the run's start; other weights of
    the same layout differ everywhere, so samples find them.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(read_header(path))
    digest.update(str(size).encode())
    with path.open("rb") as file:
        for number in range(SAMPLES_PER_FILE):
            file.seek(max(0, size - SAMPLE_BYTES) * number // (SAMPLES_PER_FILE - 1))
            digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def _shards(index: Path) -> list[str]:
    shards = read_json(index).get("weight_map")
    names = sorted(set(shards.values())) if isinstance(shards, dict) and shards else []
    if not names or any(not isinstance(name, str) or Path(name).name != name for name in names):
        raise ModelError(f"{index} names no weight files of its own folder. Copy or download this file again.")
    return names


def _header_length(path: Path) -> int:
    with path.open("rb") as file:
        start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > LARGEST_HEADER:
        raise ValueError("the first 8 bytes are no header length")
    return length
