"""A folder of content-addressed safetensors files: what is there, what is missing and why, and filling the gaps."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..data.folder import is_harmless
from ..data.records import TrainingSet
from ..errors import CacheError, ConfigError, StoppedByUserError
from ..events import Callbacks, StageProgress
from ..files import A_DAY, read_json, remove_leftovers, sha256_of_json, write_json, write_safetensors
from .cache import CacheReport

FORMAT_VERSION = "1"
"""Counts up when the layout of a cache file changes."""

DIMENSIONS = {"latents": (4, 5), "prompt_embeds": (3,)}
"""Tensor of a cache file -> the numbers of dimensions it may have: [1, C, h, w], [1, C, T, h, w] and [1, L, D]."""

INDEX_NAME, INDEX_FORMAT = "longcat-index.json", "longcat cache index 1"
"""Source -> the key it had last. Only for the reasons in reports: without it everything works and is called new."""

INDEX_NAME_BEFORE = "index.json"
"""Of earlier versions. Read where there is no newer one, and never written: it may be the user's own file."""

KEY = re.compile("[0-9a-f]{64}")

DIGEST = "digest"
"""Metadata of a cache file: `_digest_of` its tensor. Files of earlier versions have none."""

FOREIGN_SHOWN = 3

_sound: dict[Path, tuple[int, ...]] = {}
"""Cache files whose digest was compared by this process, as they were then."""

_refused: list[Path] = []
"""Cache files that could not be used when they were needed."""

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

    A damaged file counts as missing; the tensors of files that this process has not seen yet are read for that. Items
    of equal parts share one file.

    Raises:
        StoppedByUserError: `callbacks.should_stop()`; finished items stay.
        CacheError: a file could not be written, or an encoding is not finite.
    """

    indexes = {folder: _read_index(folder) for folder in {item.folder for item in items}}
    for folder in indexes:
        remove_leftovers(folder, older_than=A_DAY)
    unique: dict[Path, Item] = {}
    for item in items:
        unique.setdefault(item.path, item)
    unread = [item for item in unique.values() if item.path.exists() and not _is_known_sound(item.path)]
    damage = {item.path: _damage_of(item) for item in tracked(unread, f"checking cached {stage}", callbacks)}
    reasons = [(item, damage.get(item.path) or _why_missing(item, indexes[item.folder])) for item in unique.values()]
    missing = [(item, why) for item, why in reasons if why]
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
    """The tensor called `tensor` (a key of `DIMENSIONS`) of a cache file; its digest is compared when it is new here.

    Raises:
        CacheError: missing, damaged, or of another kind; `node` is the one to run again.
    """
    return _read_or_advise(path, tensor, node, lambda file: _checked(file, path, tensor))


def tensor_shape(path: Path, tensor: str, node: str) -> tuple[int, ...]:
    """The shape of that tensor; reads the file's head only.

    Raises:
        CacheError: as `load_tensor`.
    """
    return _read_or_advise(path, tensor, node, lambda file: tuple(file.get_slice(tensor).get_shape()))


def refused_reads() -> int:
    """How often this process has refused a cache file: when it grows, the cache nodes have something to do."""
    return len(_refused)


def check_folders(dataset: TrainingSet, folders: Mapping[str, Path]) -> None:
    """Refuses cache folders (keys: their settings) that are equal, inside a data folder, files, or hold other files.

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
        foreign = _foreign_files(real)
        if foreign:
            more = f" and {len(foreign) - FOREIGN_SHOWN} more" if len(foreign) > FOREIGN_SHOWN else ""
            raise ConfigError(
                f"{setting} is {real}, which holds files that are not of this cache:"
                f" {', '.join(foreign[:FOREIGN_SHOWN])}{more}. Choose an empty folder, or one that does not exist yet."
            )
        seen[setting] = real


def _data_folders(dataset: TrainingSet) -> list[Path]:
    sides = [side for source in dataset.sources for side in (source.targets, source.references)]
    named = [Path(side.instance_data_dir) for side in sides if side is not None and side.instance_data_dir]
    pictures = [path for record in dataset.records for path in (record.target, *record.references)]
    return [folder.resolve() for folder in dict.fromkeys((*named, *(path.parent for path in pictures)))]


def _foreign_files(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        files = [Path(entry.path) for entry in entries if not entry.is_dir()]
    return sorted(path.name for path in files if not _is_ours(path) and not is_harmless(path))


def _is_ours(path: Path) -> bool:
    # An index.json of another program stays as it is, and harms nothing.
    is_index = path.name in (INDEX_NAME, INDEX_NAME_BEFORE)
    return is_index or path.suffix == ".safetensors" and KEY.fullmatch(path.stem) is not None


def _is_same_folder(one: Path, other: Path) -> bool:
    # samefile also sees through file systems that ignore upper and lower case.
    return one == other or (one.exists() and other.exists() and one.samefile(other))


def _why_missing(item: Item, index: Mapping[str, str]) -> str:
    """Why `item` must be encoded; empty: its file is good."""
    return "" if item.path.exists() else _what_changed(item, index)


def _damage_of(item: Item) -> str:
    """What is wrong with the file of `item`; empty: nothing."""
    try:
        found = _read(item.path, item.tensor, lambda file: (_checked(file, item.path, item.tensor), file.metadata())[1])
    except CacheError as error:
        return f"damaged file replaced ({error})"
    differing = _differing(item.identity, found)
    return f"damaged file replaced (its metadata differ in: {', '.join(differing)})" if differing else ""


def _what_changed(item: Item, index: Mapping[str, str]) -> str:
    """What differs from the file that this source had before, e.g. "picture, bucket changed"."""
    key = str(index.get(_plain(item.source)))
    if not KEY.fullmatch(key):
        return "not in the cache"
    try:
        earlier = _path_of(item.folder, key)
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
        _refused.append(path)
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


def _checked(file: Any, path: Path, tensor: str) -> Tensor:
    """The tensor of an opened file, whose digest is compared unless this process has done so.

    Raises:
        CacheError: it is not what was written.
    """
    state = _state_of(path)
    value = file.get_tensor(tensor)
    if _sound.get(path) != state:
        written = (file.metadata() or {}).get(DIGEST)
        if written is not None and written != _digest_of(value):
            raise CacheError(f"{path} is damaged: its numbers are not those that were written.")
        _sound[path] = state
    return value


def _is_known_sound(path: Path) -> bool:
    return path in _sound and _sound[path] == _state_of(path)


def _state_of(path: Path) -> tuple[int, ...]:
    # Asked before each read of a training, so nothing of the file itself is read.
    state = path.stat()
    return state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns


def _digest_of(tensor: Tensor) -> str:
    """sha256 of kind, shape and bytes."""
    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}".encode())
    digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def _write(item: Item, tensor: Tensor) -> None:
    if not bool(tensor.isfinite().all()):
        raise CacheError(
            f"Encoding {item.label} ({item.source}) gave numbers that are not finite; nothing was written."
            " Check the model's files, or choose another base_model_precision."
        )
    metadata = {**item.identity, "source": item.label, DIGEST: _digest_of(tensor)}
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


def _read_index(folder: Path) -> dict[str, Any]:
    """Source -> key; of an index that others may have written, so keys may be anything."""
    with contextlib.suppress(CacheError):
        content = read_json(folder / INDEX_NAME, CacheError, "")
        sources = content.get("sources")
        return sources if content.get("format") == INDEX_FORMAT and isinstance(sources, dict) else {}
    with contextlib.suppress(CacheError):
        return read_json(folder / INDEX_NAME_BEFORE, CacheError, "")
    return {}


def _remember(items: Sequence[Item], indexes: Mapping[Path, dict[str, Any]]) -> None:
    for folder, index in indexes.items():
        now = {_plain(item.source): item.path.stem for item in items if item.folder == folder}
        if any(index.get(source) != key for source, key in now.items()):
            with _disk_faults_named(folder):
                write_json(folder / INDEX_NAME, {"format": INDEX_FORMAT, "sources": {**_keys_of(index), **now}})


def _keys_of(index: Mapping[str, Any]) -> dict[str, str]:
    return {source: key for source, key in index.items() if KEY.fullmatch(str(key))}


def _plain(text: str) -> str:
    """`text` without what UTF-8 cannot hold: file names may contain undecodable bytes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
