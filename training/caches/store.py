"""A folder of content-addressed safetensors files: what is there, what is missing and why, and filling the gaps."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..data.records import TrainingSet
from ..errors import CacheError, ConfigError, StoppedByUserError
from ..events import Callbacks, StageProgress
from ..files import read_json, sha256_of_json, write_json, write_safetensors
from .cache import CacheReport

FORMAT_VERSION = "1"
"""Counts up when the layout of a cache file changes."""

DIMENSIONS = {"latents": (4, 5), "prompt_embeds": (3,)}
"""Tensor of a cache file -> the numbers of dimensions it may have: [1, C, h, w], [1, C, T, h, w] and [1, L, D]."""

INDEX_NAME = "index.json"
"""Source -> the key it had last. Only for the reasons in reports: without it everything works and is called new."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, eq=False)
class Item:
    """One tensor that a stage must have in its folder."""

    label: str
    """For reports, e.g. "017 target"."""
    source: str
    """What is encoded, by its place and not by its content, so that a changed item differs from a new one."""
    folder: Path
    tensor: str
    """A key of `DIMENSIONS`."""
    parts: Mapping[str, str]
    """Everything that the tensor depends on."""
    encode: Callable[[Any], Tensor]
    """Makes the tensor with the opened encoder."""

    @functools.cached_property
    def identity(self) -> dict[str, str]:
        return {"format": FORMAT_VERSION, "tensor": self.tensor, **self.parts}

    @functools.cached_property
    def path(self) -> Path:
        return _path_of(self.folder, sha256_of_json(self.identity))


def fill(
    stage: str,
    items: Sequence[Item],
    open_encoder: Callable[[], AbstractContextManager[Any]],
    callbacks: Callbacks,
) -> CacheReport:
    """Encodes and writes what is missing; the encoder is opened once, and only if something is missing.

    A damaged file counts as missing. Items of equal parts share one file.

    Raises:
        StoppedByUserError: `callbacks.should_stop()`; finished items stay.
        CacheError: a file could not be written, or an encoding is not finite.
    """

    indexes = {folder: _read_index(folder) for folder in {item.folder for item in items}}
    unique: dict[Path, Item] = {}
    for item in items:
        unique.setdefault(item.path, item)
    reasons = [(item, _why_missing(item, indexes[item.folder])) for item in unique.values()]
    missing = [(item, why) for item, why in reasons if why is not None]
    if missing:
        with open_encoder() as encoder, torch.no_grad():
            for item, _ in tracked(missing, f"caching {stage}", callbacks):
                _write(item, item.encode(encoder))
    _remember(items, indexes)
    return CacheReport(
        stage=stage,
        reused=len(items) - len(missing),
        encoded=tuple((item.label, why) for item, why in missing),
    )


def tracked(items: Sequence[T], stage: str, callbacks: Callbacks) -> Iterator[T]:
    """The items, with a question for the stop button before each and a `StageProgress` after each.

    Raises:
        StoppedByUserError: `callbacks.should_stop()`.
    """
    for done, item in enumerate(items):
        if callbacks.should_stop():
            raise StoppedByUserError(
                f"Stopped while {stage}, {done} of {len(items)} done. What is done is kept; queue again to continue."
            )
        yield item
        callbacks.on_event(StageProgress(stage=stage, done=done + 1, total=len(items)))


def load_tensor(path: Path, tensor: str, node: str) -> Tensor:
    """The tensor called `tensor` (a key of `DIMENSIONS`) of a cache file.

    Raises:
        CacheError: missing, truncated, or of another kind; `node` is the one to run again.
    """
    return _read_or_advise(path, tensor, node, lambda file: file.get_tensor(tensor))


def tensor_shape(path: Path, tensor: str, node: str) -> tuple[int, ...]:
    """The shape of that tensor; reads the file's head only.

    Raises:
        CacheError: as `load_tensor`.
    """
    return _read_or_advise(path, tensor, node, lambda file: tuple(file.get_slice(tensor).get_shape()))


def check_folders(dataset: TrainingSet, folders: Mapping[str, Path]) -> None:
    """Refuses cache folders (keys: their settings) that are equal, inside a data folder, or files.

    Real paths are compared, so links and trailing slashes make no difference.

    Raises:
        ConfigError: naming the settings and the folder.
    """
    data_folders = _data_folders(dataset)
    seen: dict[str, Path] = {}
    for setting, folder in folders.items():
        real = folder.resolve()
        for other, other_folder in seen.items():
            if _is_same_folder(real, other_folder):
                raise ConfigError(
                    f"{other} and {setting} are the same folder, {real}; each kind of cache file needs its own."
                    " Choose another folder for one of them."
                )
        for data in data_folders:
            if real.is_relative_to(data):
                raise ConfigError(
                    f"{setting} is {real}, which lies in the data folder {data}; nothing is ever written among your"
                    " pictures. Choose a folder outside it, or give the pictures a folder of their own."
                )
        if real.exists() and not real.is_dir():
            raise ConfigError(f"{setting} is {real}, which is a file. Choose a folder.")
        seen[setting] = real


def _data_folders(dataset: TrainingSet) -> list[Path]:
    sides = [side for source in dataset.sources for side in (source.targets, source.references)]
    named = [Path(side.instance_data_dir) for side in sides if side is not None and side.instance_data_dir]
    pictures = [path for record in dataset.records for path in (record.target, *record.references)]
    return [folder.resolve() for folder in dict.fromkeys((*named, *(path.parent for path in pictures)))]


def _is_same_folder(one: Path, other: Path) -> bool:
    # samefile also sees through file systems that ignore upper and lower case.
    return one == other or (one.exists() and other.exists() and one.samefile(other))


def _why_missing(item: Item, index: Mapping[str, str]) -> str | None:
    """Why `item` must be encoded; None: its file is good."""
    if not item.path.exists():
        return _what_changed(item, index)
    try:
        found = _read(item.path, item.tensor, lambda file: file.metadata())
    except CacheError as error:
        return f"damaged file replaced ({error})"
    differing = _differing(item.identity, found)
    return f"damaged file replaced (its metadata differ in: {', '.join(differing)})" if differing else None


def _what_changed(item: Item, index: Mapping[str, str]) -> str:
    """What differs from the file that this source had before, e.g. "picture, bucket changed"."""
    try:
        earlier = _path_of(item.folder, index.get(_plain(item.source), "none"))
        changed = _differing(item.identity, _read(earlier, item.tensor, lambda file: file.metadata()))
    except CacheError:
        changed = []
    return f"{', '.join(changed)} changed" if changed else "not in the cache"


def _differing(identity: Mapping[str, str], found: Mapping[str, str] | None) -> list[str]:
    return [name for name, value in identity.items() if (found or {}).get(name) != _plain(value)]


def _path_of(folder: Path, key: str) -> Path:
    return folder / f"{key}.safetensors"


def _read_or_advise(path: Path, tensor: str, node: str, get: Callable[[Any], T]) -> T:
    try:
        return _read(path, tensor, get)
    except CacheError as error:
        raise CacheError(f"{error} Run {node} again: it writes this file again.") from error


def _read(path: Path, tensor: str, get: Callable[[Any], T]) -> T:
    """`get(file)` of a file that holds `tensor`. Opening it compares header and file size; nothing else is read.

    Raises:
        CacheError: the file is missing, truncated, or of another kind.
    """

    try:
        with safe_open(path, framework="pt") as file:
            if tensor not in file.keys() or len(file.get_slice(tensor).get_shape()) not in DIMENSIONS[tensor]:
                wanted = " or ".join(map(str, DIMENSIONS[tensor]))
                raise CacheError(f"{path} holds no {tensor} of {wanted} dimensions.")
            return get(file)
    except (SafetensorError, OSError) as error:
        raise CacheError(f"{path} cannot be read: {error}.") from error


def _write(item: Item, tensor: Tensor) -> None:
    if not bool(tensor.isfinite().all()):
        raise CacheError(
            f"Encoding {item.label} ({item.source}) gave numbers that are not finite; nothing was written."
            " Check the model's files, or choose another base_model_precision."
        )
    metadata = {**item.identity, "source": item.label}
    with _disk_faults_named(item.folder):
        write_safetensors(item.path, {item.tensor: tensor}, {name: _plain(value) for name, value in metadata.items()})


@contextlib.contextmanager
def _disk_faults_named(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CacheError(
            f"The cache folder {folder} cannot be written: {error}. Free some space or choose another folder;"
            " what is already encoded stays and is used again."
        ) from error


def _read_index(folder: Path) -> dict[str, str]:
    try:
        return read_json(folder / INDEX_NAME, CacheError, "")
    except CacheError:
        return {}


def _remember(items: Sequence[Item], indexes: Mapping[Path, dict[str, str]]) -> None:
    for folder, index in indexes.items():
        updated = {**index, **{_plain(item.source): item.path.stem for item in items if item.folder == folder}}
        if updated != index:
            with _disk_faults_named(folder):
                write_json(folder / INDEX_NAME, updated)


def _plain(text: str) -> str:
    """`text` without what UTF-8 cannot hold: file names may contain undecodable bytes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
