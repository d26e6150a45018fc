"""Reading a diffusers folder without loading it: json files, and the headers of its weight files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from ..errors import ModelError
from ..files import parse_json, read_json

WEIGHT_NAMES = ("diffusion_pytorch_model.safetensors", "model.safetensors")
"""As diffusers and transformers write them; sharded ones have `<name>.index.json` instead."""

SAMPLES_PER_FILE = 64
SAMPLE_BYTES = 4096

LARGEST_HEADER = 100_000_000
"""Bytes; the bound that safetensors itself sets."""


def read_config(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a model folder.

    Raises:
        ModelError: the file is missing or holds no JSON object.
    """
    return read_json(path, ModelError, "The model folder is incomplete or damaged: copy or download it again.")


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


def read_header(path: Path) -> dict[str, dict[str, Any]]:
    """What a safetensors file says of its tensors, by name: `dtype`, `shape` and `data_offsets` of each.

    Raises:
        ModelError: missing, no safetensors file, or of another size than its header promises.
    """
    remedy = "Delete this file and copy or download it again."
    try:
        size = path.stat().st_size
        content = _header(path)
    except OSError as error:
        raise ModelError(f"{path} is missing or cannot be read ({error.strerror}). {remedy}") from error
    except ValueError as error:
        raise ModelError(f"{path} is no safetensors file, or its header is damaged ({error}). {remedy}") from error
    header = parse_json(content, f"The header of {path}", ModelError, remedy)
    header.pop("__metadata__", None)
    faulty = [name for name, entry in header.items() if not _is_entry(entry)]
    if faulty:
        raise ModelError(f"{path} has a damaged header: {faulty[0]!r} is {str(header[faulty[0]])[:100]}. {remedy}")
    expected = 8 + len(content) + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if size != expected:
        raise ModelError(f"{path} is damaged: it has {size} bytes, its header promises {expected}. {remedy}")
    return header


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str):
        return False
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    return _are_counts(shape) and _are_counts(offsets) and len(offsets) == 2 and offsets[0] <= offsets[1]


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _header(path: Path) -> bytes:
    """The JSON header of a safetensors file: 8 bytes little-endian length, then that many bytes.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is shorter than its header.
    """
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > LARGEST_HEADER:
            raise ValueError("the first 8 bytes are no header length")
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
    digest = hashlib.sha256(_header(path))
    digest.update(str(size).encode())
    with path.open("rb") as file:
        for number in range(SAMPLES_PER_FILE):
            file.seek(max(0, size - SAMPLE_BYTES) * number // (SAMPLES_PER_FILE - 1))
            digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def _shards(index: Path) -> list[str]:
    shards = read_config(index).get("weight_map")
    named = list(shards.values()) if isinstance(shards, dict) else []
    if not named or any(not isinstance(name, str) or Path(name).name != name for name in named):
        raise ModelError(f"{index} names no weight files of its own folder. Copy or download this file again.")
    return sorted(set(named))
