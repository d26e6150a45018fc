"""Ways in which files go wrong: on the disk, on the way from elsewhere, and under the hands of those who write them."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

DEEP = "@deep@"
"""Stands for lists inside one another until the text is written; Python's own writer ends at about a thousand."""

ODD_VALUES = (
    *(None, True, False, 0, -1, 1.5, 2**31, 10**30, 10**400, 1e308, 5e-324, float("nan"), float("inf")),
    *("", " ", "0", "1e-4", "NaN", "true", "null", "none", "x" * 10_000, "\0", "\n", "\ud800", "%s {0}"),
    *("..", "../../outside", "/", "~", "//server/share/x", "C:\\x", "a/" * 2_000, "CON", "$HOME", "{model_family}"),
    *("(a+)+$", r"^(([a-z])+.)+[A-Z]([a-z])+$", "[", "*"),
    *([], {}, [[]], [None], {"": None}, ["x", 0], [-1, -1], DEEP),
)

ODD_NAMES = ("a b", " ", "-", "ä", "a\nb", "x" * 200, "con", "a.b.c", ".hidden", os.fsdecode(b"\xff"), "%s", "[1]")

JSON_SUFFIXES = (".json", ".jsonc")
TEXT_SUFFIXES = (".txt", ".csv", ".jsonl")


def spoil(chance: Random, folder: Path) -> list[str]:
    """Spoils one to three files of `folder`; returns the names that they had and have. Their old contents stay."""
    names = []
    for _ in range(chance.choice((1, 1, 1, 1, 2, 3))):
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        if files:
            names += _spoil_file(chance, chance.choice(files), files)
    return names


def _spoil_file(chance: Random, path: Path, files: list[Path]) -> list[str]:
    if chance.random() < 0.12:
        return [path.name, chance.choice((_remove, _rename, _make_folder, _make_link, _exchange))(chance, path, files)]
    content = path.read_bytes()
    if path.suffix in JSON_SUFFIXES and chance.random() < 0.7:
        content = _twisted_text(chance, content)
    elif path.suffix in TEXT_SUFFIXES and chance.random() < 0.4:
        content = _rewritten(chance, content)
    elif path.suffix == ".safetensors" and chance.random() < 0.7:
        content = _other_tensors(chance, content)
    else:
        content = damaged(chance, content)
    _write(path, content)
    return [path.name]


# Names and places


def _remove(chance: Random, path: Path, files: list[Path]) -> str:
    path.unlink()
    return path.name


def _rename(chance: Random, path: Path, files: list[Path]) -> str:
    target = path.with_name(chance.choice(ODD_NAMES) + chance.choice((path.suffix, path.suffix.upper(), "", ".part")))
    path.rename(target)
    return target.name


def _make_folder(chance: Random, path: Path, files: list[Path]) -> str:
    path.unlink()
    path.mkdir()
    return path.name


def _make_link(chance: Random, path: Path, files: list[Path]) -> str:
    path.unlink()
    path.symlink_to(chance.choice((path.name, "nowhere", "..")))
    return path.name


def _exchange(chance: Random, path: Path, files: list[Path]) -> str:
    other = chance.choice(files)
    _write(path, other.read_bytes())
    return path.name


# Bytes


def damaged(chance: Random, content: bytes) -> bytes:
    """What disks, networks and editors do."""
    act = chance.choice((_flip, _flip, _flip, _cut, _cut, _zero, _splice, _repeat, _insert, _empty, _lengthen))
    return act(chance, content)


def _place(chance: Random, content: bytes) -> int:
    """Heads are worth more attempts than the rest."""
    end = len(content) if chance.random() < 0.4 else min(len(content), 200)
    return chance.randrange(end) if end else 0


def _flip(chance: Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(chance.choice((1, 2, 8, 64)) if content else 0):
        changed[_place(chance, content)] = chance.choice((0, 0xFF, 0x7F, chance.randrange(256)))
    return bytes(changed)


def _cut(chance: Random, content: bytes) -> bytes:
    return content[: chance.choice((_place(chance, content), len(content) - 1, len(content) // 2))]


def _zero(chance: Random, content: bytes) -> bytes:
    begin, length = _place(chance, content), chance.choice((4, 64, 4096))
    return content[:begin] + bytes(len(content[begin : begin + length])) + content[begin + length :]


def _splice(chance: Random, content: bytes) -> bytes:
    begin, other = _place(chance, content), _place(chance, content)
    return content[:begin] + content[other:]


def _repeat(chance: Random, content: bytes) -> bytes:
    begin = _place(chance, content)
    part = content[begin : begin + chance.choice((1, 16, 256))]
    return content[:begin] + part * chance.choice((2, 100)) + content[begin:]


def _insert(chance: Random, content: bytes) -> bytes:
    begin = _place(chance, content)
    junk = (b"\0" * 8, b"\xff\xfe", b"\xef\xbb\xbf", b'"', b"[" * 100_000, b"9" * 400, chance.randbytes(32))
    return content[:begin] + chance.choice(junk) + content[begin:]


def _empty(chance: Random, content: bytes) -> bytes:
    return b""


def _lengthen(chance: Random, content: bytes) -> bytes:
    return content + chance.choice((bytes(64), content[:4096], chance.randbytes(4096)))


# Texts


def _rewritten(chance: Random, content: bytes) -> bytes:
    text = content.decode("utf-8", "replace")
    lines = text.splitlines()
    chance.shuffle(lines)
    return chance.choice(
        (
            text.encode("utf-16"),
            text.encode("cp1252", "replace") + b"\xe4",
            text.replace("\n", "\r").encode(),
            text.replace(",", "\t").encode(),
            text.replace('"', "").encode(),
            "\n".join(lines).encode(),
            (text + '"').encode(),
            (text + text).encode(),
            (text + "," * 200).encode(),
            (text + "x" * 200_000).encode(),
        )
    )


def _twisted_text(chance: Random, content: bytes) -> bytes:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return damaged(chance, content)
    for _ in range(chance.choice((1, 1, 2, 4))):
        value = twisted(chance, value)
    return _json(value).encode()


def _json(value: Any) -> str:
    return json.dumps(value).replace(f'"{DEEP}"', "[" * 5_000 + "]" * 5_000)


def twisted(chance: Random, value: Any) -> Any:
    """`value` with one of its parts changed."""
    holders = list(_holders(value))
    if not holders:
        return odd(chance)
    holder, key = chance.choice(holders)
    part = holder[key]
    if isinstance(part, str) and part[:1] in "{[" and part and chance.random() < 0.7:
        holder[key] = _twisted_text(chance, part.encode()).decode()
        return value
    roll = chance.random()
    if roll < 0.15:
        del holder[key]
    elif roll < 0.25 and isinstance(holder, dict):
        names = (key.upper(), f"{key}_", f" {key}", *(value for value in ODD_VALUES if isinstance(value, str)))
        holder[chance.choice(names)] = holder.pop(key)
    elif roll < 0.4:
        other, place = chance.choice(holders)
        holder[key] = json.loads(json.dumps(other[place])) if place in _keys(other) else None
    elif roll < 0.5:
        holder[key] = chance.choice(([part], {"x": part}, str(part), [part] * 50))
    else:
        holder[key] = odd(chance)
    return value


def odd(chance: Random) -> Any:
    """A value that hardly any key is made for; a new one each time."""
    value = chance.choice(ODD_VALUES)
    return json.loads(json.dumps(value))


def _holders(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key or index) of every part, the containers as they are."""
    for key in _keys(value):
        yield value, key
        yield from _holders(value[key])


def _keys(value: Any) -> list[Any]:
    return list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []


# Tensors


def _other_tensors(chance: Random, content: bytes) -> bytes:
    """A safetensors file with another header, or with values that are not finite."""
    length = int.from_bytes(content[:8], "little")
    head, body = content[8 : 8 + length], content[8 + length :]
    roll = chance.random()
    if roll < 0.7:
        head = _twisted_text(chance, head)
        return struct.pack("<Q", len(head)) + head + body
    if roll < 0.8:
        return struct.pack("<Q", chance.choice((0, 1, length - 1, length + 1, 2**31, 2**63))) + head + body
    changed = bytearray(body)
    number = struct.pack("<f", chance.choice((float("nan"), float("inf"), -float("inf"), 3e38, 0.0)))
    for _ in range(chance.choice((1, 100))):
        place = 4 * chance.randrange(max(len(body) // 4, 1))
        changed[place : place + 4] = number
    return content[: 8 + length] + bytes(changed)


def _write(path: Path, content: bytes) -> None:
    """As a file of its own: what lies there may be a second name of the sound one."""
    path.unlink()
    path.write_bytes(content)
