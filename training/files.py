"""Files, read and written with care.

Writing: a crash, a power cut or a full disk never leaves a half-written file under its real name. Reading JSON: one
reader for all that comes from outside, whose only errors are ours.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import LongCatError

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

SAMPLE = 4096
"""Bytes at the beginning, in the middle and at the end of a file that its state looks at."""

LARGEST_JSON = 64 << 20
"""Bytes of a JSON file."""

DEEPEST_JSON = 100
"""Objects and lists inside one another; Python's own reader ends in a RecursionError at about a thousand."""

LONGEST_NUMBER = 64
"""Digits of a whole number: more are no seed and no size, and too many for a float."""

_STRING = r'"[^"\\]*(?:\\.[^"\\]*)*"?'
# Each ends at one place only: a comment that could be matched shorter or longer would hide what stands behind it.
_COMMENT = r"//[^\n]*(?=\n|\Z)|/\*(?:[^*]|\*(?!/))*(?:\*/|\Z)"
_NO_JSON = re.compile(rf"(?s:{_STRING})|{_COMMENT}|,(?=(?:\s|{_COMMENT})*[\]}}])")
"""A string, which stays, or something that JSON does not have, which goes."""
_BRACKET = re.compile(rf"(?s:{_STRING})|[\[\]{{}}]")
_HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")

_KINDS = {dict: "an object", list: "a list", str: "a text", int: "a number", float: "a number", bool: "true or false"}

TEMPORARY = ".tmp"
"""Ending of names that are being written."""

A_DAY = 24 * 3600.0
"""Seconds after which a leftover is nobody's work any more."""

WAITS = (0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 1.0)
"""Seconds between attempts at what the system refuses; about three in all."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary file name beside `path`; on success it is flushed to disk and renamed to `path`.

    On any error the temporary file is removed and `path` stays as it was.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_name(path)
    # Made here, so that no other process can have it, with the mode that the user's own files get.
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666))
    try:
        yield temporary
        _flush_to_disk(temporary)
        rename(temporary, path)
    finally:
        remove(temporary)


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder beside `path`; on success its files are flushed and it becomes `path`.

    An existing `path` is replaced. On any error the temporary folder is removed and `path` stays as it was.

    Raises:
        OSError: the disk is full or the parent folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, before = _temporary_name(path), _temporary_name(path)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            _flush_to_disk(file)
        if path.exists():
            rename(path, before)
        try:
            rename(temporary, path)
        except OSError:
            if before.exists():
                rename(before, path)
            raise
    finally:
        remove(temporary)
        remove(before)


def rename(source: Path, target: Path) -> None:
    """Renames a file or folder, replacing a file at `target`, so that it also outlives a power cut.

    Tried again for some seconds: on Windows a virus scanner, the search index or an open window can hold a file.

    Raises:
        OSError: it stays refused.
    """
    _persistently(lambda: os.replace(source, target))
    _flush_to_disk(target.parent)


def remove(path: Path) -> bool:
    """Removes a file or a folder if it is there, as far as the system lets go of it; whether it is gone.

    What stays is a leftover that `remove_leftovers` finds later.
    """
    try:
        _persistently(lambda: shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink())
    except FileNotFoundError:
        return True
    except OSError as error:
        logger.warning("%s could not be removed: %s", path, error)
        return False
    return True


def remove_leftovers(folder: Path, older_than: float = 0.0) -> None:
    """Removes what processes that were killed while writing into `folder` left behind.

    Args:
        folder: where `replacing` and `replacing_folder` write; need not exist.
        older_than: seconds; where other processes may be writing now, a day is safe.
    """
    for path in folder.glob(f".*{TEMPORARY}"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime >= older_than:
                remove(path)


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes one safetensors file, whole or not at all.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        try:
            save_file(contiguous, temporary, metadata=dict(metadata))
        except SafetensorError as error:
            raise OSError(f"{path} could not be written: {error}") from error


def state_of(path: Path) -> list[str | int]:
    """What a file looks like from outside: size, times, and a hash of some of its bytes.

    Cheap: shows whether a file may have changed. Size and modification time alone would miss a file that was replaced
    by one of the same.

    Raises:
        OSError: it is not there.
    """
    state = path.stat()
    samples = hashlib.sha256()
    with contextlib.suppress(OSError), path.open("rb") as file:
        for place in (0, max(state.st_size // 2, 0), max(state.st_size - SAMPLE, 0)):
            file.seek(place)
            samples.update(file.read(SAMPLE))
    # On Windows st_ctime is the time of creation, which says nothing here and does no harm.
    return [state.st_size, state.st_mtime_ns, state.st_ctime_ns, samples.hexdigest()]


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as JSON, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(
    path: Path,
    error_class: type[LongCatError],
    remedy: str,
    *,
    kind: type = dict,
    comments: bool = False,
    largest: int = LARGEST_JSON,
) -> Any:
    """The value of a JSON file.

    Args:
        error_class, remedy: what to raise, and the sentence that ends its message.
        kind: what the value must be; `object`: anything.
        comments: whether `//` and `/* */` comments and trailing commas are allowed.
        largest: bytes of the file.

    Raises:
        error_class: not there, too large, or as in `parse_json`; names the file.
    """
    try:
        with path.open("rb") as file:
            content = file.read(largest + 1) if os.fstat(file.fileno()).st_size <= largest else None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise error_class(f"{path} is missing or cannot be read ({reason}). {remedy}") from error
    if content is None or len(content) > largest:
        raise error_class(f"{path} is too large for its kind: more than {largest:,} bytes. {remedy}")
    return parse_json(content, str(path), error_class, remedy, kind=kind, comments=comments)


def parse_json(
    content: str | bytes,
    where: str,
    error_class: type[LongCatError],
    remedy: str,
    *,
    kind: type = dict,
    comments: bool = False,
) -> Any:
    """The value of a JSON text; bytes are UTF-8, with or without byte order mark. See `read_json`.

    Raises:
        error_class: no JSON, a key twice in one object, a number that is not finite, over `DEEPEST_JSON` levels, or not
            of `kind`; begins with `where` and says line and column.
    """
    try:
        value = _parsed(_text(content), comments)
    except ValueError as error:
        raise error_class(f"{where} is no valid JSON: {error}. {remedy}") from error
    if not isinstance(value, kind):
        raise error_class(f"{where} holds {_KINDS.get(type(value), 'null')}, not {_KINDS[kind]}. {remedy}")
    return value


def strip_comments(text: str) -> str:
    """Plain JSON of equal length and lines: comments and trailing commas become blanks, so that positions stay.

    Raises:
        ValueError: a comment that nothing ends.
    """
    return _NO_JSON.sub(_blank, text)


def _blank(match: re.Match[str]) -> str:
    found = match[0]
    if found.startswith("/*") and (len(found) < 4 or not found.endswith("*/")):
        line = match.string.count("\n", 0, match.start()) + 1
        raise ValueError(f"the comment that begins in line {line} has no end")
    return found if found[0] == '"' else re.sub(r"[^\n]", " ", found)


def _text(content: str | bytes) -> str:
    try:
        text = content if isinstance(content, str) else content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 text (byte {error.start})") from error
    if not text.strip():
        raise ValueError("it is empty")
    return text


def _parsed(text: str, comments: bool) -> Any:
    text = strip_comments(text) if comments else text
    _check_depth(text)
    value = json.loads(
        text, object_pairs_hook=_without_repeats, parse_constant=_no_constant, parse_float=_finite, parse_int=_short
    )
    if _HALF_CHARACTER.search(text):
        _check_characters(value)
    return value


def _check_depth(text: str) -> None:
    if text.count("[") + text.count("{") <= DEEPEST_JSON:
        return
    depth = 0
    for match in _BRACKET.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(match[0][0], 0)
        if depth > DEEPEST_JSON:
            line = text.count("\n", 0, match.start()) + 1
            raise ValueError(f"more than {DEEPEST_JSON} objects and lists inside one another (line {line})")


def _check_characters(value: Any) -> None:
    """Half a character is legal as `\\ud800`, but can be neither written nor shown."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"it has half a character, \\u{ord(error.object[error.start]):x}") from error


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"the key {name[:80]!r} occurs twice in one object")
        values[name] = value
    return values


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:LONGEST_NUMBER]} is too large a number")
    return value


def _short(text: str) -> int:
    if len(text) > LONGEST_NUMBER:
        raise ValueError(f"{text[:LONGEST_NUMBER]}... is too large a number")
    return int(text)


def sha256_of_file(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return _file_digest(file)


def sha256_of_json(value: Any) -> str:
    """Hex digest of a JSON value, independent of key order."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _file_digest(file: Any) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _temporary_name(path: Path) -> Path:
    # Cut, as file systems take 255 bytes a name, and Windows 260 characters a path.
    return path.with_name(f".{path.name[:40]}.{os.urandom(4).hex()}{TEMPORARY}")


def _persistently(action: Callable[[], object]) -> None:
    for wait in WAITS:
        try:
            action()
            return
        except PermissionError:
            time.sleep(wait)
    action()


def _flush_to_disk(path: Path) -> None:
    """A file's content, or a folder's entries, without which a rename may be lost in a power cut."""
    is_folder = path.is_dir()
    if is_folder and os.name == "nt":  # has no way to do so, and journals renames
        return
    # Windows can only flush a file that is open for writing.
    file = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
    try:
        os.fsync(file)
    except OSError:
        if not is_folder:  # some network file systems refuse it for folders
            raise
    finally:
        os.close(file)
