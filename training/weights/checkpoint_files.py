"""Reading a diffusers folder without loading it: json files, and the headers of its weight files."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import LongCatError, ModelError
from ..files import parse_json, read_json
from ..resources import is_out_of_memory

WEIGHT_NAMES = ("diffusion_pytorch_model.safetensors", "model.safetensors")
"""As diffusers and transformers write them; sharded ones have `<name>.index.json` instead."""

SAMPLES_PER_FILE = 64
SAMPLE_BYTES = 4096

LARGEST_HEADER = 100_000_000
"""Bytes; the bound that safetensors itself sets."""

BYTES = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0", "I8", "U8", "BOOL"), 1),
}
"""Of one number, by the dtypes of safetensors; some newer ones share a byte."""

FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
"""The dtypes of weights that are read."""

LARGEST_NUMBER = 2**63 - 1
"""In a header; safetensors counts in 64 bits."""

DEPTHS = ("num_layers", "num_single_layers", "num_hidden_layers", "depth", "layers_per_block", "num_decoder_layers")
DEEPEST = 1000
"""Blocks that a config.json may ask for, under the names of `DEPTHS`: a damaged one would be built for hours."""

CODE, CODE_FOLDER = "auto_map", "custom_generate"
"""An entry of a config.json, and a folder beside it, by which a model folder brings Python code of its own."""


def read_config(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a model folder.

    Raises:
        ModelError: the file is missing or holds no JSON object.
    """
    return read_json(path, ModelError, "The model folder is incomplete or damaged: copy or download it again.")


def check_component(component: Path) -> None:
    """Refuses a folder that asks for code of its own, or for more blocks than any model has.

    Raises:
        ModelError: one of its JSON files is no such file, or asks for that.
    """
    if (component / CODE_FOLDER).exists():
        raise _code_refused(component, CODE_FOLDER)
    for path in sorted(component.glob("*config.json")):
        for name, value in _entries(read_config(path)):
            # transformers fetches and runs an attention kernel from the hub by such a name.
            is_kernel = name.endswith("attn_implementation") and isinstance(value, str) and "/" in value
            if value and (name == CODE or is_kernel):
                raise _code_refused(path, name)
            if name in DEPTHS and value is not None and not (type(value) is int and 0 <= value <= DEEPEST):
                raise ModelError(
                    f"{path} has {name} {str(value)[:40]}; it must be a whole number from 0 to {DEEPEST}. Copy or"
                    " download the folder again."
                )


def class_name(config: dict[str, Any]) -> str:
    """What a config.json says it is of: diffusers writes `_class_name`, transformers a list `architectures`."""
    architectures = config.get("architectures")
    first = architectures[0] if isinstance(architectures, list) and architectures else None
    return str(config.get("_class_name") or first or config.get("model_type") or "model of no known class")[:80]


def text_setting(config: dict[str, Any], key: str) -> Any:
    """The entry `key` of a text encoder's config.json; the language model's, if it also sees pictures."""
    # transformers 4 wrote the language model's settings at the top of Qwen2.5-VL's config, 5 writes them apart.
    nested = config.get("text_config")
    return nested[key] if isinstance(nested, dict) and key in nested else config.get(key)


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    """Every name and value in JSON, however deep."""
    if isinstance(value, dict):
        yield from value.items()
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _entries(each)


def _code_refused(place: Path, name: str) -> ModelError:
    return ModelError(
        f"{place} asks to run Python code of the model's own ({name}), which is never done here. Use the released"
        " folder, or one that transformers and diffusers load without trust_remote_code."
    )


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


def read_header(path: Path, error_class: type[LongCatError] = ModelError) -> dict[str, dict[str, Any]]:
    """What a safetensors file says of its tensors, by name: `dtype`, `shape` and `data_offsets` of each.

    Raises:
        error_class: missing, no safetensors file, or with other contents than its header promises.
    """
    remedy = "Delete this file and copy or download it again."
    try:
        size = path.stat().st_size
        content = _header(path)
    except OSError as error:
        raise error_class(f"{path} is missing or cannot be read ({error.strerror}). {remedy}") from error
    except ValueError as error:
        raise error_class(f"{path} is no safetensors file, or its header is damaged ({error}). {remedy}") from error
    header = parse_json(content, f"The header of {path}", error_class, remedy)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise error_class(f"{path} has a damaged header: its metadata must be texts by name. {remedy}")
    faulty = next((name for name, entry in header.items() if not _is_entry(entry)), None)
    if faulty is not None:
        shown = str(header[faulty])[:100]
        raise error_class(f"{path} has a damaged header: {faulty[:100]!r} is {shown}. {remedy}")
    end = 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        start, stop = entry["data_offsets"]
        if start != end:
            raise error_class(f"{path} has a damaged header: {name[:100]!r} begins at {start}, not at {end}. {remedy}")
        end = stop
    expected = 8 + len(content) + end
    if size != expected:
        raise error_class(f"{path} is damaged: it has {size} bytes, its header promises {expected}. {remedy}")
    return header


def open_weights(path: Path, error_class: type[LongCatError] = ModelError) -> Any:
    """A safetensors file, open for its tensors: `safe_open`, after `read_header` has found no fault.

    Raises:
        error_class: as `read_header`.
        OSError: too little memory to map it.
    """
    from safetensors import SafetensorError, safe_open

    read_header(path, error_class)
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (OSError, SafetensorError) as error:
        if is_out_of_memory(error):  # Windows: the paging file is too small to map it
            raise
        raise error_class(f"{path} cannot be read: {error}. Delete this file and copy or download it again.") from error


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str):
        return False
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    if not (_are_counts(shape) and _are_counts(offsets) and len(offsets) == 2 and offsets[0] <= offsets[1]):
        return False
    # An empty tensor too must have strides that 64 bits hold.
    if math.prod(side or 1 for side in shape) > LARGEST_NUMBER:
        return False
    size = BYTES.get(entry["dtype"])
    return size is None or offsets[1] - offsets[0] == math.prod(shape) * size


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value <= LARGEST_NUMBER for value in values)


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
